"""Run by `benchmark.loading` in a process of its own: load a folder once, and say what it took.

    python -m minillm.stages.benchmark.load_once '{"who": "ours", "folder": …, "dtype": "float32"}'

Prints one JSON line. Memory is what the process has resident, files that it maps included.
"""

import json
import pathlib
import re
import sys
import time
from typing import Any

_STATUS = pathlib.Path("/proc/self/status")
_RESET = pathlib.Path("/proc/self/clear_refs")


def main() -> None:
    asked = json.loads(sys.argv[1])
    print(json.dumps(_LOADERS[asked["who"]](asked)))


def _ours(asked: dict[str, Any]) -> dict[str, Any]:
    import jax

    from minillm.core.sharding import MeshConfig, make_mesh
    from minillm.teachers.huggingface import load_model

    mesh = make_mesh(MeshConfig(**asked["mesh"]))
    # What starts with the first computation is no part of loading.
    jax.block_until_ready(jax.numpy.zeros(()) + 1)
    watch = _Watch()
    _, params = load_model(asked["folder"], mesh=mesh, dtype=asked["dtype"])
    jax.block_until_ready(params)
    leaves = jax.tree.leaves(params)
    shards = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    return watch.found() | {"shards": shards, "parameters": sum(leaf.size for leaf in leaves)}


def _transformers(asked: dict[str, Any]) -> dict[str, Any]:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    dtype = getattr(torch, asked["dtype"])
    # Importing the model's code takes seconds, and is no part of loading either.
    config = transformers.AutoConfig.from_pretrained(asked["folder"])
    transformers.AutoModelForCausalLM._model_mapping[type(config)]
    watch = _Watch()
    model = transformers.AutoModelForCausalLM.from_pretrained(asked["folder"], dtype=dtype)
    called = time.perf_counter() - watch.started
    # Files of the type asked for are only mapped so far: read them, as the first use would.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sum()
    size = sum(parameter.numel() for parameter in model.parameters())
    return watch.found() | {"seconds_mapped": called, "parameters": size}


_LOADERS = {"ours": _ours, "transformers": _transformers}


class _Watch:
    """Time, processor time of all threads, and peak memory from its making on."""

    def __init__(self) -> None:
        # The largest so far may have been while importing.
        _RESET.write_text("5")
        self._before = _resident("VmRSS")
        self._started_cpu = time.process_time()
        self.started = time.perf_counter()

    def found(self) -> dict[str, Any]:
        seconds = time.perf_counter() - self.started
        cpu = time.process_time() - self._started_cpu
        return {"seconds": seconds, "cpu_seconds": cpu, "peak": _resident("VmHWM") - self._before}


def _resident(name: str) -> int:
    """Bytes, as Linux counts them of this process: now ("VmRSS") or at most ("VmHWM")."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"{_STATUS} has no {name}")
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()
