"""The precompute stage: a teacher and rows in, a store of its targets out."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from absl import logging
from etils import epath

from minillm.core import axes, hosts
from minillm.core.configs import require_at_least
from minillm.core.errors import UserError
from minillm.core.manifest import MANIFEST_NAME, Manifest
from minillm.core.sharding import MeshConfig, check_divides, make_mesh, shard_batch
from minillm.data.corpus import read_examples
from minillm.data.load_tokenizer import load_tokenizer
from minillm.data.rows import RowsReader
from minillm.data.vocabulary import compare
from minillm.stages.preparation import RowsConfig, make_rows
from minillm.store import TeacherTargets, top_candidates, write_store
from minillm.teachers import MOCK, Teacher, check_folder, load_teacher


@dataclasses.dataclass(frozen=True)
class PrecomputeConfig:
    """How to run a teacher over rows.

    Attributes:
        candidates: tokens kept a position, the likeliest; the rest of the mass is the tail.
        batch_size: rows at a time.
        rows_per_shard: rows a file; what a kill can cost at most.
        rows: how files are packed, where no packed rows are given.
        seed: of the weights, for the teacher `mock`.
    """

    candidates: int = 16
    batch_size: int = 32
    rows_per_shard: int = 512
    mesh: MeshConfig = MeshConfig()
    rows: RowsConfig = RowsConfig()
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(
            1,
            candidates=self.candidates,
            batch_size=self.batch_size,
            rows_per_shard=self.rows_per_shard,
        )


def rows_for(
    data: str,
    config: PrecomputeConfig,
    *,
    teacher: str,
    tokenizer_path: str | None,
    packed: epath.PathLike,
) -> tuple[epath.PathLike, epath.PathLike]:
    """The rows to run over, and their tokenizer; files are packed into `packed` first.

    Args:
        data: a folder of packed rows, or .txt, .json, .jsonl files separated by commas.
        tokenizer_path: where the teacher brings none.
    """
    if tokenizer_path is None and teacher == MOCK:
        raise UserError(
            field="tokenizer_path",
            got="nothing",
            wanted="a tokenizer, since the teacher mock brings none",
            fix="run launch/train_tokenizer.py and give its file",
        )
    if teacher != MOCK:
        check_folder(epath.Path(teacher))
    tokenizer = tokenizer_path or epath.Path(teacher)
    if (epath.Path(data) / MANIFEST_NAME).exists():
        return data, tokenizer
    examples = list(read_examples(data))
    make_rows(packed, config.rows, examples, load_tokenizer(tokenizer))
    return packed, tokenizer


def precompute(
    directory: epath.PathLike,
    config: PrecomputeConfig,
    *,
    teacher: str,
    rows: epath.PathLike,
    tokenizer: epath.PathLike | None = None,
    devices: Sequence[jax.Device] | None = None,
    description: str = "teacher targets",
) -> Manifest:
    """Write the teacher's targets for every token of every row, or go on writing them.

    Args:
        teacher: a model folder, or "mock" for a tiny random model.
        tokenizer: with which the rows were made; needed where it is another file than the
            teacher's, to compare what the two hold.
        devices: what the mesh is made of; None takes all.

    Raises:
        UserError: the teacher's vocabulary or tokenizer is not the one the rows were made with.
    """
    hosts.require_one_host("precomputing a teacher's targets")
    reader = RowsReader(rows)
    mesh = make_mesh(config.mesh, devices)
    check_divides("batch_size", config.batch_size, mesh, axes.BATCH)
    loaded = load_teacher(
        teacher, vocab_size=int(reader.manifest.counts["vocab_size"]), seed=config.seed, mesh=mesh
    )
    vocab_size = _shared_vocabulary(loaded, teacher, reader, tokenizer)
    candidates = min(config.candidates, vocab_size)

    def score(batch: Mapping[str, np.ndarray]) -> TeacherTargets:
        with jax.set_mesh(mesh):
            on_mesh = shard_batch(dict(batch), mesh)
            logits = loaded.logits(
                on_mesh["tokens"],
                segment_ids=on_mesh["segment_ids"],
                positions=on_mesh["positions"],
            )
            return top_candidates(logits[..., :vocab_size], candidates)

    return write_store(
        directory,
        reader,
        score,
        teacher_fingerprint=loaded.fingerprint,
        tokenizer_fingerprint=reader.manifest.inputs["tokenizer"],
        candidates=candidates,
        batch_size=config.batch_size,
        rows_per_shard=config.rows_per_shard,
        vocab_size=vocab_size,
        description=description,
    )


def _shared_vocabulary(
    loaded: Teacher, teacher: str, rows: RowsReader, tokenizer_path: epath.PathLike | None
) -> int:
    """How many of the teacher's logits are for the rows' ids: the first so many, the rest is cut.

    Raises:
        UserError: the teacher's tokenizer and the rows' do not mean the same by an id.
    """
    own, wanted = loaded.tokenizer, rows.manifest.inputs["tokenizer"]
    if own is None:
        return loaded.config.vocab_size
    made_with = own
    if own.fingerprint != wanted and tokenizer_path is not None:
        made_with = load_tokenizer(tokenizer_path)
    if made_with.fingerprint != wanted:
        raise UserError(
            field="tokenizer_path",
            got=f"{tokenizer_path or teacher} (fingerprint {made_with.fingerprint[:12]})",
            wanted=f"the tokenizer of {rows.directory} (fingerprint {wanted[:12]})",
            fix="give the tokenizer of the rows, or pack the text with the teacher's",
        )
    found = compare(made_with, own, loaded.config.vocab_size).require_same(teacher)
    if note := found.note(teacher):
        logging.warning("%s", note)
    return found.kept
