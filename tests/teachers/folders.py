"""Llama folders of random weights, and where their tensors belong, written down apart."""

import dataclasses
import json

import numpy as np
from safetensors.numpy import save_file

from minillm.model.config import ModelConfig
from minillm.teachers.weights import LAYER, Source
from tests.data.foreign import gpt2

TINY = ModelConfig(
    vocab_size=48,
    hidden_size=16,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=24,
    tie_embeddings=False,
)


def shapes_of(config):
    """Names and shapes of a Llama checkpoint's tensors."""
    width, inner = config.hidden_size, config.intermediate_size
    heads, kv_heads = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))
    of_layer = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (heads, width),
        "self_attn.k_proj": (kv_heads, width),
        "self_attn.v_proj": (kv_heads, width),
        "self_attn.o_proj": (width, heads),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    shapes = {"model.embed_tokens.weight": (config.vocab_size, width)}
    for layer in range(config.num_layers):
        for name, shape in of_layer.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    shapes["model.norm.weight"] = (width,)
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, width)
    return shapes


def random_tensors(config, dtype=np.float32, seed=0):
    random = np.random.default_rng(seed)
    return {
        name: (random.standard_normal(shape) / shape[-1] ** 0.5).astype(dtype)
        for name, shape in shapes_of(config).items()
    }


def write_files(directory, tensors, files=1):
    """`model.safetensors`, or so many files and an index; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    if files == 1:
        save_file(tensors, directory / "model.safetensors")
        return [directory / "model.safetensors"]
    names = list(tensors)
    listed = {}
    for part in range(files):
        file = f"model-{part + 1:05}-of-{files:05}.safetensors"
        mine = names[part * len(names) // files : (part + 1) * len(names) // files]
        save_file({name: tensors[name] for name in mine}, directory / file)
        listed |= dict.fromkeys(mine, file)
    index = {"metadata": {}, "weight_map": listed}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return [directory / file for file in sorted(set(listed.values()))]


def llama_map(config, plus=0.0):
    """The weight map of Llama; `plus` is added to the norms' scales."""
    c, layer = config, f"model.layers.{LAYER}"
    width, head = c.hidden_size, c.head_dim
    matrix = (c.vocab_size, width)

    def norm(name):
        return (Source(f"{name}.weight", (width,), (width,), (0,), plus=plus),)

    def heads(name, count, start):
        view = (c.num_kv_heads, count, head, width)
        shape = (c.num_kv_heads * count * head, width)
        name = f"{layer}.self_attn.{name}_proj.weight"
        return Source(name, shape, view, (3, 0, 1, 2), at=(2, start))

    def gated(name, start):
        shape = (c.intermediate_size, width)
        name = f"{layer}.mlp.{name}_proj.weight"
        return Source(name, shape, (1, *shape), (2, 0, 1), at=(1, start))

    queries = (width, c.num_heads * head)
    found = {
        ("embedding",): (Source("model.embed_tokens.weight", matrix, matrix, (0, 1)),),
        ("final_norm", "scale"): norm("model.norm"),
        ("blocks", "attention_norm", "scale"): norm(f"{layer}.input_layernorm"),
        ("blocks", "mlp_norm", "scale"): norm(f"{layer}.post_attention_layernorm"),
        ("blocks", "attention", "qkv"): (
            heads("q", c.groups, 0),
            heads("k", 1, c.groups),
            heads("v", 1, c.groups + 1),
        ),
        ("blocks", "attention", "output"): (
            Source(
                f"{layer}.self_attn.o_proj.weight",
                queries,
                (width, c.num_heads, head),
                (1, 2, 0),
            ),
        ),
        ("blocks", "mlp", "gate_up"): (gated("gate", 0), gated("up", 1)),
        ("blocks", "mlp", "down"): (
            Source(
                f"{layer}.mlp.down_proj.weight",
                (width, c.intermediate_size),
                (width, c.intermediate_size),
                (1, 0),
            ),
        ),
    }
    if not c.tie_embeddings:
        found[("head",)] = (Source("lm_head.weight", matrix, matrix, (0, 1)),)
    return found


def llama_params(config, tensors, plus=0.0):
    """The parameters that these tensors make, by plain numpy; the tests' own account of them."""
    c = config

    def layers(make):
        return np.stack([make(f"model.layers.{n}") for n in range(c.num_layers)])

    def get(name):
        return np.asarray(tensors[f"{name}.weight"]).astype(np.float32)

    def qkv(layer):
        parts = []
        for name in "qkv":
            rows = get(f"{layer}.self_attn.{name}_proj")
            parts.append(rows.reshape(c.num_kv_heads, -1, c.head_dim, c.hidden_size))
        return np.moveaxis(np.concatenate(parts, axis=1), -1, 0)

    def output(layer):
        return get(f"{layer}.self_attn.o_proj").T.reshape(c.num_heads, c.head_dim, c.hidden_size)

    def gate_up(layer):
        return np.stack([get(f"{layer}.mlp.{name}_proj").T for name in ("gate", "up")], axis=1)

    params = {
        "embedding": get("model.embed_tokens"),
        "final_norm": {"scale": get("model.norm") + plus},
        "blocks": {
            "attention_norm": {"scale": layers(lambda n: get(f"{n}.input_layernorm")) + plus},
            "mlp_norm": {"scale": layers(lambda n: get(f"{n}.post_attention_layernorm")) + plus},
            "attention": {"qkv": layers(qkv), "output": layers(output)},
            "mlp": {
                "gate_up": layers(gate_up),
                "down": layers(lambda n: get(f"{n}.mlp.down_proj").T),
            },
        },
    }
    if not c.tie_embeddings:
        params["head"] = get("lm_head")
    return params


WHOLE = dataclasses.replace(TINY, vocab_size=520, num_layers=2)
# config.json of WHOLE, with what decides the most: grouped queries, scaled rope, a head of its own.
DESCRIPTION = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 520,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "torch_dtype": "float32",
}


def write_folder(directory, files=2):
    """A whole Hugging Face folder: Llama, two files and an index, a byte-level tokenizer."""
    gpt2(directory)
    write_files(directory, random_tensors(WHOLE), files)
    (directory / "config.json").write_text(json.dumps(DESCRIPTION))
    return directory
