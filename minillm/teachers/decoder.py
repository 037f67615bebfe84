"""What the decoder families have in common: the usual fields, and the usual names of tensors."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from minillm.model.config import ModelConfig
from minillm.model.rope import Rope
from minillm.teachers.config_reader import MOST_HEADS, MOST_LAYERS, WIDEST, ConfigReader
from minillm.teachers.weights import LAYER, Path, Source, WeightMap

# "gelu" in transformers is the exact form; ours is named for the tanh form.
_ACTIVATIONS: dict[str, Literal["silu", "gelu", "gelu_exact"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
}
_LAYER_TYPES = {"full_attention": False, "sliding_attention": True}
_BLOCK = f"model.layers.{LAYER}."


def decoder_config(
    values: ConfigReader, *, activation: str = "hidden_act", **defaults: Any
) -> ModelConfig:
    """The fields that every family has; the rest is at the defaults of `ModelConfig`.

    Args:
        activation: the field's name in this family.
        defaults: what a field is where the file has none, by its name there, over what is usual.
            Sizes have no usual value: without a default they must be in the file.
    """
    usual = {
        "num_key_value_heads": None,
        "head_dim": None,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        activation: "silu",
        **defaults,
    }

    def default(name: str) -> dict[str, Any]:
        return {"default": usual[name]} if name in usual else {}

    def size(name: str, most: int = WIDEST) -> int:
        return values.integer(name, maximum=most, **default(name))

    width = size("hidden_size")
    heads = size("num_attention_heads", MOST_HEADS)
    name = "num_key_value_heads"
    kv_heads = values.integer_or_none(name, **default(name)) or heads
    if heads % kv_heads:
        raise values.error(name, f"a divisor of num_attention_heads={heads}")
    head_dim = values.integer_or_none("head_dim", maximum=WIDEST, **default("head_dim"))
    if head_dim is None and width % heads:
        raise values.error("num_attention_heads", f"a divisor of hidden_size={width}")
    head_dim = width // heads if head_dim is None else head_dim
    if head_dim % 2:
        raise values.error("head_dim", f"an even number, not {head_dim}: RoPE turns pairs")
    return ModelConfig(
        vocab_size=size("vocab_size"),
        hidden_size=width,
        num_layers=size("num_hidden_layers", MOST_LAYERS),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=size("intermediate_size"),
        max_length=values.integer("max_position_embeddings", **default("max_position_embeddings")),
        norm_eps=values.number("rms_norm_eps", **default("rms_norm_eps")),
        activation=values.choice(activation, _ACTIVATIONS, **default(activation)),
        tie_embeddings=values.flag("tie_word_embeddings", **default("tie_word_embeddings")),
    )


def layer_windows(
    values: ConfigReader, layers: int, window: int | None, usual: Sequence[bool]
) -> list[int | None]:
    """Each layer's window, as `layer_types` says or, where it is absent, as usual.

    Args:
        window: of the layers with a sliding window.
        usual: which layers slide.
    """
    slides = values.by_layer("layer_types", _LAYER_TYPES, layers) or usual
    if any(slides) and window is None:
        raise values.error("sliding_window", "a size, since layers with a window are asked for")
    return [window if slide else None for slide in slides]


def pattern_of(layers: list[tuple[int | None, Rope | None]]) -> dict[str, Any]:
    """Fields of `ModelConfig` for layers with these windows and rotations.

    The pattern is the shortest that repeats: the layers of one repeat are compiled, not all.
    """
    count = len(layers)
    # A list that repeats after p entries is equal to itself shifted by p.
    period = next(p for p in range(1, count + 1) if layers[p:] == layers[: count - p])
    windows, ropes = zip(*layers[:period], strict=True)
    first = ropes[0]
    if first is not None and all(rope == Rope(first.theta) for rope in ropes):
        return {"windows": windows, "rope_theta": first.theta}
    return {"windows": windows, "ropes": ropes}


def table_weights(config: ModelConfig, *, plus: float = 0.0) -> WeightMap:
    """Embedding, last norm and head."""
    table = (config.vocab_size, config.hidden_size)
    weights: WeightMap = {
        ("embedding",): (whole("model.embed_tokens.weight", table),),
        ("final_norm", "scale"): (whole("model.norm.weight", table[1:], plus=plus),),
    }
    if not config.tie_embeddings:
        weights["head",] = (whole("lm_head.weight", table),)
    return weights


def norm_weights(config: ModelConfig, *, plus: float = 0.0, **names: str) -> WeightMap:
    """The norms of a layer: the place in our block, and the tensor's name."""
    shape = (config.hidden_size,)
    return {
        ("blocks", place, "scale"): (whole(f"{_BLOCK}{name}.weight", shape, plus=plus),)
        for place, name in names.items()
    }


