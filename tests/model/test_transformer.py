import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minillm.core import axes
from minillm.core.sharding import MeshConfig, make_mesh
from minillm.model.rope import Rope
from minillm.model.transformer import Transformer, param_axes
from tests.model.models import SMALL, build, forward
from tests.tolerances import TOLERANCES

F32, BF16 = TOLERANCES["float32"], TOLERANCES["bfloat16"]


# The smallest model that still scans.
TWO_LAYERS = dataclasses.replace(SMALL, windows=(5,), num_layers=2)


def loss_and_gradient(model, tokens):
    graph, weights = nnx.split(model)

    def loss(weights):
        logits = nnx.merge(graph, weights)(tokens)
        return jnp.mean(jax.nn.logsumexp(logits, -1) ** 2)

    return jax.jit(jax.value_and_grad(loss))(weights)


@pytest.fixture(scope="module")
def reference_gradient(tokens):
    return loss_and_gradient(build(TWO_LAYERS), tokens)


def test_logits_are_float32_and_capped(full_logits):
    assert full_logits.dtype == jnp.float32
    assert full_logits.shape == (3, 18, SMALL.vocab_size)
    assert float(jnp.abs(full_logits).max()) < SMALL.logit_soft_cap


def test_fresh_logits_have_unit_size():
    config = dataclasses.replace(
        SMALL, hidden_size=64, vocab_size=200, num_layers=2, windows=(None,), logit_soft_cap=None
    )
    model = nnx.jit(lambda: Transformer(config, rngs=nnx.Rngs(0)))()
    logits = forward(model, jnp.arange(24)[None])
    assert 0.5 < float(jnp.std(logits)) < 2.0


def test_every_parameter_of_every_layer_gets_a_finite_gradient(small_model, tokens):
    _, gradient = loss_and_gradient(small_model, tokens)
    leaves = nnx.to_flat_state(gradient)
    assert len(leaves) == 12
    for path, leaf in leaves:
        assert bool(jnp.all(jnp.isfinite(leaf[...]))), path
        # Each layer's slice of a stack, not only the stack as a whole.
        slices = leaf[...] if path[0] == "blocks" else leaf[...][None]
        assert all(bool(jnp.any(part != 0)) for part in slices), path


@pytest.mark.parametrize(
    "changes", [{"remat": "dots"}, {"remat": "full"}, {"scan_layers": False}], ids=str
)
def test_neither_remat_nor_unrolling_changes_the_gradient(changes, reference_gradient, tokens):
    model = build(dataclasses.replace(TWO_LAYERS, **changes))
    loss, gradient = loss_and_gradient(model, tokens)
    np.testing.assert_allclose(loss, reference_gradient[0], rtol=F32.output)
    for got, expected in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(reference_gradient[1]), strict=True
    ):
        scale = max(1.0, float(jnp.abs(expected).max()))
        np.testing.assert_allclose(got, expected, atol=F32.gradient * scale)


def test_packed_segments_equal_separate_documents(small_model, tokens, full_logits):
    # One row: the first 10 tokens of row 0, the first 7 of row 1, one of padding.
    row = jnp.concatenate([tokens[0, :10], tokens[1, :7], jnp.zeros(1, jnp.int32)])[None]
    segments = jnp.array([[1] * 10 + [2] * 7 + [0]])
    restarting = jnp.concatenate([jnp.arange(10), jnp.arange(7), jnp.zeros(1, jnp.int32)])[None]
    run = nnx.jit(lambda model, positions: model(row, positions=positions, segment_ids=segments))
    for positions in (restarting, jnp.arange(18)[None]):
        logits = run(small_model, positions)
        np.testing.assert_allclose(logits[0, :10], full_logits[0, :10], atol=F32.logits)
        np.testing.assert_allclose(logits[0, 10:17], full_logits[1, :7], atol=F32.logits)
        assert bool(jnp.all(jnp.isfinite(logits)))


