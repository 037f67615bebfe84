"""Training from scratch.

python launch/train.py --data_path FILE --config.run.optimizer.learning_rate=1e-3
"""

from ml_collections import ConfigDict

from minillm.stages.cli import as_config_dict
from minillm.stages.pretrain import PretrainConfig


def get_config() -> ConfigDict:
    """The defaults of the stage; every one can be set at the flag."""
    return as_config_dict(PretrainConfig())
