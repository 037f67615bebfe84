"""Teachers give the logits of the model they were loaded from, or say what is wrong."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minillm.core.checkpoint import Checkpointer, write_model_description
from minillm.core.errors import UserError
from minillm.core.sharding import MeshConfig, make_mesh
from minillm.data.tokenizer import BPETokenizer
from minillm.teachers import load_teacher
from tests.tolerances import TOLERANCES


@pytest.fixture(scope="module")
def tokenizer():
    texts = [f"Problem: {a} + {b} = {a + b}. It is so." for a in range(9) for b in range(9)]
    return BPETokenizer(300, only_seen_commands=True).train(texts)


@pytest.fixture(scope="module")
def mock(tokenizer):
    return load_teacher("mock", vocab_size=tokenizer.vocab_size)


@pytest.fixture(scope="module")
def model(tokenizer):
    """Weights to save; the mock's shapes, so that nothing is compiled for them alone."""
    return load_teacher("mock", vocab_size=tokenizer.vocab_size, seed=7).model


def save(directory, model, tokenizer, step=3):
    params = nnx.to_pure_dict(nnx.state(model))
    checkpointer = Checkpointer(directory)
    checkpointer.save(
        step, params=params, optimizer={"count": jnp.zeros(())}, progress={"step": step}
    )
    checkpointer.close()
    write_model_description(directory, model.config.to_dict())
    tokenizer.save(directory)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model, tokenizer):
    directory = tmp_path_factory.mktemp("teacher")
    save(directory, model, tokenizer)
    return directory


def draw(seed=0):
    """Two rows of two documents each; the second row ends in padding."""
    tokens = np.random.default_rng(seed).integers(4, 290, size=(2, 10)).astype(np.int32)
    segments = np.array([[1] * 4 + [2] * 6, [1] * 5 + [2] * 3 + [0] * 2], np.int32)
    positions = np.array([[*range(4), *range(6)], [*range(5), *range(3), 0, 1]], np.int32)
    return tokens, segments, positions


def test_mock_is_the_same_every_time_and_another_with_another_seed(mock, tokenizer):
    again = load_teacher("mock", vocab_size=tokenizer.vocab_size)
    other = load_teacher("mock", vocab_size=tokenizer.vocab_size, seed=1)
    assert again.fingerprint == mock.fingerprint != other.fingerprint
    assert np.array_equal(again.logits(*draw()), mock.logits(*draw()))
    assert not np.array_equal(other.logits(*draw()), mock.logits(*draw()))
    assert (mock.tokenizer, mock.config.vocab_size) == (None, tokenizer.vocab_size)


def test_logits_are_float32_for_every_token_of_the_vocabulary(mock, tokenizer):
    logits = mock.logits(*draw())
    assert (logits.shape, logits.dtype) == ((2, 10, tokenizer.vocab_size), jnp.float32)


def test_segments_and_positions_may_be_left_out_for_one_document(mock):
    tokens, segments, positions = draw()
    ones, counting = np.ones_like(segments), np.broadcast_to(np.arange(10), positions.shape)
    expected = mock.logits(tokens, ones, counting)
    tolerance = TOLERANCES["float32"].logits
    np.testing.assert_allclose(mock.logits(tokens), expected, atol=tolerance)


def test_the_head_on_the_hidden_states_gives_the_logits(mock):
    hidden = mock.hidden_states(*draw())
    assert hidden.shape == (2, 10, mock.config.hidden_size)
    tolerance = TOLERANCES["float32"].logits
    np.testing.assert_allclose(mock.model.logits(hidden), mock.logits(*draw()), atol=tolerance)


