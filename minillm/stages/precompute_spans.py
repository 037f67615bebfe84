"""A teacher of another tokenizer and rows in, a store of its likelihoods of spans out."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from minillm.core import hosts
from minillm.core.errors import UserError
from minillm.core.manifest import Manifest
from minillm.data.alignment import AlignedTokens, align_row
from minillm.data.load_tokenizer import load_tokenizer
from minillm.data.rows import RowsReader
from minillm.data.tokenizer_protocol import Tokenizer
from minillm.data.vocabulary import Verdict, compare
from minillm.model.config import ModelConfig
from minillm.model.functional import Params
from minillm.model.transformer import Transformer
from minillm.stages.precompute_output import RowsFacts, found_store
from minillm.stages.scoring import (
    INPUTS,
    Batch,
    Scorer,
    by_turns,
    compile_reading,
    placed,
    sizes_that_pay,
    smallest_batch,
)
from minillm.store import SpanStoreConfig, SpanTargets, span_targets, write_span_store
from minillm.store.schema import SPAN_SCHEMA
from minillm.teachers import MOCK, Teacher, describe_teacher

# Rows of the teacher's tokens are as long as a batch needs, in steps that keep programs few.
_LENGTH_STEP = 64
# Those whose students `launch/benchmark.py cross_tokenizer` shows.
_WEIGHTS = {"cross_entropy": 1.0, "distillation": 0.0, "span_likelihoods": 3.0}


class Tokenizers(NamedTuple):
    """The two that read a text."""

    rows: Tokenizer
    teacher: Tokenizer


def tokenizers_of_spans(
    targets: str, teacher: str, rows: RowsFacts, tokenizer_path: epath.PathLike | None
) -> tuple[Tokenizers, tuple[str, ...]] | None:
    """The tokenizers to align, and notes, where the targets are to be spans; else None.

    Args:
        targets: as in `PrecomputeConfig`. By "auto" they are spans where the rows' tokenizer is
            given and the teacher's gives an id another meaning.

    Raises:
        UserError: spans are asked for, and the rows' tokenizer is not given.
    """
    if targets == "candidates" or (targets == "auto" and teacher == MOCK):
        return None
    wanted = rows.tokenizer
    own = None if teacher == MOCK else describe_teacher(teacher)[1]
    made_with = own if tokenizer_path is None else load_tokenizer(tokenizer_path)
    if made_with is None or made_with.fingerprint != wanted:
        if targets == "auto":
            return None
        raise UserError(
            field="tokenizer_path",
            got=f"{tokenizer_path}, another tokenizer than the rows'",
            wanted=f"the tokenizer of {rows.place} (fingerprint {wanted[:12]})",
            fix="give the tokenizer that the rows were packed with",
        )
    found = Tokenizers(made_with, own or made_with)
    if targets == "spans":
        return found, ()
    verdict = compare(found.rows, found.teacher, found.teacher.vocab_size)
    if verdict.verdict is not Verdict.DIFFERENT:
        return None
    note = (
        f"{teacher} has another tokenizer than the rows ({verdict.differences[0]}): "
        "its targets are likelihoods of spans"
    )
    return found, (note,)


def precompute_spans(
    directory: epath.PathLike,
    rows: RowsReader,
    tokenizers: Tokenizers,
    config: ModelConfig,
    load: Callable[[], Teacher],
    *,
    mesh: Mesh,
    batch_size: int | None,
    rows_per_shard: int,
    description: str,
) -> Manifest:
    """Write the teacher's likelihoods of every span of every row, or go on writing them.

    The teacher reads each document in its own tokens, packed as the rows are. Of a document
    longer than its `max_length` it reads the beginning, and what is left is in no span.

    Args:
        config: of the teacher.
        load: loads it, once it is known that a batch fits.
        batch_size: rows at a time over all hosts; None takes as many as pay. Where the teacher's
            tokens make them too long for that, they are read in parts that fit.

    Raises:
        UserError: not even the fewest rows fit.
    """
    size = batch_size or sizes_that_pay(mesh, rows.row_length, len(rows))[0]
    read = SpanReader(config, mesh, tokenizers.teacher.vocab_size, size)
    # How long the teacher's rows get is not known yet; mostly it is about as long as these.
    read.scorer(_whole_steps(rows.row_length))
    teacher = load()
    params = placed(nnx.to_pure_dict(nnx.state(teacher.model)), mesh)

    def score(batch: Mapping[str, np.ndarray]) -> SpanTargets:
        aligned = [
            align_row(
                {name: array[index] for name, array in batch.items()},
                *tokenizers,
                max_length=config.max_length,
            )
            for index in range(len(batch["tokens"]))
        ]
        found = read(params, packed(aligned))
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
        batch_size=size // hosts.count(),
        rows_per_shard=rows_per_shard,
        description=description,
    )


def check_spans(
    directory: epath.PathLike | None,
    rows: RowsFacts,
    tokenizers: Tokenizers,
    *,
    rows_per_shard: int,
) -> Manifest | None:
    """What the directory, where it is known, holds of a store of spans.

    Raises:
        UserError: a directory that holds something else.
    """
    if directory is None:
        return None
    config = SpanStoreConfig(rows.row_length, rows_per_shard)
    own = {"teacher_tokenizer": tokenizers.teacher.fingerprint}
    return found_store(directory, SPAN_SCHEMA, config, {**rows.inputs, **own})


def packed(aligned: Sequence[AlignedTokens]) -> dict[str, np.ndarray]:
    """The teacher's tokens, segment ids and positions as rows of one length, padded with 0.

    All hosts, which read them together, come to the same length.
    """
    longest = max(len(one.tokens) for one in aligned)
    told = hosts.gathered(_whole_steps(longest).to_bytes(8))
    length = max(int.from_bytes(each) for each in told)
    return {
        name: np.stack(
            [np.pad(getattr(one, name), (0, length - len(one.tokens))) for one in aligned]
        )
        for name in INPUTS
    }


def _whole_steps(length: int) -> int:
    return max(1, -(-length // _LENGTH_STEP)) * _LENGTH_STEP


class SpanReader:
    """A teacher over rows of its own tokens, compiled once a length, for as many as fit.

    Args:
        batch_size: the most rows at a time, over all hosts.
    """

    def __init__(self, config: ModelConfig, mesh: Mesh, vocab_size: int, batch_size: int) -> None:
        self._config = config
        self._mesh = mesh
        self._vocab_size = vocab_size
        self._sizes = _halves(batch_size, smallest_batch(mesh))
        self._scorers: dict[int, Scorer] = {}

    def scorer(self, length: int) -> Scorer:
        """The computation for rows of a length.

        Raises:
            UserError: not even the fewest rows of that length fit.
        """

        def reading(model: Transformer, hidden: Array, batch: Batch, at_a_time: int) -> Array:
            return log_likelihoods(model, hidden, batch["tokens"], at_a_time, self._vocab_size)

        if length not in self._scorers:
            self._scorers[length] = compile_reading(
                self._config, self._mesh, reading, row_length=length, sizes=self._sizes
            )
        return self._scorers[length]

    def __call__(self, params: Params, rows: Mapping[str, np.ndarray]) -> Float[np.ndarray, "B T"]:
        """The log-likelihood of each token of this host's rows; every host calls this at once."""
        count, length = rows["tokens"].shape
        scorer = self.scorer(length)
        step = scorer.rows_of_a_host
        parts = [
            scorer(params, {name: array[first : first + step] for name, array in rows.items()})
            for first in range(0, count, step)
        ]
        return np.concatenate(parts)


