"""`launch/benchmark.py cross_tokenizer`: what a teacher of another tokenizer is worth, and how.

A teacher that has read many problems teaches students that get few, with a tokenizer of their own:
by nothing (cross-entropy alone), by the distance of sorted probabilities, by the likelihoods of
aligned spans; and, for what could be reached, a teacher with the students' tokenizer by its
distribution. All students take the same number of steps over the same rows and are compared by
bits per byte of held-out text, which no tokenizer changes.
"""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from minillm import losses, problems
from minillm.core.manifest import write_json
from minillm.core.sharding import MeshConfig, make_mesh
from minillm.data.alignment import AlignedTokens, align_row
from minillm.data.corpus import Example, builtin_text_path, problem_prompt, read_text
from minillm.data.packing import pack, tokenize
from minillm.data.tokenizer import BPETokenizer
from minillm.losses import LossSum
from minillm.model.config import ModelConfig
from minillm.model.functional import ModelFunction
from minillm.stages.benchmark.sorted_distance import sorted_distance
from minillm.stages.benchmark.table import markdown
from minillm.store import top_candidates
from minillm.train.optimizer import OptimizerConfig, make_optimizer

CANDIDATES = 16
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything; the defaults take minutes on two cores.

    Attributes:
        teacher_problems, student_problems: of the train split; the student's are the first ones.
        heldout_problems: of `split`, beside a tenth of the text.
        teacher_pieces, student_pieces: vocabularies.
        split: what the students are compared on; "validation" while tuning.
    """

    teacher_problems: int = 6000
    student_problems: int = 400
    heldout_problems: int = 300
    teacher_pieces: int = 900
    student_pieces: int = 420
    row_length: int = 128
    batch_size: int = 4
    teacher_width: int = 128
    student_width: int = 64
    teacher_steps: int = 1500
    student_steps: int = 600
    seeds: int = 3
    first_seed: int = 0
    split: Literal["test", "validation"] = "test"


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to learn: the term beside cross-entropy (of weight 1), and its weight."""

    name: str
    term: Callable[..., LossSum] | None
    weight: float


def _spans(temperature: float) -> Callable[..., LossSum]:
    def term(logits: jax.Array, targets: jax.Array, weights: jax.Array, batch: Any) -> LossSum:
        return losses.span_likelihood_kl(
            logits, targets, batch["span_ids"], batch["span_values"], temperature=temperature
        )

    return term


def _sorted(logits: jax.Array, targets: jax.Array, weights: jax.Array, batch: Any) -> LossSum:
    weights = weights * jnp.isfinite(batch["sorted"][..., 0])
    return sorted_distance(logits, batch["sorted"], batch["sorted_tail"], weights)


def _candidates(logits: jax.Array, targets: jax.Array, weights: jax.Array, batch: Any) -> LossSum:
    return losses.distillation_kl(logits, batch["ids"], batch["log_probs"], batch["tail"], weights)


# Weights from the validation split with another seed. Sorted probabilities were worse than nothing
# at each of 0.1, 0.3, 1 and 3; spans at temperature 1 were best at 3 of 1, 3 and 10, at temperature
# 100 at 10 of 0.3, 1, 3 and 10, by a tenth of their gain; candidates were better at 4 than at 1.
METHODS = (
    Method("cross-entropy alone", None, 0.0),
    Method("sorted probabilities", _sorted, 0.3),
    Method("likelihoods of spans", _spans(1.0), 3.0),
    Method("likelihoods of spans, temperature 100", _spans(100.0), 3.0),
    Method("candidates, same tokenizer", _candidates, 4.0),
)


