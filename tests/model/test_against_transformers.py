"""The four families a student can be exported as, against the library that defined them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minillm.model.config import ModelConfig
from tests.model.models import bind, forward, shapes_of
from tests.tolerances import TOLERANCES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.reference

BASE = ModelConfig(
    vocab_size=41,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    norm_eps=1e-6,
    rope_theta=5000.0,
    max_length=64,
)
FAMILIES = {
    "Llama": (dataclasses.replace(BASE, tie_embeddings=False), {}),
    "Llama tied": (dataclasses.replace(BASE, num_kv_heads=1), {}),
    "Mistral": (
        dataclasses.replace(BASE, windows=(7,), tie_embeddings=False, head_dim=12),
        {"sliding_window": 7, "head_dim": 12},
    ),
    "Qwen2": (dataclasses.replace(BASE, attention_bias=True), {}),
    "Qwen2 local and global": (
        dataclasses.replace(BASE, attention_bias=True, windows=(7, None), num_layers=3),
        {
            "use_sliding_window": True,
            "sliding_window": 7,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "Qwen3": (
        dataclasses.replace(BASE, qk_norm=True, head_dim=12, tie_embeddings=False),
        {"head_dim": 12},
    ),
}


def reference_model(family, config, extra):
    name = family.split()[0]
    settings = getattr(transformers, f"{name}Config")(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        intermediate_size=config.intermediate_size,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        max_position_embeddings=config.max_length,
        tie_word_embeddings=config.tie_embeddings,
        attn_implementation="eager",
        **extra,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(settings).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norm scales and biases too: their defaults of 1 and 0 would hide a wrong place.
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def weights_of(model, config):
    """Their weights in our layout: fused by key/value head, gate with up, layers stacked."""
    theirs = {name: value.detach().numpy() for name, value in model.named_parameters()}
    width, heads, kv_heads = config.hidden_size, config.num_heads, config.num_kv_heads

    def by_head(name, count):
        value = theirs[name]
        return value.reshape(kv_heads, count, config.head_dim, *value.shape[1:])

    def layer(index):
        prefix = f"model.layers.{index}."
        projections = [
            (f"{prefix}self_attn.{which}_proj", count)
            for which, count in (("q", config.groups), ("k", 1), ("v", 1))
        ]
        fused = np.concatenate([by_head(f"{p}.weight", n) for p, n in projections], axis=1)
        output = theirs[f"{prefix}self_attn.o_proj.weight"].T
        attention = {
            "qkv": np.moveaxis(fused, -1, 0),
            "output": output.reshape(heads, config.head_dim, width),
        }
        if config.attention_bias:
            biases = [by_head(f"{p}.bias", n) for p, n in projections]
            attention["qkv_bias"] = np.concatenate(biases, axis=1)
        if config.qk_norm:
            attention["query_scale"] = theirs[f"{prefix}self_attn.q_norm.weight"]
            attention["key_scale"] = theirs[f"{prefix}self_attn.k_norm.weight"]
        gate, up = (theirs[f"{prefix}mlp.{which}_proj.weight"].T for which in ("gate", "up"))
        return {
            "attention_norm": {"scale": theirs[f"{prefix}input_layernorm.weight"]},
            "attention": attention,
            "mlp_norm": {"scale": theirs[f"{prefix}post_attention_layernorm.weight"]},
            "mlp": {
                "gate_up": np.stack([gate, up], axis=1),
                "down": theirs[f"{prefix}mlp.down_proj.weight"].T,
            },
        }

    layers = [layer(index) for index in range(config.num_layers)]
    ours = {
        "embedding": theirs["model.embed_tokens.weight"],
        "blocks": jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *layers),
        "final_norm": {"scale": theirs["model.norm.weight"]},
    }
    return ours if config.tie_embeddings else {**ours, "head": theirs["lm_head.weight"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(family):
    config, extra = FAMILIES[family]
    theirs = reference_model(family, config, extra)
    weights = jax.tree.map(jnp.asarray, weights_of(theirs, config))
    assert jax.tree.map(jnp.shape, weights) == jax.tree.map(jnp.shape, shapes_of(config))

    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 24))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    logits = forward(bind(config, weights), jnp.asarray(tokens))
    assert float(np.abs(expected).max()) > 1
    np.testing.assert_allclose(logits, expected, atol=TOLERANCES["float32"].logits)
