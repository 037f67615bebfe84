"""The T5 encoder as transformers writes it: its config.json, and where its weights stand."""

import dataclasses
from collections.abc import Collection
from typing import Literal

from etils import epath
from jax.sharding import Mesh

from minillm.core.errors import UserError
from minillm.data.load_tokenizer import load_tokenizer
from minillm.data.tokenizer_protocol import Tokenizer
from minillm.model.functional import ModelFunction
from minillm.model.t5_encoder import T5Config, T5Encoder
from minillm.teachers.config_reader import ConfigReader
from minillm.teachers.huggingface_config import CONFIG, read_config
from minillm.teachers.loading import load_weights
from minillm.teachers.safetensors_files import TensorFiles
from minillm.teachers.teacher import Teacher
from minillm.teachers.weights import LAYER, Source, WeightMap

Dtype = Literal["float32", "bfloat16"]

# Both names of the one table: a file holds either, or both. The first is the encoder's own.
_EMBEDDINGS = ("encoder.embed_tokens.weight", "shared.weight")
# Of a whole T5, the half that an encoder has no use for.
_IGNORED = ("decoder.*", "lm_head.weight", *_EMBEDDINGS)


def describe_t5(
    directory: epath.Path, tokenizer: epath.Path, *, dtype: Dtype | None = None
) -> tuple[T5Config, Tokenizer]:
    """The encoder and the tokenizer of these folders; no weights are read.

    Args:
        dtype: of activations, and of matrices where they are used; None is float32.

    Raises:
        UserError: a file is missing or broken, or the two do not belong together.
    """
    field = f"{directory / CONFIG}: "
    config = t5_config(ConfigReader(read_config(directory), field=field))
    loaded = load_tokenizer(tokenizer)
    if loaded.vocab_size > config.vocab_size:
        raise UserError(
            field=str(tokenizer),
            got=f"a tokenizer of {loaded.vocab_size} ids",
            wanted=f"{config.vocab_size} at most, as the encoder has",
            fix="put weights and tokenizer of one pipeline into the folder",
        )
    return dataclasses.replace(config, compute_dtype=dtype or config.compute_dtype), loaded


def t5_teacher(
    directory: epath.Path, tokenizer: epath.Path, *, mesh: Mesh, dtype: Dtype | None = None
) -> Teacher:
    """A teacher of hidden states, each tensor read onto its own shards. See `describe_t5`."""
    config, loaded = describe_t5(directory, tokenizer, dtype=dtype)
    files = TensorFiles(directory)
    function = ModelFunction(config, T5Encoder)
    weights = t5_weights(config, files.names)
    abstract = function.abstract(mesh, config.compute_dtype)
    params = load_weights(files, weights, abstract, ignored=_IGNORED)
    return Teacher(function.bind(params), tokenizer=loaded)


def t5_config(values: ConfigReader) -> T5Config:
    """What a config.json says of the encoder.

    Raises:
        UserError: a field is missing, ill-typed, or of a function that the encoder is not.
    """
    values.choice("model_type", {"t5": None}, "t5")
    # Said of the whole T5, whose encoder is read here.
    values.ignore("is_encoder_decoder")
    if values.flag("is_decoder", False):
        raise values.error("is_decoder", "false, since a decoder does not see what follows")
    buckets = values.integer("relative_attention_num_buckets", 32, minimum=4)
    config = T5Config(
        vocab_size=values.integer("vocab_size"),
        hidden_size=values.integer("d_model"),
        num_layers=values.integer("num_layers"),
        num_heads=values.integer("num_heads"),
        head_dim=values.integer("d_kv"),
        intermediate_size=values.integer("d_ff"),
        num_buckets=buckets,
        max_distance=values.integer(
            "relative_attention_max_distance", 128, minimum=buckets // 4 + 1
        ),
        norm_eps=values.number("layer_norm_epsilon", 1e-6),
        activation=values.choice(
            "feed_forward_proj", {"gated-gelu": "gated-gelu", "relu": "relu"}, "relu"
        ),
    )
    values.refuse_rest()
    return config


def t5_weights(config: T5Config, names: Collection[str]) -> WeightMap:
    """Where each parameter of the encoder stands in a checkpoint with tensors of these names."""
    width, inner = config.hidden_size, config.intermediate_size
    heads = (config.num_heads, config.head_dim)
    of_heads = config.num_heads * config.head_dim
    attention = f"encoder.block.{LAYER}.layer.0"
    mlp = f"encoder.block.{LAYER}.layer.1"
    ups = ("wi_0", "wi_1") if config.projections == 2 else ("wi",)
    embedding = next((name for name in _EMBEDDINGS if name in names), _EMBEDDINGS[0])
    return {
        ("embedding",): (_whole(embedding, (config.vocab_size, width), (0, 1)),),
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
