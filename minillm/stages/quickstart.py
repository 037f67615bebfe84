"""The whole pipeline: from texts and problems to a student that answers, and a report on it."""

import dataclasses
import time
from dataclasses import replace
from typing import Any, Literal

import jax
from absl import logging
from etils import epath

from minillm.core import axes, hosts
from minillm.core.configs import require_at_least
from minillm.core.manifest import read_manifest, require_complete
from minillm.core.sharding import check_divides, devices_for, make_mesh
from minillm.data.corpus import Example, read_problem_records
from minillm.data.load_tokenizer import load_tokenizer
from minillm.data.tokenizer_protocol import Tokenizer
from minillm.model.config import ModelConfig
from minillm.stages import corpus, evaluation, preparation, report
from minillm.stages.corpus import CorpusConfig
from minillm.stages.evaluation import EvaluationConfig
from minillm.stages.precompute import PrecomputeConfig, precompute
from minillm.stages.preparation import RowsConfig, TokenizerConfig
from minillm.stages.training import SCHEMA as MODEL_SCHEMA
from minillm.stages.training import (
    RunConfig,
    check_row_fits,
    check_shapes,
    model_config_of,
    run_training,
)
from minillm.teachers import MOCK
from minillm.train.loop import LoopConfig

ROWS = ("train", "heldout")
MODELS = ("teacher", "baseline", "distilled", "finetuned")


@dataclasses.dataclass(frozen=True)
class QuickstartConfig:
    """Every stage's settings.

    Attributes:
        scale: the name of the preset the rest was taken from.
        teacher: a model folder to learn from, or "mock", or None to train one here.
        problems_path: a JSON file of the user's own problems for the fine-tune; None for the
            generator's.
        split: which held-out problems are reported on: "test", or "validation" while tuning.
        teacher_model, student_model: their vocabulary sizes become the tokenizer's.
        teacher_run, student_run, finetune_run: the trainings. The baseline is the student's run
            without the teacher's loss; the fine-tune starts from the distilled student.
    """

    scale: str
    corpus: CorpusConfig
    tokenizer: TokenizerConfig
    rows: RowsConfig
    precompute: PrecomputeConfig
    evaluation: EvaluationConfig
    teacher_model: ModelConfig
    student_model: ModelConfig
    teacher_run: RunConfig
    student_run: RunConfig
    finetune_run: RunConfig
    teacher: str | None = None
    problems_path: str | None = None
    split: Literal["test", "validation"] = "test"

    def __post_init__(self) -> None:
        for run in (self.teacher_run, self.student_run, self.finetune_run):
            # Raises where the number of steps is open: no stage here counts passes over the data.
            require_at_least(0, steps=run.loop.total)


def run_quickstart(workdir: epath.PathLike, config: QuickstartConfig) -> dict[str, Any]:
    """Run every stage that is not finished yet, then write and return the report."""
    hosts.require_one_host("the quickstart")
    started = time.perf_counter()
    work = _Work(epath.Path(workdir), config)
    work.check()
    work.prepare()
    work.train()
    results = work.evaluate()
    facts = {
        "scale": config.scale,
        "split": config.split,
        "stage_seconds": work.stage_seconds(),
        "wall_seconds_this_run": time.perf_counter() - started,
    }
    return report.write_report(work.root, results, facts)


