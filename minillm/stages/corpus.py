"""The corpus stage: problems generated and verified, the user's texts, one folder of JSONL."""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from etils import epath

from minillm import problems
from minillm.core import manifest
from minillm.core.configs import require_at_least, to_dict
from minillm.core.errors import UserError
from minillm.core.manifest import Manifest
from minillm.core.progress import progress
from minillm.data import corpus
from minillm.data.files import resolve_paths

SCHEMA = "corpus/1"
SPLITS = ("train", "validation", "test")
_CHUNK = 250
# Short enough for a row of the quickstart, and for a held-out tenth of a short text.
_DOCUMENT_CHARACTERS = 300


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """What to generate.

    Attributes:
        seed: with the index, decides every problem.
        train_problems: how many for training; phrasings of one problem count one by one.
        heldout_per_domain: how many for each of validation and test, each problem once.
        domains, levels: which problems; an empty tuple of domains means all six.
        texts: the user's own files, patterns or folders; empty for the text that comes with
            minillm.
    """

    seed: int = 0
    train_problems: int = 12_000
    heldout_per_domain: int = 60
    domains: tuple[str, ...] = ()
    levels: tuple[int, ...] = (0,)
    texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_at_least(
            1,
            train_problems=self.train_problems,
            heldout_per_domain=self.heldout_per_domain,
            number_of_levels=len(self.levels),
        )
        _require_known("corpus.domains", self.domains, problems.DOMAINS)
        _require_known("corpus.levels", self.levels, problems.LEVELS)


def read_texts(config: CorpusConfig) -> list[str]:
    """The documents of `config.texts`, in order.

    Raises:
        UserError: nothing there, a file of another kind, or one that cannot be read as text.
    """
    return [text for path in _sources(config) for text in _documents(path)]


def make_corpus(directory: epath.PathLike, config: CorpusConfig) -> Manifest:
    """Write `train.jsonl`, `validation.jsonl` and `test.jsonl`.

    Each line is a problem (`problem`, `solution`, `answer`, `domain`, …) or a text (`text`).
    Every problem has passed `problems.verify`; no key of one split is in another.
    """
    directory = epath.Path(directory)
    inputs = {
        f"text_{index}": manifest.file_sha256(path) for index, path in enumerate(_sources(config))
    }
    opened = manifest.open_stage(directory, schema=SCHEMA, config=to_dict(config), inputs=inputs)
    if opened.complete:
        return opened
    started = time.perf_counter()
    # Read before anything is generated: a file that is no text is found at once.
    texts = read_texts(config)
    records = _collect(config)
    for text in texts:
        records[_text_split(text)].append({"text": text, "domain": "text"})
    # Mixed, so that packing finds short documents for the ends of rows.
    random.Random(config.seed).shuffle(records["train"])
    counts: dict[str, Any] = {}
    for split in SPLITS:
        lines = (json.dumps(record) for record in records[split])
        manifest.write_atomically(
            directory / f"{split}.jsonl", "".join(f"{line}\n" for line in lines).encode()
        )
        domains = Counter(record["domain"] for record in records[split])
        counts[split] = dict(sorted(domains.items()))
    shards, first = [], 0
    for split in SPLITS:
        size = len(records[split])
        shards.append(manifest.list_shard(directory, f"{split}.jsonl", first=first, records=size))
        first += size
    finished = dataclasses.replace(
        opened,
        complete=True,
        counts=counts,
        shards=tuple(shards),
        measured={"seconds": time.perf_counter() - started},
    )
    manifest.write_manifest(directory, finished)
    return finished


def read_split(directory: epath.PathLike, split: str) -> list[dict[str, Any]]:
    """The records of one split of a finished corpus."""
    found = manifest.require_complete(directory, SCHEMA)
    manifest.verify_shards(directory, found)
    text = (epath.Path(directory) / f"{split}.jsonl").read_text()
    # Not splitlines: a text may hold other characters that end a line.
    return [json.loads(line) for line in text.split("\n") if line]


