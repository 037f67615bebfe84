"""The quickstart's presets.

python launch/quickstart.py --workdir runs/quickstart
python launch/quickstart.py --workdir runs/smoke --config.scale=smoke     (CI: under 2 minutes)
python launch/quickstart.py --workdir runs/hour --config.scale=hour       (more of everything)

Measured for `quick` on two CPU cores, test split, Python 3.12: 377 s; fine-tuned student 90 %
[88, 92] of 660 problems, 98 % [92, 100] of 65 polynomial derivatives; held-out loss 0.258
distilled, 0.277 without a teacher. `hour` has not been measured yet.
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
        num_kv_heads=heads,
        head_dim=width // heads,
        intermediate_size=width * 8 // 3 // 8 * 8,
        max_length=512,
        qk_norm=True,
        # On a CPU a loop over so few layers costs more time than it saves in compilation.
        scan_layers=False,
    )


def _run(steps: int, rate: float = 5e-3, loss: LossConfig | None = None) -> RunConfig:
    """Small batches and Muon: what a small model learns from a million tokens grows with the
    number of updates more than with anything else."""
    return RunConfig(
        loop=LoopConfig(
            steps=steps,
            log_every=max(1, steps // 50),
            checkpoint_every=min(400, max(1, steps // 5)),
        ),
        batch_size=4,
        loss=loss or LossConfig(),
        optimizer=OptimizerConfig(
            name="muon", learning_rate=rate, schedule="linear", final_fraction=0.02
        ),
    )


def _quick() -> QuickstartConfig:
    # Cross-entropy tells apart what lies in the tail, about which the teacher's targets are silent.
    distil = LossConfig(cross_entropy=0.3, distillation=0.7)
    return QuickstartConfig(
        scale="quick",
        corpus=CorpusConfig(train_problems=15_000, heldout_per_domain=110),
        tokenizer=TokenizerConfig(vocab_size=VOCAB),
        rows=RowsConfig(row_length=128),
        precompute=PrecomputeConfig(candidates=64, batch_size=64, rows_per_shard=1024),
        evaluation=EvaluationConfig(batch_size=64, max_new_tokens=140),
        teacher_model=_model(128, 3, 4),
        student_model=_model(96, 3, 4),
        teacher_run=_run(2_300),
        student_run=_run(1_300, rate=3e-3, loss=distil),
        finetune_run=_run(5_000),
    )


def _smoke() -> QuickstartConfig:
    quick = _quick()
    return replace(
        quick,
        scale="smoke",
        corpus=CorpusConfig(train_problems=600, heldout_per_domain=4),
        precompute=PrecomputeConfig(candidates=16, batch_size=32, rows_per_shard=64),
        evaluation=EvaluationConfig(batch_size=64, max_new_tokens=32),
        teacher_model=_model(48, 2, 2),
        student_model=_model(32, 2, 2),
        teacher_run=_run(60),
        student_run=_run(40, loss=quick.student_run.loss),
        finetune_run=_run(40),
    )


def _hour() -> QuickstartConfig:
    quick = _quick()
    return replace(
        quick,
        scale="hour",
        corpus=CorpusConfig(train_problems=60_000, heldout_per_domain=100, levels=(0, 1)),
        rows=RowsConfig(row_length=256),
        evaluation=EvaluationConfig(batch_size=64, max_new_tokens=256),
        teacher_run=_run(6_000),
        student_run=_run(6_000, loss=quick.student_run.loss),
        finetune_run=_run(16_000),
    )


_SCALES = {"quick": _quick, "smoke": _smoke, "hour": _hour}


def get_config(scale: str = "quick") -> ConfigDict:
    """The preset of that name."""
    if scale not in _SCALES:
        raise UserError(
            field="config.scale", got=scale, wanted=", ".join(_SCALES), fix="choose one of them"
        )
    return as_config_dict(_SCALES[scale]())
