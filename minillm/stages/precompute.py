"""The precompute stage: a teacher and rows in, a store of its targets out."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from minillm.core import axes, hosts
from minillm.core.configs import require_at_least
from minillm.core.errors import UserError
from minillm.core.manifest import MANIFEST_NAME, Manifest, require_writable
from minillm.core.sharding import MeshConfig, check_divides, make_mesh
from minillm.data.corpus import read_examples
from minillm.data.load_tokenizer import load_tokenizer
from minillm.data.rows import RowsReader
from minillm.data.tokenizer_protocol import Tokenizer
from minillm.data.vocabulary import compare
from minillm.model.config import Dtype, ModelConfig
from minillm.stages.precompute_output import RowsFacts, finished_store, found_store
from minillm.stages.precompute_spans import (
    Tokenizers,
    check_spans,
    precompute_spans,
    tokenizers_of_spans,
)
from minillm.stages.preparation import RowsConfig, make_rows
from minillm.stages.scoring import compile_scorer, placed, smallest_batch
from minillm.stages.training import check_row_fits
from minillm.store import TeacherTargets, write_store
from minillm.store.schema import SCHEMA, StoreConfig
from minillm.teachers import (
    MOCK,
    Teacher,
    check_folder,
    describe_teacher,
    fingerprint_of_files,
    load_teacher,
    tokenizer_folder,
)


@dataclasses.dataclass(frozen=True)
class PrecomputeConfig:
    """How to run a teacher over rows.

    Attributes:
        targets: "candidates" of the next token, which needs a teacher with the rows' tokenizer;
            "spans", the likelihoods of stretches of text, which needs no such thing; "auto"
            decides by what the two tokenizers hold.
        candidates: tokens kept a position, the likeliest; the rest of the mass is the tail.
        batch_size: rows at a time, over all hosts; None takes as many as pay and fit, as the
            compiler counts before anything is loaded. A store that was begun keeps its own.
        rows_per_shard: rows a file; what a kill can cost each host at most.
        dtype: of the teacher's matrices and activations; None is float32 on CPU, which has no
            faster arithmetic, and bfloat16 elsewhere. Logits are float32 either way.
        rows: how files are packed, where no packed rows are given.
        seed: of the weights, for the teacher `mock`.
    """

    targets: Literal["auto", "candidates", "spans"] = "auto"
    candidates: int = 16
    batch_size: int | None = None
    rows_per_shard: int = 512
    dtype: Dtype | None = None
    mesh: MeshConfig = MeshConfig()
    rows: RowsConfig = RowsConfig()
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(1, candidates=self.candidates, rows_per_shard=self.rows_per_shard)
        if self.batch_size is not None:
            require_at_least(1, batch_size=self.batch_size)


def rows_for(
    data: str,
    config: PrecomputeConfig,
    *,
    teacher: str,
    tokenizer_path: str | None,
    packed: epath.PathLike,
    output: epath.PathLike | None = None,
) -> tuple[epath.PathLike, epath.PathLike]:
    """The rows to run over, and their tokenizer; files are packed into `packed` first.

    Args:
        data: a folder of packed rows, or .txt, .json, .jsonl files separated by commas.
        tokenizer_path: where the teacher brings none.
        output: where the store of their targets will go.

    Raises:
        UserError: as `precompute`, of whatever is wrong without the rows, before they are packed.
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
    tokenizer = tokenizer_path or tokenizer_folder(epath.Path(teacher))
    if (epath.Path(data) / MANIFEST_NAME).exists():
        return data, tokenizer
    require_writable(packed)
    loaded = load_tokenizer(tokenizer)
    row_length = config.rows.row_length
    facts = RowsFacts(packed, row_length, loaded.vocab_size, loaded.fingerprint)
    _plan(output, config, teacher, facts, tokenizer)
    with hosts.first_host_first("rows packed"):
        examples = list(read_examples(data))
        make_rows(packed, config.rows, examples, loaded)
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

    Whatever can be wrong is looked for before the weights are loaded. Several hosts that have
    joined share the work: each scores rows of its own, and all need the same folders.

    Args:
        teacher: a model folder, or "mock" for a tiny random model.
        tokenizer: with which the rows were made; needed where it is another file than the
            teacher's, to compare what the two hold. Where they differ, the store is one of spans.
        devices: what the mesh is made of; None takes all.

    Raises:
        UserError: the teacher's vocabulary or tokenizer is not the one the rows were made with,
            the rows are longer than the teacher reads, the mesh does not fit the devices, a batch
            does not fit their memory, or the directory holds something else.
    """
    reader = RowsReader(rows)
    plan = _plan(directory, config, teacher, RowsFacts.of(reader), tokenizer, devices)
    mesh, dtype, begun = plan.mesh, plan.dtype, plan.begun
    for note in plan.notes:
        logging.warning("%s", note)

    @functools.cache
    def load() -> Teacher:
        return load_teacher(
            teacher, vocab_size=plan.vocab_size, seed=config.seed, mesh=mesh, dtype=dtype
        )

    # Hashing the files is worth it only where there is something to compare with.
    known = fingerprint_of_files(teacher, dtype) if begun else None
    if begun is not None and begun.complete:
        known = known or load().fingerprint
    if finished_store(directory, begun, known) and begun is not None:
        return begun
    batch_size = config.batch_size or _batch_size_of(begun, mesh)
    if isinstance(plan.targets, Tokenizers):
        return precompute_spans(
            directory,
            reader,
            plan.targets,
            plan.model,
            load,
            mesh=mesh,
            batch_size=batch_size,
            rows_per_shard=config.rows_per_shard,
            description=description,
        )
    store = plan.targets
    scorer = compile_scorer(
        plan.model,
        mesh,
        row_length=store.row_length,
        rows=len(reader),
        candidates=store.candidates,
        vocab_size=store.vocab_size,
        batch_size=batch_size,
    )
    params = placed(nnx.to_pure_dict(nnx.state(load().model)), mesh)

    def score(batch: Mapping[str, np.ndarray]) -> TeacherTargets:
        return scorer(params, batch)

    return write_store(
        directory,
        reader,
        score,
        teacher_fingerprint=known or load().fingerprint,
        tokenizer_fingerprint=reader.manifest.inputs["tokenizer"],
        candidates=store.candidates,
        batch_size=scorer.rows_of_a_host,
        rows_per_shard=store.rows_per_shard,
        vocab_size=store.vocab_size,
        description=description,
    )


class _Plan(NamedTuple):
    """What to run and where.

    Attributes:
        model: the teacher's.
        vocab_size: ids that it will be given.
        targets: the tokenizers, where likelihoods of spans are to be written; the store, where
            candidates are.
        begun: what is there of the store.
        notes: what the user should know of the two vocabularies.
    """

    mesh: Mesh
    dtype: Dtype
    model: ModelConfig
    vocab_size: int
    targets: Tokenizers | StoreConfig
    begun: Manifest | None
    notes: tuple[str, ...]


def _plan(
    directory: epath.PathLike | None,
    config: PrecomputeConfig,
    teacher: str,
    rows: RowsFacts,
    tokenizer: epath.PathLike | None,
    devices: Sequence[jax.Device] | None = None,
) -> _Plan:
    """All that can be found wrong before anything is packed, compiled, loaded or written.

    Args:
        directory: of the store; None where that is not known yet.

    Raises:
        UserError: as `precompute`.
    """
    mesh = make_mesh(config.mesh, devices or _all_devices())
    dtype = config.dtype or ("float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16")
    _check_batch_size(config.batch_size, mesh)
    shard = config.rows_per_shard
    found = tokenizers_of_spans(config.targets, teacher, rows, tokenizer)
    if found is not None:
        tokenizers, notes = found
        size = tokenizers.teacher.vocab_size
        model, _ = describe_teacher(teacher, vocab_size=size, dtype=dtype)
        begun = check_spans(directory, rows, tokenizers, rows_per_shard=shard)
        return _Plan(mesh, dtype, model, size, tokenizers, begun, notes)
    model, own = describe_teacher(teacher, vocab_size=rows.vocab_size, dtype=dtype)
    check_row_fits(model, rows.row_length, name="teacher's ")
    check_divides("rows.row_length", rows.row_length, mesh, axes.LENGTH)
    kept, notes = model.vocab_size, ()
    if own is not None:
        kept, notes = _shared_vocabulary(own, model.vocab_size, teacher, rows, tokenizer)
    store = StoreConfig(min(config.candidates, kept), kept, rows.row_length, shard)
    begun = None if directory is None else found_store(directory, SCHEMA, store, rows.inputs)
    return _Plan(mesh, dtype, model, rows.vocab_size, store, begun, notes)


def _all_devices() -> list[jax.Device]:
    # By host, so that the rows that a host gives are ones that its own devices hold.
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def _shared_vocabulary(
    own: Tokenizer,
    logits: int,
    teacher: str,
    rows: RowsFacts,
    tokenizer_path: epath.PathLike | None,
) -> tuple[int, tuple[str, ...]]:
    """How many of the teacher's logits are for the rows' ids, and notes on those that are not.

    They are the first so many; the rest is cut off.

    Raises:
        UserError: the teacher's tokenizer and the rows' do not mean the same by an id.
    """
    wanted = rows.tokenizer
    made_with = own
    if own.fingerprint != wanted and tokenizer_path is not None:
        made_with = load_tokenizer(tokenizer_path)
    if made_with.fingerprint != wanted:
        raise UserError(
            field="tokenizer_path",
            got=f"{tokenizer_path or teacher} (fingerprint {made_with.fingerprint[:12]})",
            wanted=f"the tokenizer of {rows.place} (fingerprint {wanted[:12]})",
            fix="give the tokenizer of the rows, or pack the text with the teacher's",
        )
    found = compare(made_with, own, logits).require_same(teacher)
    note = found.note(teacher)
    return found.kept, (note,) if note else ()


def _check_batch_size(size: int | None, mesh: Mesh) -> None:
    if size is None:
        return
    check_divides("batch_size", size, mesh, axes.BATCH)
    if size % hosts.count():
        raise UserError(
            field="batch_size",
            got=size,
            wanted=f"a multiple of the {hosts.count()} hosts",
            fix=f"try {-(-size // hosts.count()) * hosts.count()}",
        )


def _batch_size_of(begun: Manifest | None, mesh: Mesh) -> int | None:
    """That of a store's shards so far, where this mesh can have it.

    Another batch could round otherwise; the shards of a store should not differ in that.
    """
    if begun is None or not begun.shards:
        return None
    before = int(begun.measured.get("batch_size", 0))
    return before if before and before % smallest_batch(mesh) == 0 else None
