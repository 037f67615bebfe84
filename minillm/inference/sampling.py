"""From logits to the next token: pure functions, one random key a row."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from minillm.core.errors import UserError


def keep_top_k(logits: Float[Array, "B V"], k: int) -> Float[Array, "B V"]:
    """-inf for all but the k largest logits of each row; ties with the k-th are kept."""
    k = min(k, logits.shape[-1])
    smallest_kept = jax.lax.top_k(logits, k)[0][:, -1:]
    return jnp.where(logits >= smallest_kept, logits, -jnp.inf)


def keep_top_p(logits: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """-inf outside the nucleus: the fewest most probable tokens whose mass reaches p.

    The token that crosses p is inside, so at least one is kept, and ties with the last are kept
    too (Holtzman et al., 2019).
    """
    descending = -jnp.sort(-logits, axis=-1)
    probabilities = jax.nn.softmax(descending, axis=-1)
    mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
    inside = jnp.where(mass_before < p, descending, jnp.inf)
    return jnp.where(logits >= jnp.min(inside, axis=-1, keepdims=True), logits, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How the next token is chosen.

    Attributes:
        temperature: divides the logits; 0 takes the most probable token and ignores the rest.
        top_k: choose among the k most probable.
        top_p: choose among the most probable that together reach p, after top_k.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise _bad("temperature", self.temperature, "0 (greedy) or more", "try 0.8")
        if self.top_k is not None and self.top_k < 1:
            raise _bad("top_k", self.top_k, "at least 1, or None", "try 40")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise _bad("top_p", self.top_p, "above 0 and at most 1, or None", "try 0.95")

    def __call__(self, logits: Float[Array, "B V"], keys: Key[Array, " B"]) -> Int[Array, " B"]:
        """One token a row."""
        if self.temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logits = logits / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


GREEDY = Sampler()


def _bad(name: str, got: object, wanted: str, fix: str) -> UserError:
    return UserError(field=f"sampler.{name}", got=got, wanted=wanted, fix=fix)
