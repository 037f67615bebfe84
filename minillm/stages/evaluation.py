"""The evaluation stage: held-out loss, agreement with a teacher, and graded answers."""

import dataclasses
import itertools
import json
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from scipy import stats

from minillm import problems
from minillm.core import axes, hosts, manifest
from minillm.core.checkpoint import read_model_description
from minillm.core.configs import require_at_least, to_dict
from minillm.core.errors import UserError
from minillm.core.manifest import Manifest
from minillm.core.progress import progress
from minillm.core.sharding import MeshConfig, make_mesh, rounded_up, shard_batch
from minillm.data import corpus
from minillm.data.corpus import read_problem_records
from minillm.data.rows import RowsReader
from minillm.data.tokenizer_protocol import Tokenizer, beginning
from minillm.grading import Grader
from minillm.inference.generate import generate
from minillm.losses import LossSum
from minillm.stages.training import SCHEMA as MODEL_SCHEMA
from minillm.stages.training import load_model
from minillm.store import JoinedRows, SpanStoreConfig, StoreReader
from minillm.train.step import make_eval_step

SCHEMA = "evaluation/1"
RESULT = "result.json"
FAILURES = "failures.jsonl"


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How to evaluate.

    Attributes:
        batch_size: rows, or problems, at a time.
        max_new_tokens: what a solution may take, within the model's `max_length`; what is cut off
            counts as wrong.
    """

    batch_size: int = 64
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        require_at_least(1, batch_size=self.batch_size, max_new_tokens=self.max_new_tokens)


@dataclasses.dataclass(frozen=True)
class ExamConfig:
    """An evaluation with its problems.

    Attributes:
        problems_per_domain, levels, seed: which held-out problems, where no file is given.
    """

    evaluation: EvaluationConfig = EvaluationConfig()
    problems_per_domain: int = 50
    levels: tuple[int, ...] = (0,)
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(
            1, problems_per_domain=self.problems_per_domain, number_of_levels=len(self.levels)
        )


@dataclasses.dataclass(frozen=True)
class Score:
    """Right answers out of n, with the 95 % Wilson interval of the share."""

    correct: int
    n: int

    def to_dict(self) -> dict[str, Any]:
        share = stats.binomtest(self.correct, self.n).proportion_ci(0.95, method="wilson")
        return {
            "correct": self.correct,
            "n": self.n,
            "accuracy": self.correct / self.n,
            "low": float(share.low),
            "high": float(share.high),
        }


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A record as the grader wants its problem."""

    problem: str
    answer: str
    answer_type: str | None


def problems_for(problems_path: str | None, config: ExamConfig) -> list[dict[str, Any]]:
    """The user's problems, or the generator's of the test split, as many for each domain."""
    if problems_path is not None:
        return [dataclasses.asdict(record) for record in read_problem_records(problems_path)]
    records = []
    for domain in problems.DOMAINS:
        drawn = problems.stream(config.seed, "test", domains=(domain,), levels=config.levels)
        for _, problem in itertools.islice(drawn, config.problems_per_domain):
            records.append(dataclasses.asdict(problem))
    return records


def default_directory(
    model: epath.PathLike, config: EvaluationConfig, records: Sequence[Mapping[str, Any]]
) -> str:
    """A folder beside the model for this evaluation of it and no other."""
    made_from = {"config": to_dict(config), "inputs": _fingerprints(model, records)}
    return f"{os.fspath(model).rstrip('/')}-evaluation-{manifest.fingerprint_of(made_from)[:8]}"


def evaluate(
    directory: epath.PathLike,
    config: EvaluationConfig,
    *,
    model: epath.PathLike,
    records: Sequence[Mapping[str, Any]],
    heldout_rows: epath.PathLike | None = None,
    teacher_store: epath.PathLike | None = None,
    description: str = "evaluate",
) -> Manifest:
    """Evaluate a model folder; writes `result.json` and `failures.jsonl`.

    Args:
        records: problems with `problem`, `solution`, `answer`, and where known `domain`,
            `family`, `answer_type`.
        heldout_rows: packed rows for the loss a token; with `teacher_store` also for the
            agreement of first choices.
    """
    hosts.require_one_host("evaluating")
    started = time.perf_counter()
    directory = epath.Path(directory)
    function, params, tokenizer = load_model(model)
    inputs = _fingerprints(model, records)
    source = heldout_source(heldout_rows, teacher_store)
    if source is not None:
        inputs["heldout"] = source.fingerprint
    opened = manifest.open_stage(directory, schema=SCHEMA, config=to_dict(config), inputs=inputs)
    if opened.complete:
        return opened
    result: dict[str, Any] = {}
    if source is not None:
        result |= heldout_figures(function, params, source, config.batch_size)
    solutions = solve(
        function.bind(params),
        tokenizer,
        [record["problem"] for record in records],
        config,
        description=description,
    )
    graded, failures = grade(records, solutions)
    result |= graded
    manifest.write_json(directory / RESULT, result)
    lines = "".join(json.dumps(failure, ensure_ascii=False) + "\n" for failure in failures)
    manifest.write_atomically(directory / FAILURES, lines.encode())
    shards = (
        manifest.list_shard(directory, RESULT, first=0, records=1),
        manifest.list_shard(directory, FAILURES, first=0, records=len(failures)),
    )
    finished = dataclasses.replace(
        opened,
        complete=True,
        counts={"problems": len(records)},
        shards=shards,
        measured={"seconds": time.perf_counter() - started},
    )
    manifest.write_manifest(directory, finished)
    return finished


