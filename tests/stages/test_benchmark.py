"""The benchmark: work counted as the window asks, contestants held to one result, no crash."""

import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from minillm.core.errors import UserError
from minillm.stages.benchmark import attention_cpu, attention_gpu, attention_tpu, timing
from minillm.stages.benchmark import contestants as of
from minillm.stages.benchmark.attention import benchmark_attention
from minillm.stages.benchmark.shapes import BACKWARD, BOTH, FORWARD, Shape
from pallas_kernels.compile_report_tpu import Report
from pallas_kernels.window import attention_mask

ROOT = pathlib.Path(__file__).parents[2]
TINY = Shape(batch=1, length=12, heads=3, head_dim=4, window=5)


@pytest.mark.parametrize("window", [1, 2, 5, 11, 12, 13, 100])
def test_visible_pairs_are_those_of_the_mask(window):
    shape = Shape(1, 12, 1, 4, window)
    assert shape.visible_pairs == int(attention_mask(12, 12, window).sum())


def test_flops_are_four_per_pair_and_head_size_forward_and_two_and_a_half_times_that_backward():
    pairs = int(attention_mask(12, 12, 5).sum())
    assert TINY.flops(FORWARD) == 4 * 4 * pairs * 3
    assert TINY.flops(BACKWARD) == 2.5 * TINY.flops(FORWARD)
    assert TINY.flops(BOTH) == TINY.flops(FORWARD) + TINY.flops(BACKWARD)


def run_of(contestant, which):
    prepared = contestant(TINY, which)
    result = prepared.run()
    prepared.wait(result)
    return prepared.sample(result)


@pytest.mark.parametrize(("which", "results"), [(FORWARD, 1), (BACKWARD, 3), (BOTH, 4)])
def test_ours_and_masked_attention_compute_the_same(which, results):
    mine, theirs = (
        run_of(of.of_jax(attend, jnp.float32), which)
        for attend in (of.ours("xla"), of.masked_attention)
    )
    assert len(mine) == len(theirs) == results
    for a, b in zip(mine, theirs, strict=True):
        assert a.shape == (1, 12, of.SAMPLED_HEADS, 4)
        np.testing.assert_allclose(a, b, rtol=0, atol=attention_cpu.TOLERANCE)


@pytest.mark.reference
@pytest.mark.parametrize("which", [FORWARD, BACKWARD, BOTH])
def test_torch_with_a_mask_computes_the_same(which):
    pytest.importorskip("torch")
    mine = run_of(of.of_jax(of.ours("xla"), jnp.float32), which)
    theirs = run_of(of.of_torch(of.torch_masked, "cpu", "float32"), which)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=attention_cpu.TOLERANCE)


def broken(shape, which):
    raise RuntimeError("no such\nlibrary")


def off_by_one(shape, q, k, v):
    return of.masked_attention(Shape(1, 12, 3, 4, shape.window + 1), q, k, v)


def test_a_contestant_that_fails_or_computes_something_else_is_a_reason_in_its_cell():
    contestants = {
        "ours": of.of_jax(of.ours("xla"), jnp.float32),
        "broken": broken,
        "off by one": of.of_jax(off_by_one, jnp.float32),
        "no window": of.of_jax(off_by_one, jnp.float32, same_output=False),
        "ours again": of.of_jax(of.ours("xla"), jnp.float32),
    }
    row = timing.measure(contestants, TINY, BOTH, seconds=0, tolerance=1e-4)
    cells = row.cells
    assert cells["broken"].seconds is None and cells["broken"].reason == "no such library"
    assert cells["off by one"].seconds is None
    assert cells["off by one"].reason.startswith("differs by")
    for name in ("ours", "no window", "ours again"):
        assert cells[name].seconds > 0 and cells[name].reason is None
    assert cells["ours"].temp_bytes > 0
    assert json.loads(json.dumps(row.as_json()))["pass"] == BOTH


