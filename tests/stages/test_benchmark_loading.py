"""Loading a gigabyte: memory within its bound, every block what numpy makes, a table of figures."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from minillm.stages.benchmark import load_once, loading
from minillm.teachers.safetensors_files import TensorFiles

SMALL = {**loading.DESCRIPTION, "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def gigabyte(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gigabyte") / "model"
    return loading.write_random_model(folder, loading.DESCRIPTION)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{}, {"data": 1, "fsdp": 2, "tensor": 2}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gigabyte_takes_its_shards_and_at_most_1_3_times_the_largest_tensor(
    gigabyte, dtype, mesh
):
    files = TensorFiles(gigabyte)
    sizes = [int(np.prod(files.shape(name))) * 4 for name in files.names]
    assert sum(sizes) > 0.95e9
    found = loading.load_in_a_process(gigabyte, "ours", dtype, mesh)
    print(found)
    assert found["parameters"] * 4 == sum(sizes)
    width = 4 if dtype == "float32" else 2
    assert width <= found["shards"] / found["parameters"] < 1.01 * width
    # Both ways: a peak below the shards would be one that was not measured.
    assert found["shards"] <= found["peak"] <= found["shards"] + 1.3 * max(sizes)


@pytest.mark.slow
def test_every_block_of_a_gigabyte_on_four_devices_is_what_numpy_makes(gigabyte):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-m", "tests.teachers.run_loading_on_mesh", str(gigabyte), "both"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["both HostShards"]
    assert found == {"blocks": 9 * 4, "difference": 0.0, "split": 4}


def test_the_random_model_is_whole_and_the_same_every_time(tmp_path):
    first, second = (loading.write_random_model(tmp_path / name, SMALL) for name in "ab")
    files = TensorFiles(first)
    assert len(files.paths) == 4 and len(files.names) == 12
    for path in files.paths:
        again = load_file(second / path.name)
        assert all(np.array_equal(value, again[name]) for name, value in load_file(path).items())


def test_the_benchmark_prints_its_table_and_writes_json(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "DESCRIPTION", SMALL)
    loads = (("ours", "float32", {}, True), ("nobody", "float32", {}, False))
    monkeypatch.setattr(loading, "_LOADS", loads)
    text = loading.benchmark_loading(out=str(tmp_path / "out.json"), repeats=1)
    ours, nobody = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert ours["parameters"] * 4 == ours["shards"] and ours["seconds"] > 0
    assert nobody["reason"] == "KeyError: 'nobody'"
    assert "[1] KeyError: 'nobody'" in text and "plainly: cold" in text


def test_the_watch_sees_memory_that_is_given_back():
    watch = load_once._Watch()
    room = np.ones(1 << 26, np.uint8)
    del room
    assert (1 << 26) * 0.9 < watch.found()["peak"] < (1 << 26) * 1.5
