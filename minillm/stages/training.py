"""The training stage: rows, and perhaps teachers' stores, in; a model folder out."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from minillm.core import axes, checkpoint, hosts, manifest
from minillm.core.checkpoint import Checkpointer, abstract_like
from minillm.core.configs import require_at_least, to_dict
from minillm.core.errors import UserError
from minillm.core.manifest import Manifest
from minillm.core.metrics import MetricWriter
from minillm.core.sharding import MeshConfig, check_divides, make_mesh
from minillm.data import loader
from minillm.data.load_tokenizer import load_tokenizer
from minillm.data.rows import RowsReader
from minillm.data.tokenizer_protocol import Tokenizer
from minillm.model.config import ModelConfig
from minillm.model.functional import ModelFunction, Params
from minillm.store import JoinedRows, SpanStoreConfig, StoreReader
from minillm.train.loop import LoopConfig, TrainResult, train
from minillm.train.optimizer import OptimizerConfig, make_optimizer, make_schedule
from minillm.train.step import (
    LossConfig,
    TrainState,
    init_state,
    make_train_step,
)

SCHEMA = "model/1"
EPOCHS = 3.0


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How one training runs, whatever the model and the data.

    Attributes:
        batch_size: rows a step, over all hosts.
        seed: of the initial weights and of the order of the rows.
    """

    loop: LoopConfig = LoopConfig()
    batch_size: int = 8
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(1, batch_size=self.batch_size)
        require_at_least(0, seed=self.seed)


@dataclasses.dataclass(frozen=True)
class _Inputs:
    source: Any
    tokenizer: Tokenizer
    fingerprints: dict[str, str]
    row_length: int


def run_training(
    directory: epath.PathLike,
    model: ModelConfig,
    config: RunConfig,
    *,
    rows: epath.PathLike,
    tokenizer: epath.PathLike,
    stores: Sequence[epath.PathLike] = (),
    init_from: epath.PathLike | None = None,
    devices: Sequence[jax.Device] | None = None,
    description: str = "train",
) -> Manifest:
    """Train until step `config.loop.total`, going on from the newest checkpoint in `directory`.

    Args:
        model: the architecture; with `init_from`, that of the model there.
        rows: folder of packed rows.
        tokenizer: folder or file of the tokenizer the rows were made with; copied beside the
            weights.
        stores: folders of teacher targets for those rows.
        init_from: a model folder whose newest parameters are the starting point.
        devices: what the mesh is made of; None takes all.

    Returns:
        The manifest of the finished model folder: counts `params`, `train_tokens`, `steps`, and
        the `seconds` measured.
    """
    directory = epath.Path(directory)
    given = _open_inputs(rows, tokenizer, stores, init_from)
    mesh = make_mesh(config.mesh, devices)
    _check_fit(model, config, given, mesh)
    function = ModelFunction(model)
    schedule = make_schedule(config.optimizer, config.loop.total)
    optimizer = make_optimizer(config.optimizer, config.loop.total, function.axes)
    batches = iter(
        loader.batches(
            given.source,
            batch_size=config.batch_size,
            seed=config.seed,
            shard_index=jax.process_index(),
            num_shards=jax.process_count(),
        )
    )
    opened = _open_folder(directory, model, config, given)
    if opened.complete:
        checkpoint.require_checkpoint(directory)
        return opened
    saved = Checkpointer(directory)
    try:
        fresh = init_state(
            function, optimizer, _first_params(function, config, mesh, init_from), mesh
        )
        state, before = _restore(saved, fresh, batches, config, given.source)
        metrics = MetricWriter(directory, resume_step=int(state.step))
        try:
            result = train(
                config.loop,
                state=state,
                step_function=make_train_step(function, optimizer, schedule, config.loss),
                batches=batches,
                mesh=mesh,
                checkpointer=saved,
                metrics=metrics,
                run_facts={"loader": before["loader"], "seed": config.seed},
                description=description,
                tokens=before["tokens"],
                seconds=before["seconds"],
            )
        finally:
            metrics.close()
    finally:
        saved.close()
    return _close_folder(directory, opened, model, config, result)