def test_a_token_reaches_as_far_as_the_windows_of_all_layers(tokens):
    config = dataclasses.replace(SMALL, windows=(3,), num_layers=2)
    model = build(config)
    changed = tokens.at[:, 4].set((tokens[:, 4] + 1) % config.vocab_size)
    differs = np.any(np.asarray(forward(model, tokens) != forward(model, changed)), axis=(0, 2))
    # Two layers, each looking back over 3 - 1 tokens before its own.
    np.testing.assert_array_equal(np.flatnonzero(differs), [4, 5, 6, 7, 8])


def test_layer_states_go_from_the_embedding_to_what_the_last_norm_reads(small_model, tokens):
    states, hidden = nnx.jit(lambda model: (model.layer_states(tokens), model.hidden(tokens)))(
        small_model
    )
    assert states.shape == (SMALL.num_layers + 1, 3, 18, SMALL.hidden_size)
    np.testing.assert_array_equal(states[0], small_model.embedding[...][tokens])
    np.testing.assert_allclose(small_model.final_norm(states[-1]), hidden, atol=F32.logits)


def test_the_factor_on_embeddings_is_rounded_to_the_compute_dtype(tokens):
    config = dataclasses.replace(TWO_LAYERS, compute_dtype="bfloat16", embedding_scale=6.928)
    model = build(config)
    states = nnx.jit(lambda model: model.layer_states(tokens))(model)
    # 6.928 is 6.9375 in bfloat16, and the product is rounded once more.
    table = np.asarray(model.embedding[...].astype(jnp.bfloat16), np.float64)
    expected = (table[tokens] * 6.9375).astype(jnp.bfloat16)
    np.testing.assert_array_equal(states[0], expected)


def test_bfloat16_compute_is_close_and_keeps_float32_logits(tokens, full_logits):
    logits = forward(build(dataclasses.replace(SMALL, compute_dtype="bfloat16")), tokens)
    assert logits.dtype == jnp.float32
    scale = float(jnp.abs(full_logits).max())
    np.testing.assert_allclose(logits, full_logits, atol=BF16.logits * scale)


def test_program_size_does_not_grow_with_depth(tokens):
    def equations(layers, windows, ropes=None):
        config = dataclasses.replace(SMALL, num_layers=layers, windows=windows, ropes=ropes)
        graph, weights = nnx.split(build(config))
        program = jax.make_jaxpr(jax.grad(lambda w: nnx.merge(graph, w)(tokens).sum()))
        return str(program(weights)).count(" = ")

    assert equations(2, (4,)) == equations(24, (4,))
    assert equations(4, (4, None)) == equations(24, (4, None))
    ropes = (Rope(100.0), None)
    assert equations(4, (4, None), ropes) == equations(24, (4, None), ropes)


def test_a_token_outside_the_vocabulary_gives_nan_not_another_token(small_model):
    logits = forward(small_model, jnp.full((3, 18), SMALL.vocab_size))
    assert bool(jnp.all(jnp.isnan(logits)))


def test_param_axes_name_every_dimension(small_model):
    state = nnx.state(small_model)
    shapes = jax.tree.map(jnp.shape, nnx.to_pure_dict(state))
    named = param_axes(state)
    jax.tree.map(
        lambda names, shape: len(names) == len(shape) or pytest.fail(f"{names} for {shape}"),
        named,
        shapes,
        is_leaf=lambda value: isinstance(value, tuple),
    )
    assert named["embedding"] == (axes.VOCAB, axes.EMBED)
    assert named["blocks"]["mlp"]["down"] == (axes.LAYERS, axes.MLP, axes.EMBED)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 (simulated) devices")
def test_logits_on_a_mesh_equal_logits_on_one_device(small_model, tokens, full_logits):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    batch = jnp.concatenate([tokens, tokens[:1]])
    with jax.set_mesh(mesh):
        logits = forward(small_model, batch)
    np.testing.assert_allclose(logits[:3], full_logits, atol=F32.logits)
