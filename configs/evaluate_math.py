"""Evaluation.

python launch/evaluate_math.py --model_path FOLDER --config.evaluation.max_new_tokens=400
"""

from ml_collections import ConfigDict

from minillm.stages.cli import as_config_dict
from minillm.stages.evaluation import ExamConfig


def get_config() -> ConfigDict:
    """The defaults of the stage; every one can be set at the flag."""
    return as_config_dict(ExamConfig())
