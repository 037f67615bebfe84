"""A teacher's targets.

python launch/precompute_teacher.py --teacher FOLDER --data ROWS --config.candidates=32
"""

from ml_collections import ConfigDict

from minillm.stages.cli import as_config_dict
from minillm.stages.precompute import PrecomputeConfig


def get_config() -> ConfigDict:
    """The defaults of the stage; every one can be set at the flag."""
    return as_config_dict(PrecomputeConfig())
