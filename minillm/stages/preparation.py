"""Two small stages: a tokenizer from texts, and packed rows from examples."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging
from etils import epath

from minillm.core import manifest
from minillm.core.configs import require_at_least, to_dict
from minillm.core.errors import UserError
from minillm.core.manifest import Manifest
from minillm.data import rows
from minillm.data.corpus import Example
from minillm.data.packing import tokenize
from minillm.data.tokenizer import BPETokenizer
from minillm.data.tokenizer_protocol import Tokenizer
from minillm.data.tokenizer_training import smallest_vocabulary

TOKENIZER_SCHEMA = "tokenizer/1"
TOKENIZER = "tokenizer.model"
# What a row length that is recommended keeps of the problems, and the number it is a multiple of.
_KEPT_SHARE = 0.95
_ROW_STEP = 16


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Attributes:
    vocab_size: pieces, the 256 bytes and four control symbols among them.
    """

    vocab_size: int = 512

    def __post_init__(self) -> None:
        require_at_least(smallest_vocabulary(()), vocab_size=self.vocab_size)


@dataclasses.dataclass(frozen=True)
class RowsConfig:
    """Attributes:
    row_length: tokens a row.
    rows_per_shard: rows a file.
    """

    row_length: int = 256
    rows_per_shard: int = 4096

    def __post_init__(self) -> None:
        require_at_least(2, row_length=self.row_length)
        require_at_least(1, rows_per_shard=self.rows_per_shard)


def make_tokenizer(
    directory: epath.PathLike, config: TokenizerConfig, texts: Sequence[str]
) -> BPETokenizer:
    """Train a tokenizer into `directory/tokenizer.model`, or load the one that is there."""
    directory = epath.Path(directory)
    inputs = {"texts": manifest.fingerprint_of(list(texts))}
    opened = manifest.open_stage(
        directory, schema=TOKENIZER_SCHEMA, config=to_dict(config), inputs=inputs
    )
    path = directory / TOKENIZER
    if opened.complete:
        manifest.verify_shards(directory, opened)
        return BPETokenizer.load(path)
    tokenizer = BPETokenizer(config.vocab_size, only_seen_commands=True).train(texts)
    tokenizer.save(path)
    finished = dataclasses.replace(
        opened,
        complete=True,
        counts={"vocab_size": tokenizer.vocab_size},
        shards=(manifest.list_shard(directory, TOKENIZER, first=0, records=1),),
    )
    manifest.write_manifest(directory, finished)
    return tokenizer


def check_rows_folder(directory: epath.PathLike, config: RowsConfig, tokenizer: Tokenizer) -> None:
    """Raise UserError where the folder has rows of another tokenizer or length.

    For a stage that would read or generate much before `make_rows` looks.
    """
    manifest.found_stage(
        directory,
        schema=rows.SCHEMA,
        config={"row_length": config.row_length, "rows_per_shard": config.rows_per_shard},
        inputs={"tokenizer": tokenizer.fingerprint},
        all_inputs=False,
    )


def make_rows(
    directory: epath.PathLike,
    config: RowsConfig,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
) -> Manifest:
    """Tokenise and pack examples into rows; their text is what the rows are made from.

    Problems that are longer than a row are left out, with a warning.

    Raises:
        UserError: that would be more than half of them.
    """
    there = manifest.read_manifest(directory)
    if there is None or not there.complete:
        _check_lengths(examples, tokenizer, config.row_length)
    contents = [[example.prompt, example.completion] for example in examples]
    made = rows.write_rows(
        directory,
        examples,
        tokenizer=tokenizer,
        row_length=config.row_length,
        config={},
        inputs={"examples": manifest.fingerprint_of(contents)},
        rows_per_shard=config.rows_per_shard,
    )
    if dropped := made.counts["dropped_documents"]:
        logging.warning(
            "%s: %d of %d problems are longer than a row of %d tokens and left out; "
            "raise rows.row_length to keep them",
            directory,
            dropped,
            made.counts["documents"],
            config.row_length,
        )
    return made


def _check_lengths(examples: Sequence[Example], tokenizer: Tokenizer, row_length: int) -> None:
    """Raise UserError where more than half of the problems are longer than a row."""
    asked = [example for example in examples if example.prompt]
    lengths = np.sort([len(tokenize(example, tokenizer).tokens) for example in asked])
    longer = int(np.count_nonzero(lengths > row_length))
    if 2 * longer <= len(lengths):
        return
    enough = int(np.quantile(lengths, _KEPT_SHARE, method="higher"))
    enough = -(-enough // _ROW_STEP) * _ROW_STEP
    raise UserError(
        field="rows.row_length",
        got=f"{row_length}, and {longer} of {len(lengths)} problems are longer",
        wanted="room for half of the problems at least",
        fix=f"{enough} keeps {_KEPT_SHARE:.0%} of them, with a model.max_length of as much or more",
    )
