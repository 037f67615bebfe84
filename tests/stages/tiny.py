"""A quickstart of a few seconds, for the tests of the stages."""

from dataclasses import replace

from minillm.model.config import ModelConfig
from minillm.stages.corpus import CorpusConfig
from minillm.stages.evaluation import EvaluationConfig
from minillm.stages.precompute import PrecomputeConfig
from minillm.stages.preparation import RowsConfig, TokenizerConfig
from minillm.stages.quickstart import QuickstartConfig
from minillm.stages.training import RunConfig
from minillm.train.loop import LoopConfig
from minillm.train.step import LossConfig

MODEL = ModelConfig(
    vocab_size=400,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=16,
    max_length=256,
)
RUN = RunConfig(loop=LoopConfig(steps=4, log_every=2, checkpoint_every=2), batch_size=2)
CONFIG = QuickstartConfig(
    scale="tiny",
    corpus=CorpusConfig(train_problems=60, heldout_per_domain=1),
    tokenizer=TokenizerConfig(vocab_size=400),
    rows=RowsConfig(row_length=128),
    precompute=PrecomputeConfig(candidates=4, batch_size=8, rows_per_shard=16),
    evaluation=EvaluationConfig(batch_size=8, max_new_tokens=8),
    teacher_model=replace(MODEL, num_layers=2),
    student_model=MODEL,
    teacher_run=RUN,
    student_run=replace(RUN, loss=LossConfig(cross_entropy=0.5, distillation=0.5)),
    finetune_run=RUN,
)
