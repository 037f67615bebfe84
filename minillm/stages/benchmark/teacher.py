"""`launch/benchmark.py teacher`: a teacher's forward pass beside transformers, on the CPU.

The same weights from the same folder, the same tokens, logits of every position on both sides.
Rows hold one document each: what suits transformers best, since it then needs no mask. Ours is the
model as the precompute stage compiles it, and reads segments and positions as always.
"""

import dataclasses
import importlib
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from minillm.core.errors import UserError
from minillm.core.manifest import write_json
from minillm.core.sharding import MeshConfig, make_mesh
from minillm.stages.benchmark import table
from minillm.stages.benchmark.contestants import torch_module
from minillm.stages.benchmark.timing import Prepared, UnavailableError, best_times
from minillm.stages.scoring import compile_logits, placed
from minillm.teachers.huggingface import load_model

OURS, EAGER, SDPA = "ours", "transformers, eager", "transformers, sdpa"
# Rows × tokens.
SHAPES = ((1, 128), (8, 128), (1, 512))
SECONDS = 20.0
# float32 sums of up to 1,376 products in different orders, through eight layers.
TOLERANCE = 1e-4
# A Llama of the size that two cores run in a fraction of a second.
MODEL = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 1376,
    "max_position_embeddings": 2048,
}


@dataclasses.dataclass(frozen=True)
class Row:
    """Best seconds of a call by contestant, and how busy the machine was at the end."""

    rows: int
    length: int
    seconds: dict[str, float]
    load_average: float

    def tokens_per_second(self, name: str) -> float:
        return self.rows * self.length / self.seconds[name]

    @property
    def ratio(self) -> float:
        """How many times as fast ours is as the faster of the others."""
        others = [seconds for name, seconds in self.seconds.items() if name != OURS]
        return min(others) / self.seconds[OURS]


def benchmark_teacher(
    folder: str | None = None,
    *,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    seconds: float | None = None,
    out: str | None = None,
) -> str:
    """Measure, write the figures to `out` if given, and return the table.

    Args:
        folder: a Hugging Face folder; None makes one with random weights, of MODEL's sizes.
        shapes: rows and their length.
        seconds: about how long to time each shape; SECONDS if None.

    Raises:
        UserError: PyTorch or transformers is not here, or the two sides compute different logits.
    """
    if not shapes:
        raise UserError(
            field="--lengths",
            got="a choice that leaves no shape",
            wanted="some of " + ", ".join(str(length) for _, length in SHAPES),
            fix="leave it out",
        )
    try:
        torch = torch_module("cpu")
        transformers = importlib.import_module("transformers")
    except (UnavailableError, ModuleNotFoundError):
        raise UserError(
            field="teacher",
            got="no transformers, or no PyTorch, to compare with",
            wanted="both, for the CPU",
            fix="pip install 'minillm[reference]'",
        ) from None
    with tempfile.TemporaryDirectory() as made:
        if folder is None:
            folder = made
            torch.manual_seed(0)
            config = transformers.LlamaConfig(**MODEL, tie_word_embeddings=False)
            transformers.LlamaForCausalLM(config).save_pretrained(folder)
        contestants = _contestants(folder, torch, transformers)
        rows = []
        for shape in shapes:
            rows.append(_measure(contestants, shape, SECONDS if seconds is None else seconds))
            print(_line(rows[-1]), flush=True)
    markdown = table_of(rows)
    if out:
        figures = [{**dataclasses.asdict(row), "ratio": row.ratio} for row in rows]
        cores = len(os.sched_getaffinity(0))
        write_json(out, {"cores": cores, "rows": figures, "markdown": markdown})
    return markdown


def table_of(rows: Sequence[Row]) -> str:
    """Tokens a second, and how many times as fast ours is as the best of the others."""
    names = list(rows[0].seconds)
    lines = [
        [
            f"B{row.rows} T{row.length}",
            *(f"{row.tokens_per_second(name):,.0f}" for name in names),
            f"{row.ratio:.2f}×",
            f"{row.load_average:.1f}",
        ]
        for row in rows
    ]
    head = ["shape", *(f"{name}, tokens/s" for name in names), "ours / best", "load"]
    return table.markdown(head, lines, {})


Contestant = Callable[[np.ndarray], Prepared]


def _contestants(folder: str, torch: Any, transformers: Any) -> dict[str, Contestant]:
    found: dict[str, Contestant] = {OURS: _ours(folder)}
    for name, attention in ((EAGER, "eager"), (SDPA, "sdpa")):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention
        )
        found[name] = _theirs(torch, model.eval())
    return found


def _ours(folder: epath.PathLike) -> Contestant:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    config, params = load_model(folder, mesh=mesh, dtype="float32")
    params = placed(params, mesh)

    def prepare(tokens: np.ndarray) -> Prepared:
        run = compile_logits(config, mesh, rows=tokens.shape[0], row_length=tokens.shape[1])
        rows = {
            "tokens": tokens,
            "segment_ids": np.ones_like(tokens),
            "positions": np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
        }
        return Prepared(
            run=lambda: run(params, rows),
            wait=jax.block_until_ready,
            sample=lambda logits: [np.asarray(logits)],
        )

    return prepare


def _theirs(torch: Any, model: Any) -> Contestant:
    def prepare(tokens: np.ndarray) -> Prepared:
        ids = torch.tensor(tokens, dtype=torch.long)

        def run() -> Any:
            with torch.inference_mode():
                return model(ids, use_cache=False).logits

        return Prepared(run, wait=lambda _: None, sample=lambda logits: [logits.numpy()])

    return prepare


def _measure(contestants: dict[str, Contestant], shape: tuple[int, int], seconds: float) -> Row:
    # Ids that the smallest of tables have.
    tokens = np.random.default_rng(0).integers(3, 256, shape, dtype=np.int32)
    ready = {name: prepare(tokens) for name, prepare in contestants.items()}
    logits = {name: one.sample(one.run())[0] for name, one in ready.items() if one.sample}
    for name, found in logits.items():
        worst = float(np.abs(found - logits[OURS]).max())
        if not worst <= TOLERANCE:
            raise UserError(
                field=f"logits of {name}",
                got=f"a difference of {worst:.1e} from ours",
                wanted=f"{TOLERANCE} at most",
                fix="report it with the folder's config.json: one of the two is wrong",
            )
    return Row(*shape, best_times(ready, seconds), os.getloadavg()[0])


def _line(row: Row) -> str:
    times = "; ".join(f"{name} {1e3 * took:.1f} ms" for name, took in row.seconds.items())
    return f"B{row.rows} T{row.length}: {times}; load {row.load_average:.1f}"
