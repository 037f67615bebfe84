"""A tokenizer from `tokenizer.json`, run by the `tokenizers` library."""

import functools
import json
from collections.abc import Iterable

import numpy as np
import tokenizers

from minillm.core.errors import UserError
from minillm.core.manifest import fingerprint_of
from minillm.data.foreign_tokenizer import ForeignTokenizer
from minillm.data.special_tokens import Declarations
from minillm.data.token_ends import SPACE, ends_by_spans, exact_ends
from minillm.data.tokenizer_json import TokenizerFile
from minillm.data.tokenizer_protocol import require_ids, require_unicode

JSON_NAME = "tokenizer.json"
# Runs of spaces and line breaks, since those are often added tokens.
_PROBE = "Hello world, x = 12\n    y  = 3\n\n"
# Unicode's last code point, a piece of no model: what is done with the unknown.
_UNKNOWN = "\U0010ffff"


class JsonTokenizer(ForeignTokenizer):
    """Byte-level BPE, BPE over "▁", or Unigram: what Llama 3, Qwen, SmolLM, Phi and T5 use.

    See `Tokenizer` for the methods. Where the file normalises text, `decode(encode(text))` is
    the normalised text; where it has no bytes and no unknown token, letters may be lost.

    Args:
        data: the file's bytes.
        declared: what the files beside it say of special tokens.

    Raises:
        UserError: the file is broken, of another kind (WordPiece, WordLevel), or names no end.
    """

    FILE_NAME = JSON_NAME

    def __init__(self, data: bytes, declared: Declarations) -> None:
        super().__init__(data, declared)
        place = f"{declared.place}: {JSON_NAME}"
        file = TokenizerFile(data, place)
        self._names = file.names
        self._roles = declared.resolve(
            id_of=file.id_of().get,
            vocab_size=max(file.names) + 1,
            own={},
            leading=file.leading(),
            special=file.special,
        )
        special = {i: file.names[i] for i in self._roles.special if i in file.names}
        self._tokenizer = _built(file, special, place)
        self._bytes = file.piece_bytes(self._roles.special)
        self._content = file.content
        self._adds_space = self._probe_space()
        self._check_bytes(place)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of pieces, merges, normaliser, cutting rules, and roles."""
        return fingerprint_of([self._content(), self._roles.content()])

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`; the ids that transformers gives with `split_special_tokens=True`."""
        return self._cut(text).ids

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        """See `Tokenizer`."""
        cut, data = self._cut(text), text.encode()
        pieces = [self._bytes[i] for i in cut.ids]
        ends = exact_ends(pieces, data)
        if ends is None:
            at = _byte_offsets(text)
            spans = [(int(at[start]), int(at[stop])) for start, stop in cut.offsets]
            added = self._adds_space or self._joined(cut.ids) == SPACE + self._normalised(text)
            ends = ends_by_spans(pieces, spans, data, added_space=added)
        return cut.ids, ends

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer`."""
        plain = require_ids(ids, self.vocab_size)
        return self._tokenizer.decode([i for i in plain if self._bytes[i] is not None])

    def token_name(self, token_id: int) -> str:
        """See `Tokenizer`."""
        return self._names.get(token_id, "")

    def _cut(self, text: str) -> tokenizers.Encoding:
        return self._tokenizer.encode(require_unicode(text), add_special_tokens=False)

    def _joined(self, ids: list[int]) -> bytes:
        return b"".join(self._bytes[i] or b"" for i in ids)

    def _normalised(self, text: str) -> bytes:
        normaliser = self._tokenizer.normalizer
        return (text if normaliser is None else normaliser.normalize_str(text)).encode()

    def _probe_space(self) -> bool:
        """Whether the normaliser itself puts a space before every text, one with a space too."""
        return self._joined(self._cut(" a").ids).startswith(SPACE * 2)

    def _check_bytes(self, place: str) -> None:
        """Raise UserError where pieces do not say their bytes, as a test of `piece_bytes`."""
        ids = self._cut(_PROBE).ids
        joined = self._joined(ids).decode(errors="replace")
        if joined.removeprefix(" ") != self.decode(ids).removeprefix(" "):
            raise UserError(
                field=f"{place} decoder",
                got=f"{self.decode(ids)!r} from pieces of {joined!r}",
                wanted="pieces that hold a text's bytes: byte-level, or a space as ▁",
                fix="minillm reads byte-level BPE, BPE over ▁ and Unigram; give such a teacher",
            )


def _built(file: TokenizerFile, special: dict[int, str], place: str) -> tokenizers.Tokenizer:
    """The library's tokenizer, with special tokens hidden from text."""
    document = file.hidden(special)
    wanted = {token["id"]: token["content"] for token in document["added_tokens"]}
    try:
        built = tokenizers.Tokenizer.from_str(json.dumps(document, ensure_ascii=False))
        built.encode_special_tokens = True
        # Some errors show only when text is cut, or written.
        for text in (_PROBE, _UNKNOWN):
            built.decode(built.encode(text, add_special_tokens=False).ids)
    # The library raises no class of its own.
    except Exception as error:
        raise UserError(
            field=place,
            got=f"a file that the library tokenizers does not read ({error})",
            wanted="a tokenizer.json",
            fix="restore the file that came with the model",
        ) from error
    found = {number: token.content for number, token in built.get_added_tokens_decoder().items()}
    if found != wanted:
        number = min(i for i in found.keys() | wanted.keys() if found.get(i) != wanted.get(i))
        raise UserError(
            field=f"{place}: added_tokens",
            got=f"id {number} for {file.names.get(number, 'no token')!r}",
            wanted="ids without a gap, from the model's pieces on",
            fix="restore the file that came with the model",
        )
    return built


def _byte_offsets(text: str) -> np.ndarray:
    """For every character of a text, and its end, the byte of its UTF-8 where it begins."""
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    sizes = 1 + (points >= 0x80) + (points >= 0x800).astype(int) + (points >= 0x10000)
    return np.concatenate([[0], np.cumsum(sizes)])
