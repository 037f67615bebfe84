"""A language model is found wherever its tensors stand: beside a vision tower, with a prefix or
without, with a head or without."""

import fnmatch

import jax
import numpy as np
import pytest

from minillm.teachers.huggingface_config import describe
from tests.model.models import forward
from tests.teachers.family_cases import SMALL
from tests.teachers.reference import assembled, names_read, random_model, saved
from tests.tolerances import TOLERANCES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.reference

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
IMAGE_TOKENS = {"image_token_index": 38}
PAIRS = {
    "Mistral3": {
        "text_config": {"model_type": "mistral", **SMALL, "sliding_window": 7},
        "vision_config": {"model_type": "pixtral", **TOWER, "head_dim": 8},
        "tie_word_embeddings": False,
        **IMAGE_TOKENS,
    },
    "Gemma3": {
        "text_config": {**SMALL, "head_dim": 8, "sliding_window": 7},
        "vision_config": TOWER,
        "mm_tokens_per_image": 4,
        "boi_token_index": 39,
        "eoi_token_index": 40,
        **IMAGE_TOKENS,
    },
}


def pair(name):
    config = getattr(transformers, f"{name}Config")(**PAIRS[name], attn_implementation="eager")
    return random_model(getattr(transformers, f"{name}ForConditionalGeneration"), config)


@pytest.mark.parametrize("name", PAIRS)
def test_the_language_model_beside_a_vision_tower_is_read_and_nothing_else(name, tmp_path):
    theirs = pair(name)
    description, tensors = saved(theirs, tmp_path)
    unread = tensors.keys() - names_read(description)
    ignored = {
        tensor for tensor in unread for rule in description.ignored if fnmatch.fnmatch(tensor, rule)
    }
    assert names_read(description) <= tensors.keys()
    assert unread == ignored
    assert {tensor.split(".")[0] for tensor in unread} == {"vision_tower", "multi_modal_projector"}

    tokens = np.random.default_rng(0).integers(0, 37, (2, 24))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    assert np.abs(expected).max() > 1
    logits = forward(assembled(description, tensors), tokens)
    np.testing.assert_allclose(logits, expected, atol=TOLERANCES["float32"].logits)


def moved(tensors, old, new):
    return {name.replace(old, new, 1): tensor for name, tensor in tensors.items()}


def same_weights(description, tensors, other_description, other_tensors):
    weights = [
        jax.tree.leaves(assembled(*each))
        for each in ((description, tensors), (other_description, other_tensors))
    ]
    return all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("name", PAIRS)
def test_every_prefix_that_a_pair_was_saved_under_leads_to_the_same_weights(name, tmp_path):
    description, tensors = saved(pair(name), tmp_path)
    newer = moved(tensors, "language_model.model.", "model.language_model.")
    newer = moved(newer, "language_model.lm_head.", "lm_head.")
    newer = moved(newer, "vision_tower.", "model.vision_tower.")
    newer = moved(newer, "multi_modal_projector.", "model.multi_modal_projector.")
    assert newer.keys() != tensors.keys()
    for other in (newer, moved(moved(newer, "language_model.", ""), "model.model.", "model.")):
        found = describe(tmp_path, other.keys())
        assert found.config == description.config
        assert names_read(found) <= other.keys()
        assert same_weights(description, tensors, found, other)
        unread = other.keys() - names_read(found)
        assert all(any(fnmatch.fnmatch(t, rule) for rule in found.ignored) for t in unread)


def test_a_model_saved_without_its_head_is_found_where_the_embedding_is_the_head(tmp_path):
    fields = {**SMALL, "tie_word_embeddings": True}
    whole = random_model(transformers.LlamaForCausalLM, transformers.LlamaConfig(**fields))
    description, tensors = saved(whole, tmp_path / "whole")
    bare_description, bare_tensors = saved(whole.model, tmp_path / "bare")
    assert names_read(bare_description) == bare_tensors.keys()
    assert "embed_tokens.weight" in bare_tensors
    assert same_weights(description, tensors, bare_description, bare_tensors)


def test_tables_of_old_files_and_nothing_else_are_ignored():
    values = {"model_type": "llama", **SMALL}
    rules = describe(values, ()).ignored
    old = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert any(fnmatch.fnmatch(old, rule) for rule in rules)
    for name in ("lm_head.weight", "vision_tower.x.weight", "model.layers.0.self_attn.q_proj.bias"):
        assert not any(fnmatch.fnmatch(name, rule) for rule in rules)
