"""Rows and targets come together by key, or not at all."""

import pickle

import jax.numpy as jnp
import numpy as np
import pytest

from minillm import losses
from minillm.core.errors import UserError
from minillm.data.loader import batches
from minillm.store.reader import JoinedRows, StoreReader
from tests.store import toy


def test_a_joined_row_has_the_arrays_of_both_sides(rows, store):
    joined = JoinedRows(rows, [store])
    assert len(joined) == len(rows)
    for index in (0, len(rows) - 1):
        row = joined[index]
        for name, array in rows[index].items():
            assert np.array_equal(row[name], array)
        assert row["candidate_ids"].shape == row["candidate_log_probs"].shape == (32, 6)
        assert row["tail_log_prob"].shape == (32,)
        assert np.array_equal(row["tail_log_prob"], store[index].targets.tail_log_prob)


def test_a_store_of_other_rows_is_refused_and_both_sides_are_named(other_rows, store):
    with pytest.raises(UserError) as caught:
        JoinedRows(other_rows, [store])
    for side in (store.directory, other_rows.directory, store.manifest.inputs["rows"]):
        assert str(side) in str(caught.value)
    assert other_rows.fingerprint in str(caught.value)


def test_a_store_of_another_tokenizer_is_refused(rows, store):
    class Relabelled:
        directory = rows.directory
        fingerprint = rows.fingerprint
        manifest = type("Manifest", (), {"inputs": {"tokenizer": "of the student"}})

    with pytest.raises(UserError, match=r"made from tokenizer .* wanted tokenizer of the student"):
        JoinedRows(Relabelled(), [store])


def test_a_record_of_another_row_is_refused_by_its_digest(rows, store):
    class Changed:
        directory = rows.directory
        fingerprint = rows.fingerprint
        manifest = rows.manifest

        def __getitem__(self, index):
            return {**rows[index], "digest": np.zeros(16, np.uint8)}

    with pytest.raises(UserError, match="row 2: got targets for the row with digest"):
        JoinedRows(Changed(), [store])[2]


def test_no_store_is_an_error(rows):
    with pytest.raises(UserError, match="teacher_store"):
        JoinedRows(rows, [])


def test_several_stores_are_stacked_and_the_smaller_ones_slots_are_unused(
    tmp_path, rows, store, vocab_size
):
    toy.write(tmp_path, rows, vocab_size, candidates=4)
    row = JoinedRows(rows, [store, StoreReader(tmp_path)])[1]
    assert row["candidate_ids"].shape == (32, 2, 6)
    assert row["tail_log_prob"].shape == (32, 2)
    assert np.all(row["candidate_ids"][:, 1, 4:] == -1)
    assert np.all(np.isneginf(row["candidate_log_probs"][:, 1, 4:]))
    assert np.array_equal(row["candidate_ids"][:, 0, :4], row["candidate_ids"][:, 1, :4])


def test_a_join_survives_pickling_and_names_its_content(tmp_path, rows, store, vocab_size):
    joined = JoinedRows(rows, [store])
    copy = pickle.loads(pickle.dumps(joined))
    assert copy.fingerprint == joined.fingerprint
    assert np.array_equal(copy[4]["candidate_ids"], joined[4]["candidate_ids"])
    toy.write(tmp_path, rows, vocab_size, candidates=4)
    assert JoinedRows(rows, [StoreReader(tmp_path)]).fingerprint != joined.fingerprint


def test_a_batch_from_the_loader_gives_a_student_equal_to_the_teacher_no_loss(
    rows, store, vocab_size
):
    batch = next(iter(batches(JoinedRows(rows, [store]), batch_size=4, seed=0, epochs=1)))
    everything = jnp.ones_like(batch["loss_mask"])
    _, weights = losses.next_token_targets(batch["tokens"], batch["segment_ids"], everything)
    names = ("candidate_ids", "candidate_log_probs", "tail_log_prob")
    targets = [jnp.asarray(batch[name]) for name in names]
    teacher = jnp.asarray(toy.log_probs(batch, vocab_size))
    mass = jnp.exp(targets[1]).sum(-1) + jnp.exp(targets[2])
    np.testing.assert_allclose(np.asarray(mass)[np.asarray(weights) > 0], 1, atol=5e-3)
    assert abs(float(losses.distillation_kl(teacher, *targets, weights).mean())) < 1e-3
    wrong = jnp.roll(teacher, 1, axis=1)
    assert float(losses.distillation_kl(wrong, *targets, weights).mean()) > 1
    assert float(losses.agreement(teacher, targets[0][..., 0], weights).mean()) == 1.0