def attention_weights(config: ModelConfig) -> WeightMap:
    """Projections as a tensor each, with the biases that the configuration has."""
    parts = _projections(config)
    prefix = f"{_BLOCK}self_attn."
    weights = {
        _at("attention", "qkv"): tuple(
            Source(
                f"{prefix}{name}_proj.weight",
                (math.prod(heads), config.hidden_size),
                (*heads, config.hidden_size),
                (3, 0, 1, 2),
                at=(2, start),
            )
            for name, heads, start in parts
        ),
        **_output_weights(config),
    }
    if config.attention_bias:
        weights[_at("attention", "qkv_bias")] = tuple(
            Source(
                f"{prefix}{name}_proj.bias", (math.prod(heads),), heads, (0, 1, 2), at=(1, start)
            )
            for name, heads, start in parts
        )
    if config.output_bias:
        bias = whole(f"{prefix}o_proj.bias", (config.hidden_size,))
        weights[_at("attention", "output_bias")] = (bias,)
    return weights


def fused_attention_weights(config: ModelConfig) -> WeightMap:
    """Projections in one tensor: all queries, then all keys, then all values."""
    parts, stop, sources = _projections(config), 0, []
    rows = sum(math.prod(heads) for _, heads, _ in parts)
    for _, heads, place in parts:
        start, stop = stop, stop + math.prod(heads)
        sources.append(
            Source(
                f"{_BLOCK}self_attn.qkv_proj.weight",
                (rows, config.hidden_size),
                (*heads, config.hidden_size),
                (3, 0, 1, 2),
                rows=(start, stop),
                at=(2, place),
            )
        )
    return {_at("attention", "qkv"): tuple(sources), **_output_weights(config)}


def _output_weights(config: ModelConfig) -> WeightMap:
    heads = (config.num_heads, config.head_dim)
    source = Source(
        f"{_BLOCK}self_attn.o_proj.weight",
        (config.hidden_size, math.prod(heads)),
        (config.hidden_size, *heads),
        (1, 2, 0),
    )
    return {_at("attention", "output"): (source,)}


def qk_norm_weights(config: ModelConfig, *, plus: float = 0.0) -> WeightMap:
    """Scales over the head size, or over all heads at once where the configuration has that."""
    shapes: list[tuple[int, ...]] = [(config.head_dim,), (config.head_dim,)]
    if config.joint_qk_norm:
        kv_heads, size = config.num_kv_heads, config.head_dim
        shapes = [(kv_heads, config.groups, size), (kv_heads, size)]
    names = (("query_scale", "q_norm"), ("key_scale", "k_norm"))
    return {
        _at("attention", ours): (
            Source(
                f"{_BLOCK}self_attn.{theirs}.weight",
                (math.prod(shape),),
                shape,
                tuple(range(len(shape))),
                plus=plus,
            ),
        )
        for (ours, theirs), shape in zip(names, shapes, strict=True)
    }


def mlp_weights(config: ModelConfig) -> WeightMap:
    """Gate, up and down as a tensor each, with their biases where the configuration has them."""
    width, inner = config.hidden_size, config.intermediate_size
    prefix = f"{_BLOCK}mlp."
    places = (("gate", 0), ("up", 1))
    weights = {
        _at("mlp", "gate_up"): tuple(
            Source(
                f"{prefix}{name}_proj.weight",
                (inner, width),
                (1, inner, width),
                (2, 0, 1),
                at=(1, place),
            )
            for name, place in places
        ),
        _at("mlp", "down"): (
            Source(f"{prefix}down_proj.weight", (width, inner), (width, inner), (1, 0)),
        ),
    }
    if config.mlp_bias:
        weights[_at("mlp", "gate_up_bias")] = tuple(
            Source(f"{prefix}{name}_proj.bias", (inner,), (1, inner), (0, 1), at=(0, place))
            for name, place in places
        )
        weights[_at("mlp", "down_bias")] = (whole(f"{prefix}down_proj.bias", (width,)),)
    return weights


def fused_mlp_weights(config: ModelConfig) -> WeightMap:
    """Gate and up in one tensor, the gate first."""
    width, inner = config.hidden_size, config.intermediate_size
    name = f"{_BLOCK}mlp.gate_up_proj.weight"
    fused = Source(name, (2 * inner, width), (2, inner, width), (2, 0, 1))
    down = Source(f"{_BLOCK}mlp.down_proj.weight", (width, inner), (width, inner), (1, 0))
    return {_at("mlp", "gate_up"): (fused,), _at("mlp", "down"): (down,)}


def whole(name: str, shape: tuple[int, ...], *, plus: float = 0.0) -> Source:
    """A tensor that is a parameter as it stands."""
    return Source(name, shape, shape, tuple(range(len(shape))), plus=plus)


def _projections(config: ModelConfig) -> list[tuple[str, tuple[int, int, int], int]]:
    """Name, heads (K, G or 1, H) and place along the fused axis of queries, keys and values."""
    kv_heads, groups, size = config.num_kv_heads, config.groups, config.head_dim
    one = (kv_heads, 1, size)
    return [("q", (kv_heads, groups, size), 0), ("k", one, groups), ("v", one, groups + 1)]


def _at(*names: str) -> Path:
    return ("blocks", *names)