def _fingerprints(model: epath.PathLike, records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    if manifest.read_manifest(model) is None:
        read_model_description(model)  # whose error says more of a folder that is no model
    return {
        "model": manifest.require_complete(model, MODEL_SCHEMA).fingerprint,
        "problems": manifest.fingerprint_of([dict(record) for record in records]),
    }


def heldout_source(
    rows: epath.PathLike | None, store: epath.PathLike | None
) -> RowsReader | JoinedRows | None:
    """Held-out rows, with a teacher's candidates where there is a store of them.

    Raises:
        UserError: a store of spans, or one of other rows.
    """
    if rows is None:
        return None
    reader = RowsReader(rows)
    if store is None:
        return reader
    opened = StoreReader(store)
    if isinstance(opened.config, SpanStoreConfig):
        raise UserError(
            field="teacher_store",
            got=f"{store}, likelihoods of spans",
            wanted="a store of candidates, to compare first choices with",
            fix="leave it out, or give that of a teacher with the rows' tokenizer",
        )
    return JoinedRows(reader, [opened])


def read_result(directory: epath.PathLike) -> dict[str, Any]:
    """The `result.json` of a finished evaluation."""
    manifest.require_complete(directory, SCHEMA)
    return json.loads((epath.Path(directory) / RESULT).read_text())


def heldout_figures(function: Any, params: Any, source: Any, batch_size: int) -> dict[str, float]:
    """Mean negative log-likelihood in nats a counted token, and agreement where there are targets.

    Every row counts: the last batch is filled up with rows whose loss mask is empty.
    """
    step = make_eval_step(function)
    mesh = make_mesh(MeshConfig())
    batch_size = rounded_up(batch_size, mesh, axes.BATCH)
    sums: dict[str, LossSum] = {}
    with jax.set_mesh(mesh):
        for first in range(0, len(source), batch_size):
            rows = [source[index] for index in range(first, min(first + batch_size, len(source)))]
            batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
            missing = batch_size - len(rows)
            padded = {
                name: np.pad(value, [(0, missing)] + [(0, 0)] * (value.ndim - 1))
                for name, value in batch.items()
            }
            for name, term in step(params, shard_batch(padded, mesh)).items():
                sums[name] = sums[name].combine(term) if name in sums else term
    figures = {"heldout_nll": float(sums["cross_entropy"].mean())}
    if "agreement" in sums:
        figures["teacher_agreement"] = float(sums["agreement"].mean())
    return figures


def solve(
    model: Any,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    config: EvaluationConfig,
    *,
    description: str,
) -> list[str]:
    """The model's greedy solutions, in the order of the problem texts."""
    start = beginning(tokenizer)
    prompts = [[*start, *tokenizer.encode(corpus.problem_prompt(problem))] for problem in texts]
    longest = model.config.max_length - 1
    asked = [index for index, prompt in enumerate(prompts) if len(prompt) <= longest]
    if prompts and not asked:
        raise UserError(
            field="problems",
            got=f"{len(prompts)}, the shortest of {min(map(len, prompts))} tokens",
            wanted=f"at most {longest} tokens: model.max_length={longest + 1}, less one to answer",
            fix="give shorter problems, or a model that reads longer ones",
        )
    if len(asked) < len(prompts):
        logging.warning(
            "%d problems are longer than %d tokens, what the model has room for; they count as "
            "not solved",
            len(prompts) - len(asked),
            longest,
        )
    solutions = [""] * len(prompts)
    with progress(len(asked), description=description, unit="problem") as bar:
        for first in range(0, len(asked), config.batch_size):
            part = asked[first : first + config.batch_size]
            tokens = generate(
                model,
                [prompts[index] for index in part],
                max_new_tokens=config.max_new_tokens,
                eos_id=tokenizer.eos_ids,
                pad_id=tokenizer.pad_id,
                batch_size=config.batch_size,
            )
            for index, each in zip(part, tokens, strict=True):
                solutions[index] = tokenizer.decode(each)
            bar.update(len(part))
    return solutions


def grade(
    records: Sequence[Mapping[str, Any]],
    solutions: Sequence[str],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Scores by domain, by family and overall, and every solution that was not right.

    `overall` in `accuracy` is over all problems; `domains` and `families` carry n and interval.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    failures = []
    with Grader() as grader:
        for record, solution in zip(records, solutions, strict=True):
            asked = _Asked(record["problem"], record["answer"], record.get("answer_type"))
            verdict = grader.grade(solution, asked)
            names = ["overall", f"domain {record.get('domain') or 'problems'}"]
            if "family" in record:
                names.append(f"family {record['family']}")
            for name in names:
                right[name].append(verdict.correct)
            if not verdict.correct:
                wrong = {"solution": solution, "reason": verdict.reason}
                failures.append({**record, "expected": record["solution"], **wrong})
    scores = {name: Score(sum(each), len(each)).to_dict() for name, each in right.items()}
    by = {
        kind: {
            name.removeprefix(f"{kind} "): score
            for name, score in sorted(scores.items())
            if name.startswith(f"{kind} ")
        }
        for kind in ("domain", "family")
    }
    accuracy = {name: score["accuracy"] for name, score in by["domain"].items()}
    accuracy["overall"] = scores["overall"]["accuracy"]
    graded = {
        "accuracy": accuracy,
        "overall": scores["overall"],
        "domains": by["domain"],
        "families": by["family"],
    }
    return graded, failures
