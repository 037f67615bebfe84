"""The real TPU compiler takes every kernel, and its figures grow by no more than a tenth.

The figures of `snapshots/tpu.json` are rewritten by

    REWRITE_SNAPSHOTS=1 pytest -m "slow or not slow" tests/pallas_kernels/test_compile_tpu.py
"""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import pytest

from pallas_kernels.compile_report_tpu import Case, bundles, count_bundles
from pallas_kernels.mosaic_tpu_tiles import BESIDE_BYTES, CORE_BYTES, PART, query_bytes

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
SNAPSHOT = pathlib.Path(__file__).parent / "snapshots" / "tpu.json"
GROWTH = 1.10
FIGURES = ("bundles", "static_bundles", "spills", "vmem_bytes")
TOPOLOGIES = {"v5e": "v5e:2x4", "v5p": "v5p:2x2x2", "v6e": "v6e:2x4"}

_CASES = "pallas_kernels.compile_cases_tpu:"
LARGE = {"head_dim": 128, "window": 256, "blocks": (256, 256), "kv_heads": 1}
SMALL = {"head_dim": 64, "window": 1024, "blocks": (512, 512)}
ALL = {
    "head_dim": 64, "window": None, "blocks": (256, 128), "kv_heads": 2, "soft_cap": 30.0,
    "marked": True, "batch": 1,
}  # fmt: skip
CASES = {
    f"{name} {direction}": Case(_CASES + "ours", options | {"backward": direction == "backward"})
    for name, options in {
        "H64 W1024": SMALL,
        "H128 W256 K1": LARGE,
        "H64 causal marked capped": ALL,
        "H64 W1024 f32": SMALL | {"dtype": "float32", "blocks": (256, 256), "batch": 4},
    }.items()
    for direction in ("forward", "backward")
} | {
    "decode H128 K8": Case(_CASES + "decode", {"head_dim": 128}),
    "decode H64 K1": Case(_CASES + "decode", {"head_dim": 64, "kv_heads": 1}),
}


def regressions(old: dict, new: dict) -> list[str]:
    """Every figure that grew by more than a tenth, with both values."""
    return [
        f"{key}: {figure} was {old[key][figure]}, is {figures[figure]}"
        for key, figures in new.items()
        for figure in FIGURES
        if figures[figure] > GROWTH * old[key][figure]
    ]


def on_chip(case: Case, chip: str) -> Case:
    """Strips as wide as the matrix unit, where the case has any."""
    if chip != "v6e" or not case.factory.endswith("ours"):
        return case
    return Case(case.factory, case.options | {"strip": 256})


def figures(chip: str) -> dict[str, dict[str, int]]:
    reports = bundles([on_chip(case, chip) for case in CASES.values()], TOPOLOGIES[chip])
    return {
        f"{case}: {kernel}": {name: getattr(report, name) for name in FIGURES}
        for case, found in zip(CASES, reports, strict=True)
        for kernel, report in found.items()
    }


@needs_libtpu
@pytest.mark.compiler
@pytest.mark.slow
@pytest.mark.parametrize("chip", TOPOLOGIES)
def test_every_kernel_compiles_and_its_figures_stay_within_a_tenth_of_the_snapshot(chip):
    new = figures(chip)
    version = importlib.metadata.version("libtpu")
    snapshot = json.loads(SNAPSHOT.read_text()) if SNAPSHOT.exists() else {}
    if os.environ.get("REWRITE_SNAPSHOTS") == "1":
        snapshot[chip] = {"libtpu": version, "kernels": new}
        SNAPSHOT.write_text(json.dumps(snapshot, indent=1, sort_keys=True) + "\n")
        return
    old = snapshot[chip]["kernels"]
    assert set(old) == set(new), "other kernels than in the snapshot; rewrite it"
    found = regressions(old, new)
    assert not found, f"libtpu {snapshot[chip]['libtpu']} then, {version} now: {found}"


@needs_libtpu
@pytest.mark.compiler
@pytest.mark.slow
def test_the_largest_group_compiles_for_the_chip_with_the_least_vmem():
    heads = (CORE_BYTES - BESIDE_BYTES) // query_bytes(PART, 1, 128, jnp.bfloat16)
    options = {"head_dim": 128, "window": 256, "blocks": (PART, PART), "batch": 1, "length": 256}
    options |= {"heads": heads, "kv_heads": 1}
    cases = [Case(_CASES + "ours", options | {"backward": x}) for x in (False, True)]
    forward, backward = bundles(cases, TOPOLOGIES["v5p"])
    for report in (forward["window_attention_forward"], backward["window_attention_dq"]):
        assert 32 * 2**20 < report.vmem_bytes < CORE_BYTES


