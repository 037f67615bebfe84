"""The TPU's forward and backward passes, as Pallas (Mosaic) kernels, for bfloat16 and float32."""

from jaxtyping import Array, Float

from pallas_kernels import mosaic_tpu_tiles as tiles
from pallas_kernels.flash import Call, Kernels
from pallas_kernels.mosaic_tpu_backward import backward
from pallas_kernels.mosaic_tpu_forward import forward as _forward
from pallas_kernels.window import Marks


def forward(
    call: Call,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    marks: Marks,
    sinks: Float[Array, " N"] | None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """See `flash.Kernels`.

    Raises:
        ValueError: a dtype that the kernels do not load.
    """
    tiles.check_dtype(q)
    return _forward(call, q, k, v, marks, sinks)


KERNELS = Kernels(forward, backward)