def load_model(directory: epath.PathLike) -> tuple[ModelFunction, Params, Tokenizer]:
    """A trained model for inference: its function, newest parameters, and tokenizer."""
    directory = epath.Path(directory)
    config = ModelConfig.from_dict(checkpoint.read_model_description(directory))
    function = ModelFunction(config)
    mesh = make_mesh(MeshConfig())
    params = checkpoint.load_params(directory, function.abstract(mesh))
    return function, params, load_tokenizer(directory)


def model_config_of(directory: epath.PathLike) -> ModelConfig:
    """The architecture of a model folder."""
    return ModelConfig.from_dict(checkpoint.read_model_description(directory))


def check_epochs(epochs: float | None, config: RunConfig) -> None:
    """Raise UserError unless at most one of epochs and steps is set; for `__post_init__`."""
    if epochs is None:
        return
    require_at_least(0, epochs=epochs)
    if config.loop.steps is not None:
        raise UserError(
            field="epochs",
            got=f"{epochs} beside run.loop.steps={config.loop.steps}",
            wanted="one of the two",
            fix="leave one out",
        )


def with_epochs(config: RunConfig, epochs: float | None, rows: epath.PathLike) -> RunConfig:
    """The run with its steps decided: those it has, or those of `epochs` passes over the rows.

    `EPOCHS` passes where neither is set.
    """
    if config.loop.steps is not None:
        return config
    epochs = EPOCHS if epochs is None else epochs
    steps = max(1, math.ceil(epochs * (len(RowsReader(rows)) // config.batch_size)))
    return dataclasses.replace(config, loop=dataclasses.replace(config.loop, steps=steps))


def check_shapes(
    model: ModelConfig, config: RunConfig, row_length: int, mesh: Mesh, *, name: str = ""
) -> None:
    """Raise UserError where sizes of model, rows and batch do not fit each other or the mesh.

    Args:
        name: stands before `run` and `model` in the field of an error.
    """
    check_row_fits(model, row_length, name=name)
    check_divides(f"{name}run.batch_size", config.batch_size, mesh, axes.BATCH)
    check_divides("rows.row_length", row_length, mesh, axes.LENGTH)
    check_divides(f"{name}model.num_kv_heads", model.num_kv_heads, mesh, axes.KV_HEADS)


def check_row_fits(model: ModelConfig, row_length: int, *, name: str = "") -> None:
    """Raise UserError where a row is longer than what the model reads."""
    if row_length > model.max_length:
        raise UserError(
            field=f"{name}model.max_length",
            got=model.max_length,
            wanted=f"at least {row_length}, the length of the rows",
            fix="raise it, or pack shorter rows",
        )


def _open_inputs(
    rows: epath.PathLike,
    tokenizer: epath.PathLike,
    stores: Sequence[epath.PathLike],
    init_from: epath.PathLike | None,
) -> _Inputs:
    reader = RowsReader(rows)
    loaded = load_tokenizer(tokenizer)
    made_with = reader.manifest.inputs["tokenizer"]
    if made_with != loaded.fingerprint:
        raise UserError(
            field="tokenizer_path",
            got=f"{tokenizer} (fingerprint {loaded.fingerprint[:12]})",
            wanted=f"the tokenizer of {rows} (fingerprint {made_with[:12]})",
            fix="give the tokenizer that the rows were packed with",
        )
    fingerprints = {"rows": reader.fingerprint, "tokenizer": loaded.fingerprint}
    opened = [StoreReader(store) for store in stores]
    for index, store in enumerate(opened):
        fingerprints[f"store_{index}"] = store.fingerprint
    if init_from is not None:
        fingerprints["init"] = manifest.require_complete(init_from, SCHEMA).fingerprint
    source = JoinedRows(reader, opened) if opened else reader
    return _Inputs(source, loaded, fingerprints, reader.row_length)


def _check_fit(model: ModelConfig, config: RunConfig, given: _Inputs, mesh: Mesh) -> None:
    """Raise UserError where model, rows, losses and mesh do not go together."""
    pieces = given.tokenizer.vocab_size
    if model.vocab_size != pieces:
        raise UserError(
            field="model.vocab_size",
            got=model.vocab_size,
            wanted=f"{pieces}, the pieces of the rows' tokenizer",
            fix="set it, or give the tokenizer that goes with the model",
        )
    check_shapes(model, config, given.row_length, mesh)
    _check_weights(config.loss, given.source)
    if (mesh.shape[axes.DATA] * mesh.shape[axes.FSDP]) % jax.process_count():
        raise UserError(
            field="mesh",
            got=dict(mesh.shape),
            wanted=f"data × fsdp a multiple of the {jax.process_count()} hosts",
            fix="keep tensor and context within one host",
        )


def _check_weights(loss: LossConfig, source: Any) -> None:
    """Raise UserError unless each kind of store has its term in the loss, and no other has one."""
    stores = source.stores if isinstance(source, JoinedRows) else ()
    of_spans = [isinstance(store.config, SpanStoreConfig) for store in stores]
    kinds = (
        ("distillation", "a teacher_store of candidates", not all(of_spans), 0.5),
        ("span_likelihoods", "a teacher_store of spans", any(of_spans), 3),
    )
    usual = " ".join(
        f"--config.run.loss.{name}={weight if there else 0}" for name, _, there, weight in kinds
    )
    for name, kind, there, _ in kinds:
        weight = getattr(loss, name)
        if there != (weight > 0):
            raise UserError(
                field=f"loss.{name}",
                got=f"{weight} {'with' if there else 'without'} {kind}",
                wanted="a weight above 0 exactly where there is such a store",
                fix=f"what goes with the stores given is {usual}",
            )


def _open_folder(
    directory: epath.Path, model: ModelConfig, config: RunConfig, given: _Inputs
) -> Manifest:
    """The folder's manifest; the first host writes what is in the folder beside checkpoints."""
    settings = to_dict({"model": model, "run": config})
    if hosts.is_first_host():
        opened = manifest.open_stage(
            directory,
            schema=SCHEMA,
            config=settings,
            inputs=given.fingerprints,
            begun=checkpoint.has_checkpoint(directory),
        )
        if not opened.complete:
            checkpoint.write_model_description(directory, to_dict(model))
            given.tokenizer.save(directory)
    hosts.wait_for_all("model folder opened")
    return manifest.open_stage(directory, schema=SCHEMA, config=settings, inputs=given.fingerprints)


def _close_folder(
    directory: epath.Path,
    opened: Manifest,
    model: ModelConfig,
    config: RunConfig,
    result: TrainResult,
) -> Manifest:
    finished = dataclasses.replace(
        opened,
        complete=True,
        counts={
            "params": model.num_params(),
            "train_tokens": result.tokens,
            "steps": config.loop.total,
            "weights": checkpoint.tree_fingerprint(result.state.params),
        },
        measured={"seconds": result.seconds},
    )
    if hosts.is_first_host():
        manifest.write_manifest(directory, finished)
    hosts.wait_for_all("model folder closed")
    return finished


def _first_params(
    function: ModelFunction, config: RunConfig, mesh: Mesh, init_from: epath.PathLike | None
) -> Params:
    if init_from is None:
        return function.init(config.seed, mesh)
    return checkpoint.load_params(init_from, function.abstract(mesh))


def _restore(
    saved: Checkpointer, fresh: TrainState, batches: Any, config: RunConfig, source: Any
) -> tuple[TrainState, dict[str, Any]]:
    """The state to go on from and its facts, with the data iterator moved to its place."""
    identity = loader.loader_fingerprint(
        dataset=source.fingerprint,
        rows=len(source),
        batch_size=config.batch_size,
        seed=config.seed,
        num_shards=jax.process_count(),
    )
    restored = saved.restore(
        params=abstract_like(fresh.params), optimizer=abstract_like(fresh.optimizer)
    )
    if restored is None:
        return fresh, {"loader": identity, "tokens": 0, "seconds": 0.0}
    loader.check_restorable(restored.progress["loader"], identity)
    batches.set_state(restored.progress["data"])
    step = fresh.step + restored.step
    return TrainState(restored.params, restored.optimizer, step), restored.progress
