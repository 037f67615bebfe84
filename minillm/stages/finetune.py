"""The math fine-tune: a trained model and problems in, a model that solves them out."""

import dataclasses

from etils import epath

from minillm.core import hosts
from minillm.core.manifest import Manifest
from minillm.data.corpus import Example, read_problem_records
from minillm.data.load_tokenizer import load_tokenizer
from minillm.stages import preparation
from minillm.stages.corpus import CorpusConfig, examples, make_corpus, read_split
from minillm.stages.preparation import RowsConfig
from minillm.stages.training import (
    RunConfig,
    check_epochs,
    model_config_of,
    run_training,
    with_epochs,
)
from minillm.train.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """A fine-tune of a small student on a CPU.

    Attributes:
        corpus: what to generate where no file of problems is given.
        epochs: passes over the problems, instead of `run.loop.steps`; three where neither is set.
    """

    corpus: CorpusConfig = CorpusConfig()
    rows: RowsConfig = RowsConfig()
    run: RunConfig = RunConfig(optimizer=OptimizerConfig(learning_rate=3e-4))
    epochs: float | None = None

    def __post_init__(self) -> None:
        check_epochs(self.epochs, self.run)


def finetune(
    output_dir: epath.PathLike,
    config: FinetuneConfig,
    *,
    model_path: epath.PathLike,
    problems_path: str | None,
) -> Manifest:
    """Fine-tune on solutions only; the new model folder is `output_dir/model`.

    Args:
        problems_path: the user's .json or .jsonl files, separated by commas; None generates.
    """
    root = epath.Path(output_dir)
    model = model_config_of(model_path)
    rows, tokenizer = root / "rows", load_tokenizer(model_path)
    preparation.check_rows_folder(rows, config.rows, tokenizer)
    with hosts.first_host_first("data prepared"):
        asked = _examples(root, config, problems_path)
        preparation.make_rows(rows, config.rows, asked, tokenizer)
    return run_training(
        root / "model",
        model,
        with_epochs(config.run, config.epochs, rows),
        rows=rows,
        tokenizer=model_path,
        init_from=model_path,
        description="fine-tune",
    )


def _examples(root: epath.Path, config: FinetuneConfig, problems_path: str | None) -> list[Example]:
    if problems_path is not None:
        return [record.example() for record in read_problem_records(problems_path)]
    make_corpus(root / "corpus", config.corpus)
    train = read_split(root / "corpus", "train")
    return examples([record for record in train if "problem" in record])