class _Work:
    """The stages in order, with the paths that join them."""

    def __init__(self, root: epath.Path, config: QuickstartConfig) -> None:
        self.root = root
        self.config = config

    def check(self) -> None:
        """Read what the user gave, and hold the settings against each other and the machine."""
        config = self.config
        if self._given_teacher:
            # Its own kind only: the teacher is evaluated as the students are.
            teacher = model_config_of(self._model("teacher"))
            require_complete(self._model("teacher"), MODEL_SCHEMA)
            check_row_fits(teacher, config.rows.row_length, name="teacher_")
        if config.problems_path is not None:
            read_problem_records(config.problems_path)
        corpus.read_texts(config.corpus)
        runs = {
            "student_": (config.student_model, config.student_run),
            "finetune_": (config.student_model, config.finetune_run),
        }
        if not self._given_teacher:
            runs["teacher_"] = (config.teacher_model, config.teacher_run)
        for name, (model, run) in runs.items():
            mesh = make_mesh(run.mesh, devices_for(run.mesh, run.batch_size))
            check_shapes(model, run, config.rows.row_length, mesh, name=name)
            if mesh.size < jax.device_count():
                logging.warning(
                    "%srun: batches of %d rows leave %d of %d devices idle; raise batch_size",
                    name,
                    run.batch_size,
                    jax.device_count() - mesh.size,
                    jax.device_count(),
                )
        mesh = make_mesh(config.precompute.mesh, self._precompute_devices())
        if config.precompute.batch_size is not None:
            check_divides("precompute.batch_size", config.precompute.batch_size, mesh, axes.BATCH)

    def prepare(self) -> None:
        """Corpus, tokenizer, and rows for training, held-out loss and fine-tune."""
        corpus.make_corpus(self.root / "corpus", self.config.corpus)
        train = corpus.read_split(self.root / "corpus", "train")
        heldout = corpus.read_split(self.root / "corpus", self.config.split)
        self.heldout_problems = [record for record in heldout if "problem" in record]
        examples = corpus.examples(train)
        tokenizer = self._tokenizer([example.text for example in examples])
        parts = {
            "train": examples,
            "heldout": corpus.examples(heldout),
            "finetune": self._finetune_examples(train),
        }
        for name, part in parts.items():
            rows = self._folder("rows", name)
            preparation.make_rows(rows, self.config.rows, part, tokenizer)

    def train(self) -> None:
        """Teacher, its targets, baseline, distilled and fine-tuned student, in this order."""
        if not self._given_teacher:
            self._run("teacher", self.config.teacher_model, self._teacher_run())
        for name in ROWS:
            precompute(
                self._folder("store", name),
                self.config.precompute,
                teacher=self._model("teacher"),
                rows=self._folder("rows", name),
                devices=self._precompute_devices(),
                description=f"teacher targets, {name} rows",
            )
        student, run = self.config.student_model, self.config.student_run
        plain = replace(run.loss, cross_entropy=1.0, distillation=0.0)
        self._run("baseline", student, replace(run, loss=plain))
        self._run("distilled", student, run, stores=[self._folder("store", "train")])
        self._run(
            "finetuned",
            student,
            self.config.finetune_run,
            rows="finetune",
            init_from=self._model("distilled"),
        )

    def evaluate(self) -> dict[str, dict[str, Any]]:
        """Every model on the same held-out rows and problems."""
        results = {}
        for name in MODELS:
            folder = self._folder("evaluation", name)
            evaluation.evaluate(
                folder,
                self.config.evaluation,
                model=self._model(name),
                records=self.heldout_problems,
                heldout_rows=self._folder("rows", "heldout"),
                teacher_store=self._folder("store", "heldout"),
                description=f"evaluate {name}",
            )
            results[name] = {**self._facts(name), **evaluation.read_result(folder)}
        return results

    def _run(
        self, name: str, model: ModelConfig, run: RunConfig, *, rows: str = "train", **options: Any
    ) -> None:
        size = load_tokenizer(self._tokenizer_path()).vocab_size
        run_training(
            self._model(name),
            replace(model, vocab_size=size),
            run,
            rows=self._folder("rows", rows),
            tokenizer=self._tokenizer_path(),
            devices=devices_for(run.mesh, run.batch_size),
            description=f"train {name}",
            **options,
        )

    @property
    def _given_teacher(self) -> bool:
        """Whether the teacher is a folder of the user's, not trained here."""
        return self.config.teacher not in (None, MOCK)

    def _precompute_devices(self) -> list[jax.Device]:
        size = self.config.precompute.batch_size
        return jax.devices() if size is None else devices_for(self.config.precompute.mesh, size)

    def _teacher_run(self) -> RunConfig:
        run = self.config.teacher_run
        return run if self.config.teacher is None else replace(run, loop=LoopConfig(steps=0))

    def _tokenizer(self, texts: list[str]) -> Tokenizer:
        """The teacher's own tokenizer where a teacher is given, otherwise one trained here."""
        if not self._given_teacher:
            return preparation.make_tokenizer(self.root / "tokenizer", self.config.tokenizer, texts)
        return load_tokenizer(self._tokenizer_path())

    def _tokenizer_path(self) -> epath.Path:
        given = self._given_teacher
        return self._model("teacher") if given else self.root / "tokenizer"

    def _finetune_examples(self, train: list[dict[str, Any]]) -> list[Example]:
        if self.config.problems_path is None:
            return corpus.examples([record for record in train if "problem" in record])
        records = read_problem_records(self.config.problems_path)
        heldout = {record["problem"] for record in self.heldout_problems}
        kept = [record.example() for record in records if record.problem not in heldout]
        if len(kept) < len(records):
            logging.warning(
                "%d of your problems are among the held-out ones and left out of the fine-tune",
                len(records) - len(kept),
            )
        return kept

    def stage_seconds(self) -> dict[str, float]:
        """Seconds by stage, from the manifests; what a kill lost is not in them.

        Stores keep no times: they come out byte for byte the same, however long it took.
        """
        folders = {"corpus": self.root / "corpus"}
        for kind, names in (("models", MODELS), ("evaluation", MODELS)):
            folders |= {f"{kind}/{name}": self._folder(kind, name) for name in names}
        found = {name: read_manifest(folder) for name, folder in folders.items()}
        return {
            name: round(made.measured["seconds"], 1)
            for name, made in found.items()
            if made is not None and "seconds" in made.measured
        }

    def _folder(self, kind: str, name: str) -> epath.Path:
        return self.root / kind / name

    def _model(self, name: str) -> epath.Path:
        if name == "teacher" and self.config.teacher not in (None, MOCK):
            return epath.Path(self.config.teacher)
        return self._folder("models", name)

    def _facts(self, name: str) -> dict[str, Any]:
        """Size and cost of a model, from its manifest."""
        made = require_complete(self._model(name), MODEL_SCHEMA)
        tokens, seconds = made.counts["train_tokens"], made.measured["seconds"]
        return {
            "params": made.counts["params"],
            "train_tokens": tokens,
            "steps": made.counts["steps"],
            "seconds": seconds,
            "tokens_per_s": tokens / seconds if seconds else 0.0,
        }