def benchmark_cross_tokenizer(
    sizes: Sizes = Sizes(), methods: Sequence[Method] = METHODS, *, out: str | None = None
) -> str:
    """Train teachers and students, write the figures to `out` if given, and return the table."""
    started = time.perf_counter()
    corpus = _Corpus(sizes)
    student_tokenizer = _tokenizer(corpus.teaching, sizes.student_pieces)
    teacher_tokenizer = _tokenizer(corpus.teaching, sizes.teacher_pieces)
    corpus.keep_what_fits((student_tokenizer, teacher_tokenizer))
    heldout = corpus.heldout
    rows = _rows(corpus.learning, student_tokenizer, sizes.row_length)
    students_heldout = _rows(heldout, student_tokenizer, sizes.row_length)
    count_bytes = sum(len(example.completion.encode()) for example in heldout)
    results: dict[str, list[float]] = {}
    teachers = {}
    for name, tokenizer in (("other", teacher_tokenizer), ("same", student_tokenizer)):
        function = ModelFunction(_model(sizes.teacher_width, 3, tokenizer.vocab_size))
        teaching = _rows(corpus.teaching, tokenizer, sizes.row_length)
        trainer = Trainer(function, METHODS[0], sizes.teacher_steps, sizes.batch_size)
        params = trainer.run(teaching, 0)
        asked = _rows(heldout, tokenizer, sizes.row_length)
        bits = bits_per_byte(function, params, asked, count_bytes)
        results[f"teacher, {name} tokenizer"] = [bits]
        print(f"teacher, {name} tokenizer: {bits:.4f} bits/byte", flush=True)
        teachers[name] = (function, params)
    rows |= _other_targets(rows, *teachers["other"], student_tokenizer, teacher_tokenizer)
    rows |= _same_targets(rows, *teachers["same"])
    spans = rows["span_ids"].max(axis=1).sum()
    length = np.count_nonzero(rows["span_ids"]) / spans
    print(f"a span is {length:.2f} of the students' tokens", flush=True)
    function = ModelFunction(_model(sizes.student_width, 2, student_tokenizer.vocab_size))
    for method in methods:
        trainer = Trainer(function, method, sizes.student_steps, sizes.batch_size)
        key = f"{method.name} ({method.weight:g})"
        for seed in range(sizes.first_seed, sizes.first_seed + sizes.seeds):
            params = trainer.run(rows, seed)
            bits = bits_per_byte(function, params, students_heldout, count_bytes)
            results.setdefault(key, []).append(bits)
        print(f"{key}: {results[key]} {time.perf_counter() - started:.0f} s", flush=True)
    if out:
        write_json(out, {"sizes": dataclasses.asdict(sizes), "bits_per_byte": results})
    return table_of(results)


def table_of(results: dict[str, list[float]]) -> str:
    """Mean and standard deviation over seeds, and of the differences from cross-entropy alone.

    Differences are taken seed by seed: students of one seed begin with the same weights and read
    the same rows in the same order.
    """
    alone = next(v for name, v in results.items() if name.startswith(METHODS[0].name))
    lines = []
    for name, values in results.items():
        against = ""
        if values is not alone and not name.startswith("teacher"):
            against = _spread([a - b for a, b in zip(values, alone, strict=True)])
        lines.append([name, _spread(values), against])
    return markdown(["learned from (weight)", "bits/byte", f"less {METHODS[0].name}"], lines, {})


def _spread(values: Sequence[float]) -> str:
    mean = f"{np.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.4f}"


class _Corpus:
    """Problems and text: for teachers, for students (a part of that), and held out."""

    def __init__(self, sizes: Sizes) -> None:
        texts = [Example("", text) for text in read_text(builtin_text_path(), group_characters=300)]
        self.teaching = [*_problems("train", sizes.teacher_problems), *texts[::2]]
        self.learning = [*_problems("train", sizes.student_problems), *texts[::8]]
        held_out = texts[1::10] if sizes.split == "test" else texts[3::10]
        self.heldout = [*_problems(sizes.split, sizes.heldout_problems), *held_out]
        self.row_length = sizes.row_length

    def keep_what_fits(self, tokenizers: Sequence[BPETokenizer]) -> None:
        """Leave out what is longer than a row for one of them, so that all read the same."""
        for name in ("teaching", "learning", "heldout"):
            kept = [
                example
                for example in getattr(self, name)
                if all(len(tokenize(example, t).tokens) <= self.row_length for t in tokenizers)
            ]
            setattr(self, name, kept)


def _problems(split: Literal["train", "validation", "test"], count: int) -> list[Example]:
    drawn = itertools.islice(problems.stream(0, split), count)
    return [Example(problem_prompt(one.problem), one.solution) for _, one in drawn]


def _tokenizer(examples: Sequence[Example], pieces: int) -> BPETokenizer:
    texts = [example.text for example in examples]
    return BPETokenizer(pieces, only_seen_commands=True).train(texts)


def _rows(examples: Sequence[Example], tokenizer: BPETokenizer, length: int) -> Arrays:
    rows = list(pack((tokenize(example, tokenizer) for example in examples), length))
    names = [field.name for field in dataclasses.fields(rows[0])]
    return {name: np.stack([getattr(row, name) for row in rows]) for name in names}


def _model(width: int, layers: int, pieces: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=pieces,
        hidden_size=width,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=4,
        head_dim=width // 4,
        intermediate_size=width * 8 // 3 // 8 * 8,
        max_length=4096,
        qk_norm=True,
        scan_layers=False,
    )


class Trainer:
    """Trains models of one shape by one method; compiled once for all seeds."""

    def __init__(
        self, function: ModelFunction, method: Method, steps: int, batch_size: int
    ) -> None:
        self.function, self.steps, self.batch_size = function, steps, batch_size
        settings = OptimizerConfig(
            name="muon", learning_rate=3e-3, schedule="linear", final_fraction=0.02
        )
        self.optimizer = make_optimizer(settings, steps, function.axes)

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, moments: Any, batch: Any) -> tuple[Any, Any]:
            gradient = jax.grad(lambda params: _objective(function, params, batch, method))(params)
            updates, moments = self.optimizer.update(gradient, moments, params)
            return optax.apply_updates(params, updates), moments

        self.step = step

    def run(self, rows: Arrays, seed: int) -> Any:
        """Parameters after all steps; seed decides the first ones and the order of rows."""
        params = self.function.init(seed, make_mesh(MeshConfig(), jax.devices()[:1]))
        moments = self.optimizer.init(params)
        for batch in itertools.islice(_batches(rows, self.batch_size, seed), self.steps):
            params, moments = self.step(params, moments, batch)
        return params


