"""What a tokenizer is to the rest of minillm, whatever file it came from."""

from collections.abc import Iterable
from typing import Protocol

from etils import epath

from minillm.core.errors import UserError


class Tokenizer(Protocol):
    """Text to ids and back. Implementations can be pickled (Grain's workers get a copy).

    A *special* id stands for no text: beginning, end, padding, unknown, the marks of a chat.
    """

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    @property
    def pad_id(self) -> int:
        """What fills a row's end; where the files name none, the end id. Padding is known by its
        segment id 0, so any id will do."""

    @property
    def bos_id(self) -> int | None:
        """The beginning; None where the model has none (Qwen2)."""

    @property
    def adds_bos(self) -> bool:
        """Whether the model expects a sequence to begin with `bos_id`."""

    @property
    def eos_id(self) -> int:
        """What stands at the end of a document."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """All ids at which the model's continuation ends; `eos_id` is the first."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what decides about ids and text, not of a file's bytes."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without beginning or end.

        Text that looks like a special token ("</s>") is text, and never becomes its id.

        Raises:
            UserError: the text holds a lone surrogate, which is no Unicode character.
        """

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        """The ids of `encode`, and for each the byte of the text's UTF-8 at which it ends.

        Ends never fall and the last is the number of bytes. A space that the tokenizer puts
        before the text has no bytes; a token that holds part of a character ends inside it.

        A tokenizer that changes text before it cuts it (NFC, lower case, white space run
        together) has ends in the text as it was given: exact where a token's text was not
        changed, otherwise at the end of the characters it was made from, in proportion where
        several tokens share one changed character.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Special ids give nothing; broken UTF-8 gives replacement characters.

        Raises:
            UserError: an id outside the vocabulary.
        """

    def token_bytes(self, token_id: int) -> bytes | None:
        """What a token stands for within a text, in UTF-8; None where it is special."""

    def token_name(self, token_id: int) -> str:
        """The token as its file writes it."""

    def save(self, directory: epath.PathLike) -> epath.Path:
        """Write the files that `load_tokenizer` reads back as an equal tokenizer; the main one."""


def beginning(tokenizer: Tokenizer) -> list[int]:
    """The ids before a text: the beginning where the model expects one."""
    return [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []


def require_unicode(text: str) -> str:
    """The text itself, if it can be written as UTF-8; UserError for a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            field="text",
            got=f"a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}",
            wanted="Unicode characters",
            fix="read the file with its true encoding, or drop the character",
        ) from None
    return text


def require_ids(ids: Iterable[int], vocab_size: int) -> list[int]:
    """The ids as a list; UserError where one is outside the vocabulary."""
    plain = [int(i) for i in ids]
    outside = [i for i in plain if not 0 <= i < vocab_size]
    if outside:
        raise UserError(
            field="ids",
            got=outside[0],
            wanted=f"ids from 0 to {vocab_size - 1}",
            fix="decode with the tokenizer that the model was trained with",
        )
    return plain
