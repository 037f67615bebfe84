"""Tolerances by dtype, each with its reason. Nothing here is loosened to make a test pass."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """Largest absolute error, relative to values of order one."""

    output: float
    gradient: float
    logits: float


TOLERANCES = {
    # output: about 16 units in the last place of 1.0 after a softmax and a sum of up to a few
    # hundred products. gradient: two more products and sums. logits: a stack of layers on top,
    # against another library with another order of summation.
    "float32": Tolerance(output=2e-6, gradient=1e-5, logits=1e-4),
    # bf16 keeps 8 bits: 2^-8 = 3.9e-3 for one rounding of a value near one, four of them in a
    # chain for an output, twice that for a gradient.
    "bfloat16": Tolerance(output=1.6e-2, gradient=3.2e-2, logits=6e-2),
}

# Of log-probabilities, against another library: logits, from which a log-softmax takes one sum
# over the vocabulary, in float32 too. They are held to no more than logits are allowed.
LOG_PROBS = TOLERANCES["float32"].logits

# Relative, of log-probabilities that two runs put into float16, which keeps 11 bits: where the
# runs round a value to either side, the two stored ones are one unit apart, 2^-10 of it at most.
STORED = 2**-10
