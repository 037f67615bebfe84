"""The frequencies of stretched rotations, at the sizes that models have."""

import numpy as np
import pytest

from minillm.model.rope import LongStretch
from minillm.teachers.config_reader import ConfigReader
from minillm.teachers.rope_config import read_rope

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
rope_utils = pytest.importorskip("transformers.modeling_rope_utils")

pytestmark = pytest.mark.reference

HEAD_DIM, LONGEST = 128, 131072
PAIRS = HEAD_DIM // 2
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {
    "short_factor": list(np.linspace(1, 1.5, PAIRS)),
    "long_factor": list(np.geomspace(1, 64, PAIRS)),
}
GROUPS = [
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 8192},
    {"rope_type": "llama3", **LLAMA3, "factor": 32.0, "original_max_position_embeddings": 4096},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0},
    {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "beta_fast": 16,
        "beta_slow": 2,
        "truncate": False,
    },
    {"rope_type": "yarn", "factor": 0.5, "original_max_position_embeddings": 512},
    {"rope_type": "yarn", "factor": 2.0, "attention_factor": 0.9},
    {"rope_type": "longrope", **LONG, "original_max_position_embeddings": 4096},
    {"rope_type": "longrope", **LONG, "original_max_position_embeddings": 4096, "factor": 3.0},
    {"rope_type": "longrope", **LONG, "attention_factor": 1.2, "factor": 8.0},
]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group["rope_type"])
def test_frequencies_and_magnitudes_are_those_of_transformers(group):
    theta = 500_000.0
    rope = read_rope(
        ConfigReader({"rope_theta": theta, "rope_scaling": dict(group)}, field=""), LONGEST
    )
    config = transformers.LlamaConfig(
        head_dim=HEAD_DIM,
        max_position_embeddings=LONGEST,
        rope_parameters={**group, "rope_theta": theta},
    )
    compute = rope_utils.ROPE_INIT_FUNCTIONS[group["rope_type"]]
    divisors = {None: rope.divisors(HEAD_DIM)}
    if isinstance(rope.stretch, LongStretch):
        divisors[LONGEST + 1] = np.asarray(rope.stretch.long)
    for length, divisor in divisors.items():
        expected, magnitude = compute(config, torch.device("cpu"), seq_len=length)
        ours = theta ** -(np.arange(PAIRS) / PAIRS) / divisor
        # transformers blends in float32: an error of 2^-24 in the share of the whole frequency
        # weighs up to 40 (the factor) beside what the rest is divided down to.
        np.testing.assert_allclose(ours, expected, rtol=40 * 2**-24)
        assert rope.magnitude == pytest.approx(magnitude, rel=1e-9)
