"""The quickstart's presets.

python launch/quickstart.py --workdir runs/quickstart
python launch/quickstart.py --workdir runs/smoke --config.scale=smoke     (CI: under 2 minutes)
python launch/quickstart.py --workdir runs/hour --config.scale=hour       (more of everything)
"""

from dataclasses import replace

from ml_collections import ConfigDict

from minillm.core.errors import UserError
from minillm.model.config import ModelConfig
from minillm.stages.cli import as_config_dict
from minillm.stages.corpus import CorpusConfig
from minillm.stages.evaluation import EvaluationConfig
from minillm.stages.precompute import PrecomputeConfig
from minillm.stages.preparation import RowsConfig, TokenizerConfig
from minillm.stages.quickstart import QuickstartConfig
from minillm.stages.training import RunConfig
from minillm.train.loop import LoopConfig
from minillm.train.optimizer import OptimizerConfig
from minillm.train.step import LossConfig

VOCAB = 448


def _model(width: int, layers: int, heads: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads // 2,
        head_dim=width // heads,
        intermediate_size=width * 8 // 3 // 8 * 8,
        max_length=256,
        qk_norm=True,
    )


def _run(steps: int, rate: float, loss: LossConfig | None = None) -> RunConfig:
    return RunConfig(
        loop=LoopConfig(steps=steps, log_every=max(1, steps // 50), checkpoint_every=200),
        batch_size=8,
        loss=loss or LossConfig(),
        optimizer=OptimizerConfig(name="muon", learning_rate=rate),
    )


def _quick() -> QuickstartConfig:
    return QuickstartConfig(
        scale="quick",
        corpus=CorpusConfig(),
        tokenizer=TokenizerConfig(vocab_size=VOCAB),
        rows=RowsConfig(row_length=128),
        precompute=PrecomputeConfig(),
        evaluation=EvaluationConfig(),
        teacher_model=_model(144, 4, 6),
        student_model=_model(96, 4, 4),
        teacher_run=_run(800, 5e-3),
        student_run=_run(400, 5e-3, LossConfig(cross_entropy=0.5, distillation=0.5)),
        finetune_run=_run(1000, 3e-3),
    )


def _smoke() -> QuickstartConfig:
    quick = _quick()
    return replace(
        quick,
        scale="smoke",
        corpus=CorpusConfig(train_problems=600, heldout_per_domain=4),
        teacher_model=_model(48, 2, 2),
        student_model=_model(32, 2, 2),
        teacher_run=_run(40, 5e-3),
        student_run=_run(20, 5e-3, quick.student_run.loss),
        finetune_run=_run(20, 3e-3),
    )


def _hour() -> QuickstartConfig:
    quick = _quick()
    return replace(
        quick,
        scale="hour",
        corpus=CorpusConfig(train_problems=60_000, levels=(0, 1)),
        teacher_run=_run(4_000, 5e-3),
        student_run=_run(3_000, 5e-3, quick.student_run.loss),
        finetune_run=_run(6_000, 3e-3),
    )


_SCALES = {"quick": _quick, "smoke": _smoke, "hour": _hour}


def get_config(scale: str = "quick") -> ConfigDict:
    """The preset of that name."""
    if scale not in _SCALES:
        raise UserError(
            field="config.scale", got=scale, wanted=", ".join(_SCALES), fix="choose one of them"
        )
    return as_config_dict(_SCALES[scale]())
