"""The T5 encoder as transformers writes it: its config.json, and where its weights stand."""

import dataclasses
from collections.abc import Collection
from typing import Literal

from etils import epath

from minillm.data.load_tokenizer import load_tokenizer
from minillm.model.config import Dtype
from minillm.model.t5_encoder import T5Config
from minillm.teachers.config_reader import MOST_HEADS, MOST_LAYERS, WIDEST, ConfigReader
from minillm.teachers.huggingface import Folder, require_same_vocabulary
from minillm.teachers.huggingface_config import CONFIG, read_config
from minillm.teachers.loading import check_tensors
from minillm.teachers.safetensors_files import TensorFiles
from minillm.teachers.weights import LAYER, Source, WeightMap

# By `feed_forward_proj`: ours, the function in it, and whether there is a gate.
_PROJECTIONS: dict[str, tuple[Literal["gated-gelu", "relu"], str, bool]] = {
    "gated-gelu": ("gated-gelu", "gelu_new", True),
    "relu": ("relu", "relu", False),
}
# Every offset up to the largest distance has its entry in a table.
_FARTHEST = 1 << 20
# Both names of the one table: a file holds either, or both. The first is the encoder's own.
_EMBEDDINGS = ("encoder.embed_tokens.weight", "shared.weight")
# Of a whole T5, the half that an encoder has no use for.
_IGNORED = ("decoder.*", "lm_head.weight", *_EMBEDDINGS)


def t5_folder(
    directory: epath.PathLike, tokenizer: epath.PathLike, dtype: Dtype | None = None
) -> Folder:
    """Everything of an encoder but the weights, and whether they are those it asks for.

    Args:
        tokenizer: the folder it lies in.
        dtype: of matrices and activations; None is float32.

    Raises:
        UserError: a part is missing or broken, or two do not fit together.
    """
    files = TensorFiles(directory)
    field = f"{epath.Path(directory) / CONFIG}: "
    config = t5_config(ConfigReader(read_config(directory), field=field))
    weights = t5_weights(config, files.names)
    check_tensors(files, weights, config.num_layers, ignored=_IGNORED)
    loaded = load_tokenizer(tokenizer)
    require_same_vocabulary(tokenizer, config.vocab_size, loaded)
    config = dataclasses.replace(config, compute_dtype=dtype or "float32")
    return Folder(config, weights, _IGNORED, files, loaded)


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
    activation, function, gated = values.choice("feed_forward_proj", _PROJECTIONS, "relu")
    # Most files say it once more in parts, which transformers would follow.
    values.choice("dense_act_fn", {function: None}, function)
    if values.flag("is_gated_act", gated) != gated:
        raise values.error("is_gated_act", f"{str(gated).lower()}, as feed_forward_proj says")
    buckets = values.integer("relative_attention_num_buckets", 32, minimum=4, maximum=_FARTHEST)
    config = T5Config(
        vocab_size=values.integer("vocab_size", maximum=WIDEST),
        hidden_size=values.integer("d_model", maximum=WIDEST),
        num_layers=values.integer("num_layers", maximum=MOST_LAYERS),
        num_heads=values.integer("num_heads", maximum=MOST_HEADS),
        head_dim=values.integer("d_kv", maximum=WIDEST),
        intermediate_size=values.integer("d_ff", maximum=WIDEST),
        num_buckets=buckets,
        max_distance=values.integer(
            "relative_attention_max_distance",
            128,
            minimum=buckets // 4 + 1,
            maximum=_FARTHEST,
        ),
        norm_eps=values.number("layer_norm_epsilon", 1e-6),
        activation=activation,
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
