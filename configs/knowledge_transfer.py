"""Distillation.

python launch/knowledge_transfer.py --teacher_store STORE --train_data ROWS \\
    --tokenizer_path FILE --config.run.loss.distillation=0.9 --config.run.loss.cross_entropy=0.1
"""

from ml_collections import ConfigDict

from minillm.stages.cli import as_config_dict
from minillm.stages.transfer import TransferConfig


def get_config() -> ConfigDict:
    """The defaults of the stage; every one can be set at the flag."""
    return as_config_dict(TransferConfig())
