"""Which implementation a device gets, told by abstract devices as in compilation ahead of time."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from pallas_kernels import choice, decode_attention, sliding_window_attention
from pallas_kernels.tuning import BlockSizes

NEW_JAX = jax.__version_info__ >= (0, 11)


def chosen_on(kind, platform, dtype=jnp.bfloat16, head_dim=64, name=None):
    abstract = AbstractDevice(kind, 1, platform)
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=abstract)):
        return choice.chosen_implementation(name, dtype, head_dim)


@pytest.mark.parametrize(
    ("kind", "platform", "wanted"),
    [
        ("TPU v5 lite", "tpu", "mosaic_tpu"),
        ("TPU v5p", "tpu", "mosaic_tpu"),
        ("NVIDIA H200", "gpu", "mosaic_gpu"),
        ("NVIDIA H100 80GB HBM3", "gpu", "mosaic_gpu"),
        ("NVIDIA GH200 480GB", "gpu", "mosaic_gpu"),
        # No wgmma on either side of compute capability 9.
        ("NVIDIA A100-SXM4-80GB", "gpu", "xla"),
        ("NVIDIA B200", "gpu", "xla"),
        ("cpu", "cpu", "xla"),
    ],
)
def test_an_abstract_device_in_force_decides(kind, platform, wanted):
    if wanted == "mosaic_gpu" and not NEW_JAX:
        wanted = "xla"
    assert chosen_on(kind, platform) == wanted


@pytest.mark.parametrize(("dtype", "head_dim"), [(jnp.float32, 64), (jnp.bfloat16, 80)])
def test_a_gpu_takes_the_xla_path_for_what_its_kernels_do_not_serve(dtype, head_dim):
    assert chosen_on("NVIDIA H200", "gpu", dtype, head_dim) == "xla"


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [(jnp.float32, "mosaic_tpu"), (jnp.bfloat16, "mosaic_tpu"), (jnp.float16, "xla")],
)
def test_a_tpu_takes_the_kernels_for_what_they_load(dtype, wanted):
    assert chosen_on("TPU v6 lite", "tpu", dtype, 80) == wanted


@pytest.mark.parametrize("name", ["mosaic_tpu", "mosaic_gpu"])
def test_kernels_of_another_device_are_refused_by_name(name):
    q = jnp.zeros((1, 8, 2, 64), jnp.bfloat16)
    lengths = jnp.ones(1, jnp.int32)
    message = f"implementation: got kernels for a {name[-3:].upper()} on cpu; wanted .*; fix: "
    with pytest.raises(ValueError, match=message):
        sliding_window_attention(q, q, q, window=4, implementation=name)
    with pytest.raises(ValueError, match=message):
        decode_attention(q[:, 0], q, q, lengths, implementation=name)


def test_a_default_device_of_the_program_decides():
    with jax.default_device(jax.devices("cpu")[0]):
        assert choice.device() == ("cpu", "cpu")


@pytest.mark.parametrize("name", choice.IMPLEMENTATIONS)
def test_a_name_is_never_replaced(name):
    for kind, platform in (("TPU v5p", "tpu"), ("NVIDIA A100", "gpu"), ("cpu", "cpu")):
        assert chosen_on(kind, platform, jnp.float32, 80, name) == name


def test_this_process_runs_the_xla_path():
    assert choice.device()[0] == jax.default_backend() == "cpu"
    assert choice.chosen_implementation(None, jnp.bfloat16, 64) == "xla"


@pytest.mark.parametrize("name", ["mosaic_tpu", "mosaic_gpu"])
def test_the_kernels_of_the_name_get_the_call(name, monkeypatch):
    asked = []

    def stop(implementation, what):
        asked.append((implementation, what))
        raise LookupError

    monkeypatch.setattr("pallas_kernels.sliding_window.kernels", stop)
    monkeypatch.setattr("pallas_kernels.decode.kernels", stop)
    q = jnp.zeros((1, 8, 2, 64), jnp.bfloat16)
    blocks = BlockSizes(forward=(64, 64), dq=(64, 64), dkv=(64, 64))
    with pytest.raises(LookupError):
        sliding_window_attention(q, q, q, window=4, implementation=name, block_sizes=blocks)
    with pytest.raises(LookupError):
        decode_attention(q[:, 0], q, q, jnp.array([8]), implementation=name)
    assert asked == [(name, "KERNELS"), (f"{name}_decode", "decode")]
