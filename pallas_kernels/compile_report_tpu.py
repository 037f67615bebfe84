"""What the real TPU compiler makes of a kernel: bundles, spills and VMEM, without a TPU.

A bundle is what a TPU core issues in one cycle, so bundles are cycles, save for waits on copies
and on results that the schedule did not foresee. libtpu writes its final schedule out, where

- a loop ends in a backward branch, beside a test that names its trip count;
- a `pl.when` is a forward branch over its code.

A kernel's bundles are then counted as they would be issued over its whole grid: code of a path
(a predicated region of at least PATH bundles that does more than copy, with no such region inside
it) as often as the caller says that path is taken, loops inside it multiplied; all other code at
every grid step, as if no branch ever skipped it. The caller gives the paths' counts in the order
of the code.

`bundles` compiles in a process of its own, since libtpu reads its flags once, at the start.
"""

import dataclasses
import glob
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

PATH = 8

_BUNDLE = re.compile(r"\s*(0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*:")
_REGION = re.compile(r"(?:Start region|Start/End empty region) (\d+)")
_BRANCH = re.compile(r"sbr\.rel \(!?%\w+\) target = \$region(\d+)")
_TRIPS = re.compile(r", (\d+) /\* loop exit test")
_VECTOR = re.compile(r"= (v[a-z]+)")
_LOADED = re.compile(r"%(v\w+) = vld")
_STORED = re.compile(r"vst_source=\*/%(v\w+)")
_ALLOCATION = re.compile(r"#allocation\d+ \[.*space=vmem, size = (0x[0-9a-f]+)")
_COLUMNS = 11  # of the utilization file; the spill fills and stores are these two:
_FILL, _SPILL = 7, 9


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to compile.

    Attributes:
        factory: "module:function"; called with the options, it returns a function, the shapes of
            its arguments and, for each kernel by name, how often each of its paths is taken.
        options: of the factory; JSON.
    """

    factory: str
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Report:
    """One kernel's figures.

    Attributes:
        bundles: issued over the whole grid.
        static_bundles: in the code.
        spills: stores and loads of spilled registers in the code.
        vmem_bytes: all its buffers, doubled where they are double buffered.
        paths: bundles of each path's code, in order, where its counts were given.
    """

    bundles: int
    static_bundles: int
    spills: int
    vmem_bytes: int
    paths: tuple[int, ...] = ()


def bundles(cases: list[Case], topology: str, timeout: float = 1200) -> list[dict[str, Report]]:
    """Compiles every case for one chip of `topology`, say "v5e:2x4"; figures by kernel name.

    Raises:
        RuntimeError: the compiler's process failed; its last words are in the message.
    """
    request = json.dumps([dataclasses.asdict(case) for case in cases])
    root = str(pathlib.Path(__file__).parents[1])
    with tempfile.TemporaryDirectory() as folder:
        flags = "--xla_jf_dump_llo_text=true --xla_jf_dump_llo_static_gaps=true"
        environment = os.environ | {
            "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder} {flags}",
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            # Beside another process that compiles.
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
        }
        done = subprocess.run(
            [sys.executable, "-m", "pallas_kernels.compile_report_tpu", topology, folder],
            input=request, env=environment, capture_output=True, text=True, timeout=timeout,
            check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"compiling for {topology} failed: {done.stderr[-3000:]}")
    return [
        {name: Report(**figures) for name, figures in case.items()}
        for case in json.loads(done.stdout.splitlines()[-1])
    ]


def compile_for(fn, shapes, topology: str):
    """`fn` compiled for one chip of `topology`, its operands replicated."""
    import jax
    from jax.experimental import topologies
    from jax.sharding import NamedSharding, PartitionSpec

    chips = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = jax.sharding.Mesh(chips[:1], ("chip",))
    whole = NamedSharding(mesh, PartitionSpec())
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole) for x in shapes]
    # The TPU compiler takes a Pallas call only inside shard_map.
    sharded = jax.shard_map(
        fn, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False
    )
    return jax.jit(sharded).lower(*shapes).compile()


def read_dump(folder: str, visits: dict[str, list[int]]) -> dict[str, Report]:
    """Figures of the kernels that `visits` names, from a folder libtpu wrote to."""
    found = {}
    for file in glob.glob(f"{folder}/*-final_bundles.txt"):
        match = re.fullmatch(r"\d+-(.+?)(?:\.\d+)?-(\d+)-final_bundles.txt", os.path.basename(file))
        if match is None or match[1] not in visits:
            continue
        stem = os.path.basename(file).split(f"-{match[2]}-final")[0]
        (used,) = glob.glob(f"{folder}/{stem}-*-final_hlo-static-per-bundle-utilization.txt")
        (start,) = glob.glob(f"{folder}/{stem}-*-02-original.txt") or glob.glob(
            f"{folder}/{stem}-02-original.txt"
        )
        text = pathlib.Path(file).read_text()
        total, static, paths = count_bundles(text, visits[match[1]])
        sizes = _ALLOCATION.findall(pathlib.Path(start).read_text())
        found[match[1]] = Report(
            bundles=total,
            static_bundles=static,
            spills=_spills(pathlib.Path(used).read_text()),
            vmem_bytes=sum(int(size, 16) for size in sizes),
            paths=tuple(paths),
        )
    missing = set(visits) - set(found)
    if missing:
        raise ValueError(f"kernels: got {sorted(found)} in the dump; wanted {sorted(missing)} too")
    return found


def _spills(utilization: str) -> int:
    rows = [line.split() for line in utilization.splitlines()]
    rows = [row for row in rows if len(row) == _COLUMNS and row[0].isdigit()]
    # The first row is the units' capacity.
    return sum(int(row[_FILL]) + int(row[_SPILL]) for row in rows[1:])


def count_bundles(text: str, visits: list[int]) -> tuple[int, int, list[int]]:
    """Bundles issued, bundles of the code, and bundles of each path's code.

    Raises:
        ValueError: the code has another number of paths than `visits`.
    """
    lines = [(int(m[1], 16), line) for line in text.splitlines() if (m := _BUNDLE.match(line))]
    starts = {name: at for at, line in lines for name in _REGION.findall(line)}
    loops, skips, trips = [], [], []
    for at, line in lines:
        # Inner loops' tests stand before outer ones', and each is used up by its branch.
        trips += [int(n) for n in _TRIPS.findall(line)]
        for name in _BRANCH.findall(line):
            target = starts[name]
            if target <= at:
                loops.append((target, at + 1, trips.pop()))
            elif target - at >= PATH:
                skips.append((at + 1, target))
    loaded = set(_LOADED.findall(text))
    skips = [(a, z) for a, z in skips if not _copies([x for at, x in lines if a <= at < z], loaded)]
    paths = [
        (a, z)
        for a, z in skips
        if not any(a <= b and y <= z and (a, z) != (b, y) for b, y in skips)
    ]
    if len(paths) != len(visits):
        sizes = [z - a for a, z in paths]
        raise ValueError(f"visits: got {visits} for {len(sizes)} paths of {sizes} bundles")

    total = 0
    for at, _ in lines:
        inside = [n for n, (a, z) in enumerate(paths) if a <= at < z]
        times = visits[inside[0]] if inside else 1
        first, stop = paths[inside[0]] if inside else (0, lines[-1][0] + 1)
        for begin, end, count in loops:
            if begin <= at < end and first <= begin and end <= stop:
                times *= count
        total += times
    return total, len(lines), [z - a for a, z in paths]


def _copies(code: list[str], loaded: set[str]) -> bool:
    """Whether code stores vectors just as they were loaded, an operand that XLA put in VMEM, or
    none at all: it starts copies."""
    operations = {name for line in code for name in _VECTOR.findall(line)}
    stored = {name for line in code for name in _STORED.findall(line)}
    return not stored or (operations <= {"vld", "vst"} and stored <= loaded)


def _main(topology: str, folder: str) -> None:
    results = []
    for case in json.load(sys.stdin):
        module, name = case["factory"].split(":")
        fn, shapes, visits = getattr(importlib.import_module(module), name)(**case["options"])
        compile_for(fn, shapes, topology)
        found = read_dump(folder, visits)
        results.append({kernel: dataclasses.asdict(report) for kernel, report in found.items()})
        for file in glob.glob(f"{folder}/*"):
            os.remove(file)
    print(json.dumps(results))


if __name__ == "__main__":
    _main(*sys.argv[1:])