def test_best_times_take_turns_and_count_calls():
    order = []

    def prepared(name):
        return timing.Prepared(run=lambda: order.append(name), wait=lambda _: None)

    ready = {name: prepared(name) for name in ("a", "b")}
    best = timing.best_times(ready, seconds=0.3, calls=3)
    switches = sum(one != other for one, other in itertools.pairwise(order))
    assert switches >= 3  # a, b, a, b
    assert all(0 < seconds < 0.1 for seconds in best.values())


def row_of(cells, shape=TINY, which=FORWARD):
    return timing.Row(shape, which, cells)


def test_cpu_table_shows_times_as_often_as_ours_and_marks_reasons():
    cells = {
        name: timing.Cell(seconds=0.03, temp_bytes=2**21) for name in attention_cpu.CONTESTANTS
    }
    cells[attention_cpu.OURS] = timing.Cell(seconds=0.01, temp_bytes=2**20)
    cells[attention_cpu.FLEX] = timing.Cell(reason="no PyTorch here")
    text = attention_cpu.table_of([row_of(cells)])
    assert "10.0 ms" in text and "3.0×" in text and "1 / 2" in text
    assert "[1] no PyTorch here" in text


def test_gpu_table_shows_useful_teraflops_and_marks_reasons():
    shape = Shape(8, 4096, 16, 64, 256)
    cells = {name: timing.Cell(reason="no CUDA") for name in attention_gpu.CONTESTANTS}
    cells["ours"] = timing.Cell(seconds=shape.flops(FORWARD) / 230e12)
    text = attention_gpu.table_of([row_of(cells, shape)])
    assert "230" in text and text.count("[1]") == len(cells)


def test_gpu_shapes_are_all_combinations_of_about_one_size():
    shapes = attention_gpu.shapes()
    assert len(shapes) == 18
    assert len({s.batch * s.length * s.heads * s.head_dim for s in shapes}) == 1


def test_gpu_baselines_attend_to_the_past_alone(monkeypatch):
    seen = {}

    def record(q, k, v, **options):
        seen.update(options)
        return q

    monkeypatch.setattr("jax.nn.dot_product_attention", record)
    attention_gpu._cudnn(TINY, jnp.zeros(()), None, None)
    assert seen["is_causal"] is True and seen["local_window_size"] == (TINY.window - 1, 0)


def test_without_a_gpu_one_line_says_so():
    with pytest.raises(UserError, match="--device: got gpu"):
        benchmark_attention("gpu")


def report_of(bundles):
    return Report(bundles=bundles, static_bundles=1, spills=0, vmem_bytes=0)


def test_tpu_table_sums_the_kernels_and_counts_bundles_per_useful_flop():
    shape = Shape(16, 8192, 8, 64, 256)
    pairs = 256 * 8192 - 256 * 255 // 2
    count = attention_tpu.Count(
        "v5e", shape, BACKWARD, (256, 128),
        {
            "ours": {"all": report_of(6_000_000)},
            "splash": {"dq": report_of(9_000_000), "dkv": report_of(3_000_000)},
            "splash, fused": {"dkv": report_of(15_000_000)},
        },
    )  # fmt: skip
    useful = 16 * 8 * pairs * 10 * 64 / 1e6
    assert count.per_megaflop("splash") == pytest.approx(12e6 / useful)
    row = [cell.strip() for cell in attention_tpu.table_of([count]).splitlines()[2].split("|")]
    assert row[1:5] == ["v5e", str(shape), BACKWARD, "256×128"]
    assert row[5:10] == ["6.00", "12.00", "0.50", "15.00", "0.40"]
    assert json.loads(json.dumps(count.as_json()))["kernels"]["splash"]["dq"]["bundles"] == 9e6


