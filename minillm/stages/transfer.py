"""Knowledge transfer: packed rows and teachers' stores in, a distilled student out."""

import dataclasses
from collections.abc import Sequence
from dataclasses import replace

from etils import epath

from minillm.core.manifest import Manifest
from minillm.data.load_tokenizer import load_tokenizer
from minillm.model.config import ModelConfig
from minillm.stages.training import RunConfig, check_epochs, run_training, with_epochs
from minillm.train.step import LossConfig


@dataclasses.dataclass(frozen=True)
class TransferConfig:
    """A distillation; the default student is small enough to try on a laptop.

    Attributes:
        model: the student; its vocabulary size becomes the tokenizer's.
        epochs: passes over the rows, instead of `run.loop.steps`; three where neither is set.
    """

    model: ModelConfig = ModelConfig(
        vocab_size=512,
        hidden_size=96,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=24,
        intermediate_size=256,
    )
    run: RunConfig = RunConfig(loss=LossConfig(cross_entropy=0.5, distillation=0.5))
    epochs: float | None = None

    def __post_init__(self) -> None:
        check_epochs(self.epochs, self.run)


def transfer(
    output_dir: epath.PathLike,
    config: TransferConfig,
    *,
    stores: Sequence[str],
    rows: epath.PathLike,
    tokenizer_path: epath.PathLike,
) -> Manifest:
    """Distil from one store, or from several with equal weight; writes a model folder."""
    size = load_tokenizer(tokenizer_path).vocab_size
    return run_training(
        output_dir,
        replace(config.model, vocab_size=size),
        with_epochs(config.run, config.epochs, rows),
        rows=rows,
        tokenizer=tokenizer_path,
        stores=stores,
        description="distil",
    )
