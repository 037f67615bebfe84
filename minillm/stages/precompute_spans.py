"""A teacher of another tokenizer and rows in, a store of its likelihoods of spans out."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from minillm.core.errors import UserError
from minillm.core.manifest import Manifest
from minillm.core.sharding import shard_batch
from minillm.data.alignment import AlignedTokens, align_row
from minillm.data.load_tokenizer import load_tokenizer
from minillm.data.rows import RowsReader
from minillm.data.tokenizer_protocol import Tokenizer
from minillm.data.vocabulary import Verdict, compare
from minillm.store import SpanTargets, span_targets, write_span_store
from minillm.store.schema import SPAN_SCHEMA
from minillm.teachers import MOCK, Teacher

# Rows of the teacher's tokens are as long as a batch needs, in steps that keep programs few.
_LENGTH_STEP = 64
# Weights that did best in `launch/benchmark.py cross_tokenizer`.
_WEIGHTS = {"cross_entropy": 1.0, "distillation": 0.0, "span_likelihoods": 3.0}


class Tokenizers(NamedTuple):
    """The two that read a text."""

    rows: Tokenizer
    teacher: Tokenizer


def tokenizers_of_spans(
    targets: str, teacher: str, rows: RowsReader, tokenizer_path: epath.PathLike | None
) -> Tokenizers | None:
    """The tokenizers to align, where the targets are to be spans; None where they are not.

    Args:
        targets: as in `PrecomputeConfig`. By "auto" they are spans where the rows' tokenizer is
            given and the teacher's gives an id another meaning.

    Raises:
        UserError: spans are asked for, and the rows' tokenizer is not given.
    """
    if targets == "candidates" or (targets == "auto" and teacher == MOCK):
        return None
    wanted = rows.manifest.inputs["tokenizer"]
    own = None if teacher == MOCK else load_tokenizer(teacher)
    made_with = own if tokenizer_path is None else load_tokenizer(tokenizer_path)
    if made_with is None or made_with.fingerprint != wanted:
        if targets == "auto":
            return None
        raise UserError(
            field="tokenizer_path",
            got=f"{tokenizer_path}, another tokenizer than the rows'",
            wanted=f"the tokenizer of {rows.directory} (fingerprint {wanted[:12]})",
            fix="give the tokenizer that the rows were packed with",
        )
    found = Tokenizers(made_with, own or made_with)
    if targets == "spans":
        return found
    verdict = compare(found.rows, found.teacher, found.teacher.vocab_size)
    if verdict.verdict is not Verdict.DIFFERENT:
        return None
    logging.warning(
        "%s has another tokenizer than the rows (%s): its targets are likelihoods of spans",
        teacher,
        verdict.differences[0],
    )
    return found


def precompute_spans(
    directory: epath.PathLike,
    rows: RowsReader,
    teacher: Teacher,
    tokenizers: Tokenizers,
    *,
    mesh: Mesh,
    batch_size: int,
    rows_per_shard: int,
    description: str,
) -> Manifest:
    """Write the teacher's likelihoods of every span of every row, or go on writing them.

    The teacher reads each document in its own tokens, packed as the rows are. Of a document
    longer than its `max_length` it reads the beginning, and what is left is in no span.
    """

    def score(batch: Mapping[str, np.ndarray]) -> SpanTargets:
        aligned = [
            align_row(
                {name: array[index] for name, array in batch.items()},
                *tokenizers,
                max_length=teacher.config.max_length,
            )
            for index in range(len(batch["tokens"]))
        ]
        with jax.set_mesh(mesh):
            theirs = shard_batch(packed(aligned), mesh)
            logits = teacher.logits(**theirs)[..., : tokenizers.teacher.vocab_size]
            found = np.asarray(log_likelihoods(logits, theirs["tokens"]))
        length = batch["tokens"].shape[1]
        targets = [
            span_targets(one.spans, values, length)
            for one, values in zip(aligned, found, strict=True)
        ]
        return SpanTargets(*(np.stack(part) for part in zip(*targets, strict=True)))

    return write_span_store(
        directory,
        rows,
        score,
        teacher_fingerprint=teacher.fingerprint,
        teacher_tokenizer_fingerprint=tokenizers.teacher.fingerprint,
        batch_size=batch_size,
        rows_per_shard=rows_per_shard,
        description=description,
    )


def packed(aligned: Sequence[AlignedTokens]) -> dict[str, np.ndarray]:
    """The teacher's tokens, segment ids and positions as rows of one length, padded with 0."""
    longest = max(len(one.tokens) for one in aligned)
    length = max(_LENGTH_STEP, -(-longest // _LENGTH_STEP) * _LENGTH_STEP)
    return {
        name: np.stack(
            [np.pad(getattr(one, name), (0, length - len(one.tokens))) for one in aligned]
        )
        for name in ("tokens", "segment_ids", "positions")
    }


@jax.jit
def log_likelihoods(
    logits: Float[Array, "B T V"], tokens: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """Of each token, given those before it in its row; 0 for the first. Float32."""
    logits = logits[:, :-1].astype(jnp.float32)
    picked = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.pad(picked - jax.nn.logsumexp(logits, axis=-1), ((0, 0), (1, 0)))


def weights_for(made: Manifest) -> str:
    """What has to stand on knowledge_transfer's command line for a store of this kind."""
    if made.schema != SPAN_SCHEMA:
        return ""
    return "".join(f" --config.run.loss.{name}={value:g}" for name, value in _WEIGHTS.items())
