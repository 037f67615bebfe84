"""Sampling of solutions.

python launch/generate_math_solutions.py --problem TEXT --config.temperature=0.7 --config.samples=4
"""

from ml_collections import ConfigDict

from minillm.stages.cli import as_config_dict
from minillm.stages.solving import SolvingConfig


def get_config() -> ConfigDict:
    """The defaults of the stage; every one can be set at the flag."""
    return as_config_dict(SolvingConfig())
