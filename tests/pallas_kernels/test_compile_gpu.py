"""The GPU kernels through NVIDIA's assembler, beside the registers and spills of a snapshot.

`python -m pallas_kernels.compile_report_gpu > tests/pallas_kernels/snapshots/gpu.json` writes it.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels.compile_report_gpu import (
    VARIANTS,
    _parse,
    available,
    compile_for_hopper,
    hoppers,
    report,
)
from pallas_kernels.flash import Call, flash_attention
from pallas_kernels.mosaic_gpu import HEAD_DIMS, KERNELS
from pallas_kernels.tuning import block_sizes
from pallas_kernels.window import NO_MARKS, Marks

SNAPSHOT = pathlib.Path(__file__).parent / "snapshots" / "gpu.json"
needs_assembler = pytest.mark.skipif(
    not available(), reason="needs jax >= 0.11 and the CUDA plugin of the same version"
)
_QUICK = {(64, "narrow, all features"), (64, "decode")}


def variants():
    return [
        pytest.param(
            head_dim, variant, id=f"H {head_dim}, {variant}",
            marks=() if (head_dim, variant) in _QUICK else (pytest.mark.slow,),
        )
        for head_dim in HEAD_DIMS
        for variant in VARIANTS
    ]  # fmt: skip


def compare(kernels, wanted):
    """Raises where a kernel spills or takes over a tenth more registers than it did."""
    assert kernels.keys() == wanted.keys()
    for name, found in kernels.items():
        assert found["spill_stores"] == found["spill_loads"] == 0, f"{name} spills: {found}"
        old, new = wanted[name]["registers"], found["registers"]
        assert new <= 1.1 * old, f"{name} takes {new} registers; it took {old}"


@pytest.mark.compiler
@needs_assembler
@pytest.mark.parametrize(("head_dim", "variant"), variants())
def test_kernels_do_not_spill_and_take_no_more_registers_than_before(head_dim, variant):
    wanted = json.loads(SNAPSHOT.read_text())[f"H {head_dim}, {variant}"]
    compare(report(head_dim, variant), wanted)


def test_the_snapshot_has_every_variant_without_spills():
    snapshot = json.loads(SNAPSHOT.read_text())
    assert snapshot.keys() == {f"H {h}, {variant}" for h in HEAD_DIMS for variant in VARIANTS}
    for kernels in snapshot.values():
        compare(kernels, kernels)


ASSEMBLER = """\
ptxas info    : Compiling entry function 'attend_dq_mosaic_gpu_kernel' for 'sm_90a'
ptxas info    : Function properties for attend_dq_mosaic_gpu_kernel
    8 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 168 registers, used 16 barriers, 8 bytes cumulative stack size
ptxas info    : Compiling entry function 'attend_forward_mosaic_gpu_kernel' for 'sm_90a'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 90 registers, used 16 barriers
"""


def test_spills_and_more_registers_fail_with_the_old_and_the_new_figure():
    found = _parse(ASSEMBLER)
    assert found == {
        "dq": {"registers": 168, "spill_stores": 8, "spill_loads": 4},
        "forward": {"registers": 90, "spill_stores": 0, "spill_loads": 0},
    }
    dq, forward = {"dq": found["dq"]}, {"forward": found["forward"]}
    with pytest.raises(AssertionError, match="dq spills"):
        compare(dq, dq)
    compare(forward, {"forward": {"registers": 82}})
    with pytest.raises(AssertionError, match="forward takes 90 registers; it took 81"):
        compare(forward, {"forward": {"registers": 81}})


@pytest.mark.compiler
@needs_assembler
def test_a_row_that_8_divides_is_not_copied():
    def temporary(queries: int) -> int:
        q = jax.ShapeDtypeStruct((2, queries, 4, 64), jnp.bfloat16)
        call = Call(256, 0.1, None, block_sizes("NVIDIA H200", 64, 256))
        attend = compile_for_hopper(
            lambda q, k, v: KERNELS.forward(call, q, k, v, NO_MARKS, None), q, q, q
        )
        return attend.memory_analysis().temp_size_in_bytes

    row = 2 * 1000 * 4 * 64 * 2
    assert temporary(1000) < row / 2 < temporary(1001)


@pytest.mark.compiler
@needs_assembler
@pytest.mark.parametrize("check", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_heads_shard_over_devices_in_both_passes(check):
    mesh = hoppers(2)
    heads, all_of_it = PartitionSpec(None, None, "device"), PartitionSpec()
    specs = (heads, heads, heads, all_of_it, PartitionSpec("device"))
    call = Call(300, 0.125, 30.0, block_sizes("NVIDIA H200", 64, 300))

    def attend(q, k, v, segments, sinks):
        return flash_attention(KERNELS, call, q, k, v, Marks(segments, segments), sinks)[0]

    sharded = jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=check)

    def both(q, k, v, segments, sinks, d_out):
        out, pull = jax.vjp(lambda *x: sharded(*x[:3], segments, x[3]), q, k, v, sinks)
        return out, pull(d_out)

    q, k = (jax.ShapeDtypeStruct((2, 1000, n, 64), jnp.bfloat16) for n in (4, 2))
    segments = jax.ShapeDtypeStruct((2, 1000), jnp.int32)
    sinks = jax.ShapeDtypeStruct((4,), jnp.float32)
    placed = tuple(NamedSharding(mesh, spec) for spec in (*specs, heads))
    program = compile_for_hopper(both, q, k, k, segments, sinks, q, placed=placed).as_text()
    for name in ("forward", "dq", "dkv"):
        assert f"attend_{name}" in program
    # Each device works on its own heads, and none of them is sent for.
    assert "all-gather" not in program and "all-reduce" not in program
    assert "bf16[2,1000,2,64]" in program and "bf16[2,1000,4,64]" not in program
