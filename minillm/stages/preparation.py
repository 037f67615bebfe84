"""Two small stages: a tokenizer from texts, and packed rows from examples."""

import dataclasses
from collections.abc import Iterable, Sequence

from etils import epath

from minillm.core import manifest
from minillm.core.configs import to_dict
from minillm.core.manifest import Manifest
from minillm.data import rows
from minillm.data.corpus import Example
from minillm.data.tokenizer import BPETokenizer

TOKENIZER_SCHEMA = "tokenizer/1"
TOKENIZER = "tokenizer.model"


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Attributes:
    vocab_size: pieces, the 256 bytes and four control symbols among them.
    """

    vocab_size: int = 512


@dataclasses.dataclass(frozen=True)
class RowsConfig:
    """Attributes:
    row_length: tokens a row.
    rows_per_shard: rows a file.
    """

    row_length: int = 256
    rows_per_shard: int = 4096


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


def make_rows(
    directory: epath.PathLike,
    config: RowsConfig,
    examples: Iterable[Example],
    tokenizer: BPETokenizer,
    inputs: dict[str, str],
) -> Manifest:
    """Tokenise and pack examples into rows.

    Args:
        inputs: fingerprints of what the examples come from.
    """
    return rows.write_rows(
        directory,
        examples,
        tokenizer=tokenizer,
        row_length=config.row_length,
        config={},
        inputs=inputs,
        rows_per_shard=config.rows_per_shard,
    )
