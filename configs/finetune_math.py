"""The math fine-tune.

python launch/finetune_math.py --model_path FOLDER --config.epochs=5
"""

from ml_collections import ConfigDict

from minillm.stages.cli import as_config_dict
from minillm.stages.finetune import FinetuneConfig


def get_config() -> ConfigDict:
    """The defaults of the stage; every one can be set at the flag."""
    return as_config_dict(FinetuneConfig())