def test_a_figure_that_grew_by_more_than_a_tenth_is_named_with_old_and_new():
    old = {"a": dict.fromkeys(FIGURES, 100) | {"spills": 0}}
    new = {"a": dict.fromkeys(FIGURES, 110) | {"vmem_bytes": 111, "spills": 1}}
    assert regressions(old, new) == [
        "a: spills was 0, is 1", "a: vmem_bytes was 100, is 111"
    ]  # fmt: skip


def test_the_committed_snapshot_holds_every_case_of_every_chip():
    snapshot = json.loads(SNAPSHOT.read_text())
    assert set(snapshot) == set(TOPOLOGIES)
    for chip in snapshot.values():
        assert {key.split(":")[0] for key in chip["kernels"]} == set(CASES)


MESH = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np
from pallas_kernels.flash import Call, flash_attention
from pallas_kernels.mosaic_tpu import KERNELS
from pallas_kernels.tuning import BlockSizes
from pallas_kernels.window import Marks

chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:16x16").devices
mesh = jax.sharding.Mesh(np.array(chips).reshape(64, 4), ("rows", "heads"))
call = Call(1024, 0.125, None, BlockSizes((512, 512), (512, 512), (512, 512)))
spec, tokens = P("rows", None, "heads"), P("rows", None)

def loss(q, k, v, segments):
    attend = lambda q, k, v, s: flash_attention(KERNELS, call, q, k, v, Marks(s, s), None)[0]
    out = jax.shard_map(attend, mesh=mesh, in_specs=(spec, spec, spec, tokens), out_specs=spec)
    return out(q, k, v, segments).astype(jnp.float32).sum()

def struct(shape, dtype, spec):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

q = struct((64, 4096, 8, 64), jnp.bfloat16, spec)
kv = struct((64, 4096, 4, 64), jnp.bfloat16, spec)
ids = struct((64, 4096), jnp.int32, tokens)
compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, kv, kv, ids).compile()
text = compiled.as_text()
for name in ("forward", "backward"):
    assert f"window_attention_{name}" in text, name
print("compiled for", len(chips))
"""


@needs_libtpu
@pytest.mark.compiler
@pytest.mark.slow
def test_forward_and_backward_compile_inside_shard_map_on_256_chips():
    root = pathlib.Path(__file__).parents[2]
    settings = {
        "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "PYTHONPATH": ".",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", MESH], cwd=root, env=os.environ | settings, capture_output=True,
        text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "compiled for 256" in done.stdout


# Two paths in a grid loop of 5 steps; the second path holds a loop of 3.
SCHEDULE = """
   0x0   :  { %s0 = smov.u32 0 } /* Start region 1 */
   0x1 LB: > { %s1 = sadd.s32 1, %s0 } /* Start region 2 */
   0x2   : > { %9 = sbr.rel (%p1_p0) target = $region5 }
{first}
  0x10 PF: > { nop } /* Start/End empty region 5 :: Start region 6 */
  0x11   : > { %9 = sbr.rel (!%p2_p0) target = $region8 }
  0x12   : >> { nop } /* Start region 7 */
{second}
  0x22   : >> { %p3 = scmp.ge.s32.totalorder %s1, 3 /* loop exit test */ }
  0x23   : >> { %7 = sbr.rel (!%p3_p3) target = $region7 }
  0x24 PF: > { %p4 = scmp.ge.s32.totalorder %s1, 5 /* loop exit test */ } /* Start region 8 */
  0x25   : > { %7 = sbr.rel (!%p4_p3) target = $region2 }
  0x26   :  { nop }
"""


def test_bundles_are_counted_as_they_are_issued_over_the_grid():
    def filler(first, stop):
        return "\n".join(
            f"  {hex(at)}   : > {{ 1 = vst [vmem] /*vst_source=*/%v1_v1 }}"
            for at in range(first, stop)
        )

    text = SCHEDULE.replace("{first}", filler(3, 0x10)).replace("{second}", filler(0x13, 0x22))
    total, static, paths = count_bundles(text, [2, 4])
    assert static == 0x27 and paths == [13, 18]
    outside = 2 + 5 * (2 + 2 + 2)
    assert total == outside + 2 * 13 + 4 * 3 * 18
    with pytest.raises(ValueError, match="visits: got .* for 2 paths"):
        count_bundles(text, [2])