def test_a_document_gets_the_same_logits_packed_and_alone(mock):
    tokens, segments, positions = draw()
    packed = mock.logits(tokens, segments, positions)[0, 4:]
    # The second document of the first row moved to the front, padding after it.
    moved = [np.roll(x, -4, axis=1) for x in (tokens, segments, positions)]
    moved[1][0, 6:] = 0
    alone = mock.logits(*moved)[0, :6]
    np.testing.assert_allclose(packed, alone, atol=TOLERANCES["float32"].logits)
    mixed = mock.logits(tokens, np.ones_like(segments), positions)[0, 4:]
    assert np.abs(mixed - alone).max() > 100 * TOLERANCES["float32"].logits


def test_mock_without_a_vocabulary_says_what_to_give():
    with pytest.raises(UserError, match="vocab_size: got none"):
        load_teacher("mock")


def test_a_checkpoint_gives_the_logits_of_the_model_that_was_saved(folder, model, tokenizer):
    teacher = load_teacher(folder)
    tokens, segments, positions = draw()
    run = nnx.jit(lambda model: model(tokens, segment_ids=segments, positions=positions))
    expected, got = run(model), teacher.logits(tokens, segments, positions)
    np.testing.assert_allclose(got, expected, atol=TOLERANCES["float32"].logits)
    assert teacher.config == model.config
    assert teacher.tokenizer.fingerprint == tokenizer.fingerprint


def test_the_fingerprint_follows_the_weights_and_not_the_folder(tmp_path, folder, model, tokenizer):
    save(tmp_path / "same", model, tokenizer, step=9)
    assert load_teacher(tmp_path / "same").fingerprint == load_teacher(folder).fingerprint
    changed = nnx.clone(model)
    scale = changed.final_norm.scale
    scale[...] = scale[...].at[0].add(1e-3)
    save(tmp_path / "changed", changed, tokenizer)
    assert load_teacher(tmp_path / "changed").fingerprint != load_teacher(folder).fingerprint


def test_weights_go_where_the_mesh_says(folder):
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1))
    teacher = load_teacher(folder, mesh=mesh)
    for leaf in jax.tree.leaves(nnx.state(teacher.model)):
        assert leaf.sharding.mesh == mesh


def test_a_vocabulary_smaller_than_the_rows_is_refused(folder, tokenizer):
    size = tokenizer.vocab_size
    assert load_teacher(folder, vocab_size=size)
    with pytest.raises(UserError, match=rf"{size} tokens; wanted at least {size + 1}"):
        load_teacher(folder, vocab_size=size + 1)


def described_as(folder, target, change):
    """A copy of the model folder with another description."""
    shutil.copytree(folder, target)
    path = target / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    return target


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("nothing", "no such folder"),
        ("notes.txt", "a folder that is no model"),
        ("config.json", "no weights"),
        ("model_index.json", "a pipeline with no text encoder"),
    ],
)
def test_what_is_no_model_is_named(tmp_path, file, message):
    directory = tmp_path / "teacher"
    if file != "nothing":
        directory.mkdir()
        (directory / file).write_text("{}")
    with pytest.raises(UserError, match=message):
        load_teacher(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_sise": 16}, "did you mean .*hidden_size"),
        ({"num_heads": 3, "head_dim": 7}, "head_dim"),
        ({"tie_embeddings": False}, "parameter .*head"),
        ({"qk_norm": True}, "parameter .*key_scale.*none in the checkpoint"),
        ({"vocab_size": 99}, "wanted 99, the vocabulary of the model beside it"),
    ],
)
def test_a_description_that_does_not_fit_the_weights_is_refused(tmp_path, folder, change, message):
    with pytest.raises(UserError, match=message):
        load_teacher(described_as(folder, tmp_path / "teacher", change))


def test_a_folder_that_lacks_a_part_is_refused(tmp_path, folder):
    directory = shutil.copytree(folder, tmp_path / "teacher")
    (directory / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        load_teacher(directory)
    directory = shutil.copytree(folder, tmp_path / "another")
    shutil.rmtree(directory / "checkpoints")
    with pytest.raises(UserError, match="no finished checkpoint"):
        load_teacher(directory)