def _objective(function: ModelFunction, params: Any, batch: Any, method: Method) -> jax.Array:
    logits, targets, weights = _predicted(function, params, batch)
    loss = losses.cross_entropy(logits, targets, weights).mean()
    if method.term is None:
        return loss
    return loss + method.weight * method.term(logits, targets, weights, batch).mean()


def _predicted(function: ModelFunction, params: Any, batch: Any) -> tuple[jax.Array, ...]:
    logits = function.bind(params)(
        batch["tokens"], positions=batch["positions"], segment_ids=batch["segment_ids"]
    )
    return logits, *losses.next_token_targets(
        batch["tokens"], batch["segment_ids"], batch["loss_mask"]
    )


def _batches(rows: Arrays, size: int, seed: int) -> Iterator[Arrays]:
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(rows["tokens"]))
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            yield {name: array[chosen] for name, array in rows.items()}


def _in_order(rows: Arrays, size: int) -> Iterator[tuple[int, Arrays]]:
    """All rows in batches of one shape, the last filled up with padding, and how many are real."""
    count = len(rows["tokens"])
    for start in range(0, count, size):
        batch = {name: array[start : start + size] for name, array in rows.items()}
        real = len(batch["tokens"])
        missing = size - real
        yield (
            real,
            {
                name: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
                for name, array in batch.items()
            },
        )


def bits_per_byte(function: ModelFunction, params: Any, rows: Arrays, count_bytes: int) -> float:
    """Negative log-likelihood of all that is to be predicted, in bits, over its bytes."""

    @jax.jit
    def nats(params: Any, batch: Any) -> jax.Array:
        return losses.cross_entropy(*_predicted(function, params, batch)).total

    total = sum(float(nats(params, batch)) for _, batch in _in_order(rows, 16))
    return total / math.log(2) / count_bytes


def _same_targets(rows: Arrays, function: ModelFunction, params: Any) -> Arrays:
    score = jax.jit(
        lambda params, batch: top_candidates(_predicted(function, params, batch)[0], CANDIDATES)
    )
    parts = [
        [np.asarray(part)[:real] for part in score(params, batch)]
        for real, batch in _in_order(rows, 16)
    ]
    joined = (np.concatenate(part) for part in zip(*parts, strict=True))
    return dict(zip(("ids", "log_probs", "tail"), joined, strict=True))


def _other_targets(
    rows: Arrays,
    function: ModelFunction,
    params: Any,
    student: BPETokenizer,
    teacher: BPETokenizer,
) -> Arrays:
    """What the teacher says at aligned places, on the grid of the student's rows."""
    count, length = rows["tokens"].shape
    aligned = [
        align_row({name: array[i] for name, array in rows.items()}, student, teacher)
        for i in range(count)
    ]
    theirs = _teacher_rows(aligned)
    made = {
        "span_ids": np.zeros((count, length), np.int32),
        "span_values": np.zeros((count, length), np.float32),
        "sorted": np.full((count, length, CANDIDATES), -np.inf, np.float32),
        "sorted_tail": np.full((count, length), -np.inf, np.float32),
    }

    @jax.jit
    def score(params: Any, batch: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        logits, targets, _ = _predicted(function, params, batch)
        top = top_candidates(logits, CANDIDATES)
        log_probs = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
        return picked, top.candidate_log_probs, top.tail_log_prob

    at = 0
    for real, batch in _in_order(theirs, 16):
        picked, largest, tail = (np.asarray(part) for part in score(params, batch))
        for i in range(real):
            spans = aligned[at + i].spans
            for k, (a, b, c, d) in enumerate(zip(*spans, strict=True), start=1):
                made["span_ids"][at + i, a - 1 : b - 1] = k
                made["span_values"][at + i, b - 2] = picked[i, c - 1 : d - 1].sum()
                # Before the span's first token both have read the same text.
                made["sorted"][at + i, a - 1] = largest[i, c - 1]
                made["sorted_tail"][at + i, a - 1] = tail[i, c - 1]
        at += real
    return made


def _teacher_rows(aligned: Sequence[AlignedTokens]) -> Arrays:
    length = -(-max(len(one.tokens) for one in aligned) // 64) * 64
    made = {
        name: np.stack(
            [np.pad(getattr(one, name), (0, length - len(one.tokens))) for one in aligned]
        )
        for name in ("tokens", "segment_ids", "positions")
    }
    return made | {"loss_mask": np.ones_like(made["tokens"])}