def _halves(size: int, smallest: int) -> list[int]:
    """`size` and what comes of halving it, as far as that is a multiple of `smallest`."""
    sizes = [size]
    while sizes[-1] % (2 * smallest) == 0:
        sizes.append(sizes[-1] // 2)
    return sizes


def log_likelihoods(
    model: Transformer,
    hidden: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
    at_a_time: int,
    vocab_size: int,
) -> Float[Array, "B T"]:
    """Of each token, given those before it in its row; 0 for the first. Float32.

    Logits are made for `at_a_time` positions of every row after the other: all at once they would
    be the largest array of the whole computation.
    """
    following = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))

    def of_turn(part: tuple[Array, Array]) -> Array:
        logits = model.logits(part[0])[..., :vocab_size].astype(jnp.float32)
        picked = jnp.take_along_axis(logits, part[1][..., None], axis=-1)[..., 0]
        return picked - jax.nn.logsumexp(logits, axis=-1)

    found = by_turns(of_turn, (hidden, following), at_a_time)
    return jnp.pad(found[:, :-1], ((0, 0), (1, 0)))


def weights_for(made: Manifest) -> str:
    """What has to stand on knowledge_transfer's command line for a store of this kind."""
    if made.schema != SPAN_SCHEMA:
        return ""
    return "".join(f" --config.run.loss.{name}={value:g}" for name, value in _WEIGHTS.items())
