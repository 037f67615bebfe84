"""`launch/benchmark.py loading`: a random Llama of a gigabyte, loaded beside transformers.

The folder is made on the spot and every load has a process of its own. The files lie in the page
cache but where it says "cold": there they were dropped from it, as after a start of the machine.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath
from safetensors.numpy import save_file

from minillm.core.errors import UserError
from minillm.core.manifest import write_json
from minillm.stages.benchmark import table
from minillm.teachers.safetensors_files import TensorFiles

# 247 million parameters: .99 GB in float32, of which the largest tensors are 134 MB.
DESCRIPTION: Mapping[str, Any] = {
    "model_type": "llama",
    "vocab_size": 16384,
    "hidden_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 5632,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
# Beside the shards, at most so many times the largest tensor.
BOUND = 1.3
_ONE: dict[str, int] = {}
_FOUR = {"data": 1, "fsdp": 2, "tensor": 2}
_LOADS = (
    ("ours", "float32", _ONE, False),
    ("ours", "float32", _ONE, True),
    ("ours", "float32", _FOUR, False),
    ("ours", "bfloat16", _ONE, False),
    ("ours", "bfloat16", _FOUR, False),
    ("transformers", "float32", _ONE, False),
    ("transformers", "float32", _ONE, True),
    ("transformers", "bfloat16", _ONE, False),
)
_REPEATS = 3


def benchmark_loading(*, out: str | None = None, repeats: int = _REPEATS) -> str:
    """Measure, write the figures to `out` if given, and return the table.

    Raises:
        UserError: no Linux, which counts a process's memory in /proc.
    """
    if not sys.platform.startswith("linux"):
        raise UserError(
            field="loading", got=sys.platform, wanted="Linux, for its /proc", fix="run it there"
        )
    with tempfile.TemporaryDirectory() as place:
        folder = write_random_model(epath.Path(place) / "model", DESCRIPTION)
        files = TensorFiles(folder)
        largest = max(int(np.prod(files.shape(n))) * files.itemsize(n) for n in files.names)
        size = sum(path.stat().length for path in files.paths)
        reads = {
            kind: min(_read_seconds(files, cold=kind == "cold") for _ in range(repeats))
            for kind in ("cold", "warm")
        }
        rows = []
        for who, dtype, mesh, cold in _LOADS:
            row = {"who": who, "dtype": dtype, "devices": max(1, int(np.prod([*mesh.values()])))}
            row |= {"cold": cold, "largest": largest}
            row |= _best(folder, who, dtype, mesh, files if cold else None, repeats)
            rows.append(row)
            print(row, flush=True)
    result = {
        "cores": len(os.sched_getaffinity(0)),
        "file_bytes": size,
        "read_seconds": reads,
        "rows": rows,
        "markdown": _table_of(rows, size, reads),
    }
    if out:
        write_json(out, result)
    return result["markdown"]


def write_random_model(
    folder: epath.Path, description: Mapping[str, Any], *, files: int = 4
) -> epath.Path:
    """A Llama of random float32 weights in several safetensors files, without a tokenizer."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", description)
    random = np.random.default_rng(0)
    shapes = list(_llama_shapes(description))
    listed: dict[str, str] = {}
    for part in range(files):
        name = f"model-{part + 1:05}-of-{files:05}.safetensors"
        mine = shapes[part * len(shapes) // files : (part + 1) * len(shapes) // files]
        tensors = {
            tensor: random.standard_normal(shape, np.float32) * np.float32(0.02)
            for tensor, shape in mine
        }
        save_file(tensors, folder / name)
        listed |= dict.fromkeys(tensors, name)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": listed})
    return folder


def _llama_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner = config["hidden_size"], config["intermediate_size"]
    queries, keys = (
        config[f"num_{kind}_heads"] * config["head_dim"] for kind in ("attention", "key_value")
    )
    yield "model.embed_tokens.weight", (config["vocab_size"], width)
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        yield f"{layer}.input_layernorm.weight", (width,)
        yield f"{layer}.self_attn.q_proj.weight", (queries, width)
        yield f"{layer}.self_attn.k_proj.weight", (keys, width)
        yield f"{layer}.self_attn.v_proj.weight", (keys, width)
        yield f"{layer}.self_attn.o_proj.weight", (width, queries)
        yield f"{layer}.post_attention_layernorm.weight", (width,)
        yield f"{layer}.mlp.gate_proj.weight", (inner, width)
        yield f"{layer}.mlp.up_proj.weight", (inner, width)
        yield f"{layer}.mlp.down_proj.weight", (width, inner)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (config["vocab_size"], width)


def load_in_a_process(
    folder: epath.PathLike, who: str, dtype: str, mesh: Mapping[str, int]
) -> dict[str, Any]:
    """What `load_once` says; or {"reason": why it says nothing}.

    Args:
        who: "ours" or "transformers".
        mesh: sizes of its axes; as many CPU devices are simulated.
    """
    devices = int(np.prod([*mesh.values()], dtype=int))
    asked = {"who": who, "folder": os.fspath(folder), "dtype": dtype, "mesh": dict(mesh)}
    done = subprocess.run(
        [sys.executable, "-m", "minillm.stages.benchmark.load_once", json.dumps(asked)],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"reason": (done.stderr.strip().splitlines() or ["no output"])[-1][:100]}
    return json.loads(done.stdout.splitlines()[-1])


def _best(
    folder: epath.Path,
    who: str,
    dtype: str,
    mesh: Mapping[str, int],
    dropped: TensorFiles | None,
    repeats: int,
) -> dict[str, Any]:
    """The shortest time and the largest peak of several loads."""
    found = []
    for _ in range(repeats):
        if dropped is not None:
            _drop_from_cache(dropped)
        found.append(load_in_a_process(folder, who, dtype, mesh))
        if "reason" in found[-1]:
            return found[-1]
    shortest = min(found, key=lambda one: one["seconds"])
    return shortest | {"peak": max(one["peak"] for one in found)}


def _read_seconds(files: TensorFiles, *, cold: bool) -> float:
    """For the files' bytes, read as plainly as can be."""
    if cold:
        _drop_from_cache(files)
    room = bytearray(16 << 20)
    started = time.perf_counter()
    for path in files.paths:
        with open(path, "rb", buffering=0) as stream:
            while stream.readinto(room):
                pass
    return time.perf_counter() - started


def _drop_from_cache(files: TensorFiles) -> None:
    for path in files.paths:
        with open(path, "rb") as stream:
            # Only what is on the disk already can be dropped.
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _table_of(rows: list[dict[str, Any]], size: int, reads: Mapping[str, float]) -> str:
    lines = []
    reasons: dict[str | None, str] = {}
    for row in rows:
        files = "cold" if row["cold"] else "cached"
        line = [row["who"], row["dtype"], str(row["devices"]), files]
        if reason := row.get("reason"):
            mark = reasons.setdefault(reason, f"[{len(reasons) + 1}]")
            lines.append([*line, mark, "-", "-", "-"])
            continue
        shards, bound = row.get("shards"), "-"
        if shards is not None:
            bound = _mebibytes(shards + BOUND * row["largest"])
        times = [f"{row['seconds']:.2f} s", f"{row['cpu_seconds']:.2f} s"]
        lines.append([*line, *times, _mebibytes(row["peak"]), bound])
    head = ["", "dtype", "devices", "files", "time", "CPU time", "peak MiB", "bound MiB"]
    plain = ", ".join(
        f"{kind} {seconds:.2f} s ({size / 1e9 / seconds:.2f} GB/s)"
        for kind, seconds in reads.items()
    )
    return f"{table.markdown(head, lines, reasons)}\n\nreading {size / 1e9:.2f} GB plainly: {plain}"


def _mebibytes(count: float) -> str:
    return f"{count / 2**20:,.0f}"