@pytest.mark.parametrize("chip", attention_tpu.CHIPS)
def test_tpu_contestants_have_one_shape_and_the_blocks_and_strips_of_the_chip(chip):
    shape = Shape(2, 1024, 8, 64, 256)
    forward = attention_tpu.cases_of(chip, shape, FORWARD)
    backward = attention_tpu.cases_of(chip, shape, BACKWARD)
    assert list(forward) == ["ours", "splash"]
    assert list(backward) == ["ours", "splash", "splash, fused"]
    strip = 256 if chip == "v6e" else 128
    shared = forward["splash"].options
    assert shared == {
        "batch": 2, "length": 1024, "heads": 8, "kv_heads": 8, "head_dim": 64, "window": 256,
        "blocks": (256, 256), "backward": False,
    }  # fmt: skip
    assert forward["ours"].options == shared | {"strip": strip}
    assert backward["splash, fused"].options == shared | {"backward": True, "fused": True}


def test_tpu_shapes_are_those_of_both_head_sizes_and_three_windows():
    found = {(s.head_dim, s.window) for s in attention_tpu.shapes()}
    assert found == {(h, w) for h in (64, 128) for w in (256, 1024, 4096)}


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.compiler
@pytest.mark.slow
def test_both_passes_take_at_most_four_fifths_of_the_bundles_of_splash_attention():
    counts = attention_tpu.count_bundles("v5e", Shape(16, 8192, 8, 128, 1024))
    assert [count.which for count in counts] == [FORWARD, BACKWARD]
    for count in counts:
        assert 0 < count.bundles("ours") <= 0.8 * count.bundles("splash")


def test_without_the_tpu_compiler_one_line_says_how_to_get_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name)
    )
    with pytest.raises(UserError, match="--device: got tpu; .*fix: pip install libtpu"):
        benchmark_attention("tpu")


@pytest.mark.parametrize(
    ("device", "options", "words"),
    [
        ("tpu", {"chips": ["v5e", "v9"]}, "--chips: got v9; wanted some of v5e, v5p, v6e"),
        ("tpu", {"seconds": 1.0}, "--seconds: got 1.0; .*--device=tpu"),
        ("cpu", {"chips": ["v5e"]}, "--chips: got .*v5e.*--device=cpu"),
    ],
)
def test_options_of_another_device_and_unknown_chips_are_named(device, options, words):
    with pytest.raises(UserError, match=words):
        benchmark_attention(device, **options)


def test_a_choice_that_leaves_nothing_names_the_shapes():
    with pytest.raises(UserError, match="B1 T1024 N6 H64 W256"):
        benchmark_attention("cpu", lengths=[7])


def test_the_whole_benchmark_prints_its_table_and_writes_json(tmp_path, monkeypatch, capsys):
    jax_only = {name: attention_cpu.CONTESTANTS[name] for name in ("ours", "masked jax")}
    monkeypatch.setattr(attention_cpu, "CONTESTANTS", jax_only)
    monkeypatch.setattr(attention_cpu, "SHAPES", (TINY,))
    out = tmp_path / "cpu.json"
    text = benchmark_attention("cpu", seconds=0, out=str(out))
    assert "B1 T12 N3 H4 W5" in text and "masked jax / ours" in text
    rows = json.loads(out.read_text())["rows"]
    assert [row["pass"] for row in rows] == [FORWARD, BOTH]
    assert "B1 T12" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["teacher", "--seconds=1", "--windows=3"], ["--windows: got ['3']", "--teacher at most"]),
        (["attention", "--seconds=1", "--teacher=x"], ["--teacher: got x", "--seconds at most"]),
        (["teacher", "--lengths=7"], ["--lengths: got a choice", "128, 128, 512"]),
        ([], ["command line: got flags only", "attention"]),
        (["stores"], ["got stores", "one of attention"]),
        (["loading", "--windows=4"], ["--windows: got ['4']", "--out at most"]),
        (["attention", "--lengths=many"], ["--lengths: got many"]),
        (["cross_tokenizer", "--windows=3"], ["--windows: got ['3']", "--out at most"]),
    ],
)
def test_bad_command_lines_are_one_line_and_exit_code_2(arguments, words):
    done = subprocess.run(
        [sys.executable, "launch/benchmark.py", *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
