"""The T5 encoder as transformers writes it: its config.json and where its weights stand."""

from collections.abc import Collection, Mapping
from typing import Any

from minillm.core.errors import UserError
from minillm.model.t5_encoder import T5Config
from minillm.teachers.weights import LAYER, Source, WeightMap

_SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "d_kv": "head_dim",
    "d_ff": "intermediate_size",
}
# What transformers takes where an old config.json has none.
_OTHERS = {
    "relative_attention_num_buckets": ("num_buckets", 32),
    "relative_attention_max_distance": ("max_distance", 128),
    "layer_norm_epsilon": ("norm_eps", 1e-6),
    "feed_forward_proj": ("activation", "relu"),
}
# Both names of the one table; a file may hold either, or both.
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")


def t5_config(settings: Mapping[str, Any], *, field: str) -> T5Config:
    """The encoder that a config.json describes; `field` names the file.

    Raises:
        UserError: a size is missing, or a value is none that the encoder knows.
    """
    given: dict[str, Any] = {}
    for theirs, ours in _SIZES.items():
        if theirs not in settings:
            raise UserError(
                field=f"{field}: {theirs}",
                got="nothing",
                wanted="a whole number, as T5's configuration has it",
                fix="take the config.json that belongs to the weights",
            )
        given[ours] = _number(settings[theirs], int, f"{field}: {theirs}")
    for theirs, (ours, default) in _OTHERS.items():
        value = settings.get(theirs, default)
        if theirs != "feed_forward_proj":
            value = _number(value, type(default), f"{field}: {theirs}")
        given[ours] = value
    activation = given["activation"]
    if activation not in ("gated-gelu", "relu"):
        raise UserError(
            field=f"{field}: feed_forward_proj",
            got=repr(activation),
            wanted='"gated-gelu" (T5 1.1) or "relu" (T5)',
            fix="take the T5 encoder of a FLUX.1 pipeline, which is google/t5-v1_1-xxl's",
        )
    return T5Config(**given)


def _number(value: Any, kind: type, field: str) -> Any:
    # bool is an int to Python; a whole number will do for a real one.
    fits = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if not fits:
        raise UserError(
            field=field,
            got=f"{value!r} ({type(value).__name__})",
            wanted="a number" if kind is float else "a whole number",
            fix="take the config.json that belongs to the weights",
        )
    return value


def t5_weights(config: T5Config, names: Collection[str]) -> WeightMap:
    """Where each parameter of the encoder stands in a checkpoint with tensors of these names."""
    width, inner = config.hidden_size, config.intermediate_size
    heads = (config.num_heads, config.head_dim)
    of_heads = config.num_heads * config.head_dim
    attention = f"encoder.block.{LAYER}.layer.0"
    mlp = f"encoder.block.{LAYER}.layer.1"
    ups = ("wi_0", "wi_1") if config.projections == 2 else ("wi",)
    return {
        ("embedding",): (_whole(_embedding(names), (config.vocab_size, width), (0, 1)),),
        # The first layer has the table that all layers use.
        ("position_bias",): (
            _whole(
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                (config.num_buckets, config.num_heads),
                (1, 0),
            ),
        ),
        ("blocks", "attention_norm"): (_whole(f"{attention}.layer_norm.weight", (width,), (0,)),),
        ("blocks", "qkv"): tuple(
            Source(
                name=f"{attention}.SelfAttention.{which}.weight",
                shape=(of_heads, width),
                view=(1, *heads, width),
                order=(3, 0, 1, 2),
                at=(1, place),
            )
            for place, which in enumerate("qkv")
        ),
        ("blocks", "output"): (
            Source(
                name=f"{attention}.SelfAttention.o.weight",
                shape=(width, of_heads),
                view=(width, *heads),
                order=(1, 2, 0),
            ),
        ),
        ("blocks", "mlp_norm"): (_whole(f"{mlp}.layer_norm.weight", (width,), (0,)),),
        ("blocks", "up"): tuple(
            Source(
                name=f"{mlp}.DenseReluDense.{which}.weight",
                shape=(inner, width),
                view=(1, inner, width),
                order=(2, 0, 1),
                at=(1, place),
            )
            for place, which in enumerate(ups)
        ),
        ("blocks", "down"): (_whole(f"{mlp}.DenseReluDense.wo.weight", (width, inner), (1, 0)),),
        ("final_norm",): (_whole("encoder.final_layer_norm.weight", (width,), (0,)),),
    }


def _whole(name: str, shape: tuple[int, ...], order: tuple[int, ...]) -> Source:
    return Source(name=name, shape=shape, view=shape, order=order)


def _embedding(names: Collection[str]) -> str:
    present = [name for name in EMBEDDINGS if name in names]
    return present[0] if present else EMBEDDINGS[0]
