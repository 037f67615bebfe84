"""Reading the fields of a Hugging Face config.json, each with its type and range."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from minillm.core.errors import UserError

T = TypeVar("T")
_REQUIRED: Any = object()
# Far above any model that there is, and low enough that what is counted by layer, by head or by
# feature before the weights are looked at takes no time: a file may say anything.
MOST_LAYERS, MOST_HEADS, WIDEST = 10_000, 10_000, 1 << 24
_LARGEST = 2**31 - 1
_LARGEST_FLOAT = 1e38

# Fields that change the computation, with the values that leave it as it is. Any other value of a
# field that the family did not read is refused.
_TELLING: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (None, False),
    "alibi": (None, False),
    "attention_bias": (None, False),
    "attention_chunk_size": (None,),
    "attention_multiplier": (None, 1.0),
    "attn_logit_softcapping": (None,),
    "clip_qkv": (None,),
    "embedding_multiplier": (None, 1.0),
    "final_logit_softcapping": (None,),
    "is_causal": (None, True),
    "is_encoder_decoder": (None, False),
    "layer_types": (None,),
    "logit_scale": (None, 1.0),
    "logits_scaling": (None, 1.0),
    "mlp_bias": (None, False),
    "moe_intermediate_size": (None, 0),
    "n_routed_experts": (None, 0),
    "no_rope_layers": (None,),
    "num_experts": (None, 0),
    "num_experts_per_tok": (None, 0),
    "num_local_experts": (None, 0),
    "parallel_residual": (None, False),
    "partial_rotary_factor": (None, 1.0),
    "per_layer_config": (None,),
    "qk_layernorm": (None, False),
    "quantization_config": (None,),
    "query_pre_attn_scalar": (None,),
    "residual_multiplier": (None, 1.0),
    "rope_interleaved": (None, False),
    "rope_local_base_freq": (None,),
    "rotary_pct": (None, 1.0),
    "sliding_window": (None,),
    "sliding_window_pattern": (None,),
    "use_bidirectional_attention": (None, False),
    "use_parallel_residual": (None, False),
    "use_qk_norm": (None, False),
    "use_sliding_window": (None, False),
}


class ConfigReader:
    """One group of a config.json. Every error names the field as it is spelled there.

    A field without a default must be there. `null` is a value only to the methods that say so.
    """

    def __init__(self, values: Mapping[str, Any], *, field: str) -> None:
        self._values = values
        self._field = field
        self._read: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._values.get(name) is not None

    def integer(
        self, name: str, default: int = _REQUIRED, *, minimum: int = 1, maximum: int = _LARGEST
    ) -> int:
        value = self._get(name, default)
        good = isinstance(value, int) and not isinstance(value, bool)
        if not (good and minimum <= value <= maximum):
            raise self.error(name, f"an integer from {minimum} to {maximum}")
        return value

    def integer_or_none(
        self, name: str, default: int | None = None, *, maximum: int = _LARGEST
    ) -> int | None:
        """As `integer`; null is None."""
        value = self._get(name, default)
        return None if value is None else self.integer(name, value, maximum=maximum)

    def number(self, name: str, default: float = _REQUIRED) -> float:
        """A finite number above 0."""
        value = self._get(name, default)
        if not _is_positive(value):
            raise self.error(name, "a number above 0")
        return float(value)

    def number_or_none(self, name: str, default: float | None = None) -> float | None:
        """As `number`; null is None."""
        value = self._get(name, default)
        return None if value is None else self.number(name, value)

    def flag(self, name: str, default: bool = _REQUIRED) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false")
        return value

    def choice(self, name: str, choices: Mapping[str, T], default: str = _REQUIRED) -> T:
        """What the field's text stands for."""
        value = self._get(name, default)
        if not isinstance(value, str) or value not in choices:
            raise self.error(name, f"one of {', '.join(choices)}")
        return choices[value]

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers above 0."""
        value = self._get(name, _REQUIRED)
        if not (isinstance(value, list) and all(map(_is_positive, value))):
            raise self.error(name, "a list of numbers above 0")
        return tuple(map(float, value))

    def by_layer(self, name: str, choices: Mapping[Any, T], layers: int) -> tuple[T, ...] | None:
        """What the entries of a list, one a layer, stand for; None where absent or null."""
        value = self._get(name, None)
        if value is None:
            return None
        known = isinstance(value, list) and all(
            isinstance(entry, (str, int)) and entry in choices for entry in value
        )
        if not known or len(value) != layers:
            names = ", ".join(map(str, choices))
            raise self.error(name, f"a list of {layers} entries (one a layer), each of {names}")
        return tuple(choices[entry] for entry in value)

    def group(self, name: str) -> "ConfigReader | None":
        """The group of fields under a name; None where absent, null or empty."""
        value = self._get(name, None)
        if value is None or value == {}:
            return None
        if not isinstance(value, Mapping):
            raise self.error(name, "a group of fields")
        return ConfigReader(value, field=f"{self._field}{name}.")

    def required_group(self, name: str) -> "ConfigReader":
        """As `group`, of one that must be there."""
        group = self.group(name)
        if group is None:
            raise self.error(name, "a group of fields")
        return group

    def ignore(self, *names: str) -> None:
        """Count fields as read that say nothing here."""
        self._read.update(names)

    def refuse_rest(self) -> None:
        """Raise UserError for a field that was not read and would change the function."""
        for name in self._values:
            if name not in self._read and not _says_nothing(name, self._values[name]):
                raise self.error(
                    name,
                    f"{_harmless(name)}: any other value changes what the model computes",
                    unread=True,
                )

    def refuse_unread(self) -> None:
        """Raise UserError for any field that was not read."""
        for name in self._values:
            if name not in self._read:
                known = ", ".join(sorted(self._read))
                raise self.error(name, f"fields that are known here: {known}", unread=True)

    def error(self, name: str, wanted: str, *, unread: bool = False) -> UserError:
        """The error that names this field."""
        missing = name not in self._values
        return UserError(
            field=f"{self._field}{name}",
            got="nothing" if missing else f"{self._values[name]!r:.80}",
            wanted=wanted,
            fix="take a model of a family that minillm reads"
            if unread
            else "take the config.json that belongs to the weights",
        )

    def _get(self, name: str, default: Any) -> Any:
        self._read.add(name)
        value = self._values.get(name, default)
        if value is _REQUIRED:
            raise self.error(name, "a value")
        return value


def _is_positive(value: object) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 < value <= _LARGEST_FLOAT  # type: ignore[operator]  # a number by now


def _harmless(name: str) -> str:
    """The accepted values of a field that no family read, as JSON writes them."""
    if name == "layer_types":
        return '"full_attention" for every layer'
    return " or ".join(json.dumps(value) for value in _TELLING[name])


def _says_nothing(name: str, value: object) -> bool:
    if name == "layer_types" and isinstance(value, list):
        return all(entry == "full_attention" for entry in value)
    if name not in _TELLING:
        return True
    # To Python true is 1; in a file it is another thing.
    return any(
        value == same and isinstance(value, bool) == isinstance(same, bool)
        for same in _TELLING[name]
    )
