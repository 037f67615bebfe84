"""The TPU's forward and backward passes, as Pallas (Mosaic) kernels."""

from pallas_kernels.flash import Kernels
from pallas_kernels.mosaic_tpu_backward import backward
from pallas_kernels.mosaic_tpu_forward import forward

KERNELS = Kernels(forward, backward)
