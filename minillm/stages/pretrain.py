"""Next-token training from scratch on the user's own data: tokenizer, rows, model."""

import dataclasses
import itertools
from dataclasses import replace

from etils import epath

from minillm import problems
from minillm.core import hosts
from minillm.core.errors import UserError
from minillm.core.manifest import Manifest
from minillm.data.corpus import Example, builtin_text_path, problem_prompt, read_examples
from minillm.data.load_tokenizer import load_tokenizer
from minillm.data.tokenizer_protocol import Tokenizer
from minillm.model.config import ModelConfig
from minillm.stages import preparation
from minillm.stages.preparation import RowsConfig, TokenizerConfig
from minillm.stages.training import RunConfig, check_epochs, run_training, with_epochs

MOCK_PROBLEMS = 200


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """A training from scratch; the default is small enough to try on a laptop.

    Attributes:
        model: its vocabulary size becomes the tokenizer's, and its longest sequence a row at
            least.
        epochs: passes over the rows, instead of `run.loop.steps`; three where neither is set.
    """

    model: ModelConfig = ModelConfig(
        vocab_size=512,
        hidden_size=128,
        num_layers=4,
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,
        intermediate_size=352,
    )
    tokenizer: TokenizerConfig = TokenizerConfig()
    rows: RowsConfig = RowsConfig()
    run: RunConfig = RunConfig()
    epochs: float | None = None

    def __post_init__(self) -> None:
        check_epochs(self.epochs, self.run)


def with_sizes(
    config: PretrainConfig, *, hidden_size: int | None, num_heads: int | None
) -> PretrainConfig:
    """The settings with another width or number of heads; the heads fill the width.

    Raises:
        UserError: the heads do not divide the width into even parts.
    """
    if hidden_size is None and num_heads is None:
        return config
    width = config.model.hidden_size if hidden_size is None else hidden_size
    heads = config.model.num_heads if num_heads is None else num_heads
    if heads < 1 or width < 1 or width % (2 * heads):
        raise UserError(
            field="num_heads",
            got=f"{heads} with hidden_size {width}",
            wanted="heads of an even size that fill hidden_size",
            fix=f"try --hidden_size {2 * max(heads, 1) * max(1, width // (2 * max(heads, 1)))}",
        )
    groups = config.model.num_kv_heads if heads % config.model.num_kv_heads == 0 else heads
    model = replace(
        config.model,
        hidden_size=width,
        num_heads=heads,
        num_kv_heads=groups,
        head_dim=width // heads,
    )
    return replace(config, model=model)


def mock_examples() -> list[Example]:
    """Data for a try without any: the text that comes with minillm and some problems."""
    made = itertools.islice(problems.stream(0, "train"), MOCK_PROBLEMS)
    asked = [Example(problem_prompt(each.problem), each.solution) for _, each in made]
    return [*read_examples(builtin_text_path()), *asked]


def pretrain(
    output_dir: epath.PathLike,
    config: PretrainConfig,
    *,
    data_path: str | None,
    tokenizer_path: str | None = None,
    use_mock: bool = False,
) -> Manifest:
    """Train a model into `output_dir`, with its tokenizer and rows in folders inside it.

    Args:
        data_path: .txt, .json or .jsonl files, separated by commas.
        tokenizer_path: a folder or file of a tokenizer; without it one is trained on the data.
        use_mock: take `mock_examples` instead of files.
    """
    if data_path is None and use_mock:
        examples = mock_examples()
    elif data_path is not None and not use_mock:
        examples = list(read_examples(data_path))
    else:
        raise UserError(
            field="data_path",
            got="--use_mock and --data_path together" if use_mock else "nothing",
            wanted="the path of a .txt, .json or .jsonl file, or --use_mock",
            fix="give one of the two",
        )
    root = epath.Path(output_dir)
    rows = root / "rows"
    with hosts.first_host_first("data prepared"):
        if tokenizer_path is None:
            texts = [example.text for example in examples]
            tokenizer: Tokenizer = preparation.make_tokenizer(
                root / "tokenizer", config.tokenizer, texts
            )
            tokenizer_path = str(root / "tokenizer")
        else:
            tokenizer = load_tokenizer(tokenizer_path)
        preparation.make_rows(rows, config.rows, examples, tokenizer)
    model = replace(
        config.model,
        vocab_size=tokenizer.vocab_size,
        max_length=max(config.model.max_length, config.rows.row_length),
    )
    run = with_epochs(config.run, config.epochs, rows)
    return run_training(root / "model", model, run, rows=rows, tokenizer=tokenizer_path)