def examples(records: list[dict[str, Any]]) -> list[corpus.Example]:
    """Records as prompt and completion: problems with a prompt, texts without."""
    return [
        corpus.Example("", record["text"])
        if "text" in record
        else corpus.Example(corpus.problem_prompt(record["problem"]), record["solution"])
        for record in records
    ]


def _collect(config: CorpusConfig) -> dict[str, list[dict[str, Any]]]:
    domains = config.domains or problems.DOMAINS
    wanted = {
        "train": config.train_problems,
        "validation": config.heldout_per_domain * len(domains),
        "test": config.heldout_per_domain * len(domains),
    }
    kept: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    taken: Counter[tuple[str, str]] = Counter()
    with progress(sum(wanted.values()), description="problems", unit="problem") as bar:
        for split, record in _verified(config, domains):
            # A held-out problem counts once; in training another phrasing is another example.
            name = record["problem"] if split == "train" else record["key"]
            full = split != "train" and taken[split, record["domain"]] >= config.heldout_per_domain
            if name in seen or full or len(kept[split]) >= wanted[split]:
                continue
            seen.add(name)
            taken[split, record["domain"]] += 1
            kept[split].append(record)
            bar.update(1)
            if all(len(kept[split]) == size for split, size in wanted.items()):
                return kept
    raise UserError(
        field="corpus",
        got={split: len(found) for split, found in kept.items()},
        wanted=wanted,
        fix="ask for fewer problems, or for more levels: those given have no more of them",
    )


def _verified(config: CorpusConfig, domains: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    """Problems in the order of their index, each verified in a process of its own."""
    attempts = 40 * (config.train_problems + config.heldout_per_domain)
    starts = range(0, attempts, _CHUNK)
    # Spawned: forking a process in which jax runs threads can deadlock.
    context = multiprocessing.get_context("spawn")
    workers = min(os.cpu_count() or 1, 16)
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_end_with_parent
    ) as pool:
        waiting: list[concurrent.futures.Future] = []
        pending = iter(starts)
        try:
            for _ in range(2 * workers):
                waiting.append(
                    pool.submit(_chunk, config.seed, next(pending), domains, config.levels)
                )
            while waiting:
                yield from waiting.pop(0).result()
                if (start := next(pending, None)) is not None:
                    waiting.append(pool.submit(_chunk, config.seed, start, domains, config.levels))
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Let this worker end when its parent does, however that ends.

    Workers hold both ends of the pool's pipes: after a `kill -9` they would wait for ever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _chunk(
    seed: int, start: int, domains: tuple[str, ...], levels: tuple[int, ...]
) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    for index in range(start, start + _CHUNK):
        problem = problems.make(
            seed,
            index,
            domain=domains[index % len(domains)],
            level=levels[index // len(domains) % len(levels)],
        )
        problems.verify(problem)
        record = dataclasses.asdict(problem)
        # The claims are what `verify` has just checked; training does not read them.
        del record["claims"]
        found.append((problems.split_of(problem), record))
    return found


def _sources(config: CorpusConfig) -> list[epath.Path]:
    return resolve_paths(config.texts) if config.texts else [corpus.builtin_text_path()]


def _documents(path: epath.Path) -> Iterator[str]:
    if path.suffix.lower() == ".txt":
        yield from corpus.read_text(path, group_characters=_DOCUMENT_CHARACTERS)
    else:
        yield from (example.text for example in corpus.read_examples(path))


def _text_split(text: str) -> str:
    """A tenth of the documents, by their content, is held out."""
    return "test" if int(manifest.fingerprint_of(text)[:8], 16) % 10 == 0 else "train"


def _require_known(field: str, given: tuple[Any, ...], known: tuple[Any, ...]) -> None:
    if not set(given) <= set(known) or len(set(given)) < len(given):
        raise UserError(
            field=field,
            got=given,
            wanted=f"some of {', '.join(map(str, known))}, each once",
            fix="correct the setting",
        )
