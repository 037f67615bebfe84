"""How the Transformer's parameters are put together from the tensors of a checkpoint.

A family states it as data, so that a loader can read for each device just the part it keeps, and
a test can list what was read, what is missing and what nobody asked for.
"""

import dataclasses

LAYER = "{layer}"

# A parameter's place in the tree of parameters: ("blocks", "attention", "qkv").
Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Source:
    """A tensor of the checkpoint, or some of its rows, as one part of a parameter.

    Attributes:
        name: of the tensor; LAYER stands for the layer's number, where every layer has its own.
        shape: the whole tensor's, as the checkpoint must have it.
        view: the factors of its dimensions, row-major: a [K·G·H, D] matrix as (K, G, H, D). With
            `rows`, those of the rows meant.
        order: the view's axes in the order of the parameter's: (3, 0, 1, 2) makes D, K, G, H.
        rows: [start, stop) of the first dimension, of a tensor that holds several projections.
        at: (axis, start) of the part in the parameter of one layer; None where it is all of it.
            The part then has the parameter's axes, with as many entries along `axis` as its own.
        plus: added to every value; 1 where a norm's scale is stored as its distance from 1.
    """

    name: str
    shape: tuple[int, ...]
    view: tuple[int, ...]
    order: tuple[int, ...]
    rows: tuple[int, int] | None = None
    at: tuple[int, int] | None = None
    plus: float = 0.0


# The parts of each parameter. Those in ("blocks", …) are of one layer, without the axis L.
WeightMap = dict[Path, tuple[Source, ...]]
