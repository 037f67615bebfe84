"""Random changes to the files of a Hugging Face folder; the same for the same seed."""

import json
import random

KINDS = ("config", "config text", "weights", "index", "tokenizer")
# Values of other types, out of range, and strings that mean something somewhere.
_ODD = [
    None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 10**12, 10**400, 0.0, 0.5, -1e-5, 1e30, 1e300,
    float("nan"), float("inf"), "", "16", "silu", "gelu", "gelu_pytorch_tanh", "relu", "swish",
    "linear", "dynamic", "yarn", "default", "llama3", "longrope", "mistral", "qwen2", "gemma2",
    "bfloat16", "sliding_attention", [], [16], [None], [[]], {}, {"rope_type": "linear"},
    {"rope_type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 4.0}, "\x00", "é" * 300,
]  # fmt: skip
_NEW = (
    "sliding_window", "layer_types", "rope_parameters", "attention_multiplier", "qk_norm",
    "quantization_config", "partial_rotary_factor", "final_logit_softcapping", "logit_scale",
    "num_experts", "auto_map", "use_sliding_window", "max_window_layers", "pretraining_tp",
)  # fmt: skip
_DTYPES = ("F64", "F32", "F16", "BF16", "I32", "U8", "F8_E4M3", "F33", "f32", 7, None)

# Other models for which the same weights do.
_LIKELY = (
    {"rope_theta": 77.0}, {"rms_norm_eps": 0.1}, {"rms_norm_eps": 1.0}, {"rope_scaling": None},
    {"hidden_act": "gelu"}, {"hidden_act": "gelu_pytorch_tanh"}, {"hidden_act": "gelu_new"},
    {"hidden_act": "relu"}, {"hidden_act": "swish"}, {"hidden_act": "quick_gelu"},
    {"hidden_act": "relu2"}, {"hidden_act": "tanh"}, {"tie_word_embeddings": True},
    {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
    {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4},
    {"rope_scaling": {"type": "linear", "factor": 2}},
    {"rope_scaling": {"rope_type": "linear", "factor": 0.5}},
    {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 4}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}, "rope_scaling": None},
    {"rope_scaling": {"rope_type": "default", "rope_theta": 9.0}, "rope_theta": 90.0},
    {"model_type": "mistral", "sliding_window": 5}, {"model_type": "mistral"},
    {"sliding_window": 5}, {"partial_rotary_factor": 0.5}, {"pretraining_tp": 2},
    {"max_position_embeddings": 6}, {"original_max_position_embeddings": 6},
    {"attention_bias": None}, {"head_dim": None, "hidden_size": 16}, {"torch_dtype": "bfloat16"},
)  # fmt: skip


def mutate(folder, seed):
    """Change one file in one to three places; what was done, for the test's report."""
    chance = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    if kind == "config":
        return kind, _json(folder / "config.json", chance)
    if kind == "config text":
        return kind, _bytes(folder / "config.json", chance)
    if kind == "index":
        path = folder / "model.safetensors.index.json"
        return kind, chance.choice([_json, _json, _bytes])(path, chance)
    if kind == "tokenizer":
        path = folder / chance.choice(["tokenizer.json", "tokenizer_config.json"])
        return kind, chance.choice([_json, _json, _bytes])(path, chance)
    path = folder / f"model-{chance.choice([1, 2]):05}-of-00002.safetensors"
    return kind, chance.choice([_header, _header, _bytes])(path, chance)


def _json(path, chance):
    root = json.loads(path.read_text())
    if path.name == "config.json" and chance.random() < 0.5:
        likely = chance.choice(_LIKELY)
        path.write_text(json.dumps(root | likely))
        return f"{path.name}: {likely}"
    done = [_change(root, chance) for _ in range(chance.choice([1, 1, 1, 2, 3]))]
    path.write_text(json.dumps(root))
    return f"{path.name}: {'; '.join(done)}"


def _change(root, chance):
    """One entry somewhere in the tree deleted, retyped, perturbed or added."""
    at, place = root, ""
    while True:
        keys = list(at) if isinstance(at, dict) else range(len(at))
        if not keys:
            return "nothing"
        key = chance.choice(keys)
        place += f"/{key}"[:40]
        if isinstance(at[key], (dict, list)) and at[key] and chance.random() < 0.85:
            at = at[key]
            continue
        break
    value = at[key]
    way = chance.choice(["delete", "odd", "perturb", "perturb", "new"])
    if way == "delete":
        del at[key]
    elif way == "new" and at is root and isinstance(at, dict):
        key = chance.choice(_NEW)
        at[key] = chance.choice(_ODD)
        place = f"/{key}"
    elif way == "perturb" and isinstance(value, bool):
        at[key] = not value
    elif way == "perturb" and isinstance(value, int | float):
        at[key] = chance.choice([value + 1, value - 1, value * 2, value / 2, -value, str(value)])
    elif way == "perturb" and isinstance(value, str) and value:
        cut = chance.randrange(len(value))
        at[key] = chance.choice([value[:cut], value.upper(), value + value[cut:], value[::-1]])
    else:
        at[key] = chance.choice(_ODD)
    return f"{place} {way} -> {at.get(key, 'gone') if isinstance(at, dict) else '…'!r:.60}"


def _bytes(path, chance):
    """Cut, lengthen, overwrite, double or empty."""
    data = bytearray(path.read_bytes())
    place = chance.randrange(len(data))
    way = chance.choice(["cut", "append", "flip", "flip", "zero", "double", "empty", "noise"])
    if way == "cut":
        del data[place:]
    elif way == "append":
        data += chance.randbytes(chance.choice([1, 8, 64]))
    elif way == "flip":
        for _ in range(chance.choice([1, 4])):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif way == "zero":
        data[place : place + 16] = bytes(len(data[place : place + 16]))
    elif way == "double":
        data = data * 2
    elif way == "empty":
        data.clear()
    else:
        data = bytearray(chance.randbytes(200))
    path.write_bytes(data)
    return f"{path.name}: {way} at {place}"


def _header(path, chance):
    """A safetensors file whose header says something else of its tensors."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    name, other = chance.sample(sorted(header), 2)
    way = chance.choice(
        ["swap", "dtype", "shape", "transpose", "offsets", "rename", "drop", "length", "more"]
    )
    if way == "swap":
        offsets = header[name]["data_offsets"]
        header[name]["data_offsets"] = header[other]["data_offsets"]
        header[other]["data_offsets"] = offsets
    elif way == "dtype":
        header[name]["dtype"] = chance.choice(_DTYPES)
    elif way == "shape":
        header[name]["shape"] = chance.choice([[], [0], [-1], [2**40, 2**40], [1.5], None, "16"])
    elif way == "transpose":
        header[name]["shape"].reverse()
    elif way == "offsets":
        header[name]["data_offsets"] = chance.choice([[0, 0], [-4, 4], [0, 10**15], [8, 4], 3])
    elif way == "rename":
        header[name + chance.choice(["", "x", ".bias"])] = header.pop(name)
        header[other.replace("layers.0", "layers.1")] = header.pop(other)
    elif way == "drop":
        del header[name]
    elif way == "more":
        header[name]["extra"] = 1
    text = json.dumps(header).encode()
    stated = len(text) if way != "length" else chance.choice([0, 1, length * 2, 2**40, 2**63])
    path.write_bytes(stated.to_bytes(8, "little") + text + data[8 + length :])
    return f"{path.name}: {way} of {name} ({other})"
