"""The rotary embedding of a config.json, in its old and new spellings.

Old: `rope_theta`, `partial_rotary_factor` and `rope_scaling` (with "type", later "rope_type").
New: all of it in `rope_parameters`. `rope_scaling` wins where both stand there, and the value
inside a group over the one beside it, as in transformers.
"""

import dataclasses
import math
from collections.abc import Callable

from minillm.model.rope import LinearStretch, Llama3Stretch, LongStretch, Rope, YarnStretch
from minillm.teachers.config_reader import ConfigReader

Reader = Callable[[Rope, ConfigReader, "Lengths"], Rope]


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How long the model reads, and how long it read before it was stretched.

    Attributes:
        longest: the model's `max_position_embeddings`.
        original: what stands beside the group as `original_max_position_embeddings`; it wins.
    """

    longest: int
    original: int | None = None

    def before(self, group: ConfigReader) -> int:
        """The length that the model was trained for before it was stretched."""
        inside = group.integer("original_max_position_embeddings", self.longest)
        return inside if self.original is None else self.original


def read_rope(
    values: ConfigReader,
    longest: int,
    *,
    theta: float = 10_000.0,
    original: int | None = None,
    partial: bool = False,
    aliases: dict[str, str] | None = None,
) -> Rope:
    """The rotation that all layers share.

    Args:
        longest: the model's `max_position_embeddings`.
        theta, original: where there is no `rope_theta`, no `original_max_position_embeddings`
            beside the group.
        partial: whether the family can turn a part of the head.
        aliases: other names of rope types, in this family.

    Raises:
        UserError: an unknown type, a missing, ill-typed or unknown field.
    """
    new, old = values.group("rope_parameters"), values.group("rope_scaling")
    theta = values.number("rope_theta", theta)
    fraction = _fraction(values, 1.0) if partial else 1.0
    original = values.integer_or_none("original_max_position_embeddings", original)
    lengths = Lengths(longest, original)
    group = old or new or ConfigReader({}, field="")
    return rope_of(group, Rope(theta, fraction), lengths, partial=partial, aliases=aliases)


def rope_of(
    group: ConfigReader,
    beside: Rope,
    lengths: Lengths,
    *,
    partial: bool = False,
    aliases: dict[str, str] | None = None,
) -> Rope:
    """The rotation that one group of rope fields describes.

    Args:
        beside: theta and fraction for where the group has none.
    """
    kinds = {**_READERS, **{name: _READERS[kind] for name, kind in (aliases or {}).items()}}
    name = "rope_type" if group.has("rope_type") else "type"
    read = group.choice(name, kinds, "default")
    group.ignore("type", "rope_type")
    fraction = _fraction(group, beside.fraction)
    if fraction != 1 and not partial:
        raise group.error("partial_rotary_factor", "1: this family turns all of a head")
    rope = read(Rope(group.number("rope_theta", beside.theta), fraction), group, lengths)
    group.refuse_unread()
    return rope


def _fraction(values: ConfigReader, default: float) -> float:
    fraction = values.number("partial_rotary_factor", default)
    if fraction > 1:
        raise values.error("partial_rotary_factor", "at most 1, all of a head")
    return fraction


def _default(rope: Rope, group: ConfigReader, lengths: Lengths) -> Rope:
    return rope


def _linear(rope: Rope, group: ConfigReader, lengths: Lengths) -> Rope:
    return dataclasses.replace(rope, stretch=LinearStretch(group.number("factor")))


def _llama3(rope: Rope, group: ConfigReader, lengths: Lengths) -> Rope:
    low, high = group.number("low_freq_factor"), group.number("high_freq_factor")
    if high <= low:
        raise group.error("high_freq_factor", f"above low_freq_factor={low}")
    stretch = Llama3Stretch(group.number("factor"), low, high, lengths.before(group))
    return dataclasses.replace(rope, stretch=stretch)


def _yarn(rope: Rope, group: ConfigReader, lengths: Lengths) -> Rope:
    factor, original = group.number("factor"), lengths.before(group)
    if rope.theta <= 1:
        raise group.error("rope_theta", "above 1, for a yarn stretch")
    stretch = YarnStretch(
        factor,
        original,
        beta_fast=group.number_or_none("beta_fast") or 32.0,
        beta_slow=group.number_or_none("beta_slow") or 1.0,
        truncate=group.flag("truncate", True),
    )

    def gain(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1

    own, all_dims = group.number_or_none("mscale"), group.number_or_none("mscale_all_dim")
    usual = gain(own) / gain(all_dims) if own and all_dims else gain(1.0)
    magnitude = group.number_or_none("attention_factor") or usual
    return dataclasses.replace(rope, stretch=stretch, magnitude=magnitude)


def _long(rope: Rope, group: ConfigReader, lengths: Lengths) -> Rope:
    original = lengths.before(group)
    stretch = LongStretch(group.numbers("short_factor"), group.numbers("long_factor"), original)
    factor = group.number_or_none("factor") or lengths.longest / original
    magnitude = group.number_or_none("attention_factor")
    if magnitude is None:
        if factor > 1 and original == 1:
            raise group.error("original_max_position_embeddings", "above 1")
        magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return dataclasses.replace(rope, stretch=stretch, magnitude=magnitude)


_READERS: dict[str, Reader] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _long,
}
