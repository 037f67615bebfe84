"""A tokenizer from any SentencePiece model, run by SentencePiece itself."""

import functools
import hashlib
from collections.abc import Iterable
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from minillm.core.errors import UserError
from minillm.core.manifest import fingerprint_of
from minillm.data.foreign_tokenizer import ForeignTokenizer
from minillm.data.merges import SPACE as SPACE_MARK
from minillm.data.special_tokens import Declarations
from minillm.data.token_ends import SPACE, ends_by_spans, exact_ends
from minillm.data.tokenizer_protocol import require_ids, require_unicode

MODEL_NAME = "tokenizer.model"
# The classes of the model file; they are made at run time, so no type checker knows them.
_Model: Any = vars(sentencepiece_model_pb2)["ModelProto"]
_Piece: Any = _Model.SentencePiece


class SentencePieceTokenizer(ForeignTokenizer):
    """The tokenizers of Llama 2, Mistral, Gemma, T5 as their `tokenizer.model`.

    See `Tokenizer` for the methods. Most put a space before the text, which decoding takes away
    again; "▁" in a text is read as a space. Where the model normalises text,
    `decode(encode(text))` is the normalised text.

    Args:
        data: the file's bytes.
        declared: what the files beside it say of special tokens.

    Raises:
        UserError: the file is broken, or no token is an end.
    """

    FILE_NAME = MODEL_NAME

    def __init__(self, data: bytes, declared: Declarations) -> None:
        super().__init__(data, declared)
        place = f"{declared.place}: {MODEL_NAME}"
        self._proto = _parsed(data, place)
        names = {i: piece.piece for i, piece in enumerate(self._proto.pieces)}
        added = {i: entry for i, entry in declared.added.items() if i not in names}
        _check_added(added, len(names), place)
        names |= {i: name for i, (name, _) in added.items()}
        ids = {name: i for i, name in names.items()}
        own = {role: i for role, i in _own_ids(self._proto).items() if i >= 0}
        unmatched = (_Piece.CONTROL, _Piece.UNKNOWN)
        silent = {i for i, piece in enumerate(self._proto.pieces) if piece.type in unmatched}
        self._names = names
        self._roles = declared.resolve(
            id_of=ids.get,
            vocab_size=len(names),
            own=own,
            leading=own.get("bos"),
            special=frozenset(silent | added.keys()),
        )
        for i in self._roles.special - silent - added.keys():
            # A piece of the user's, found in text, unless it is one that stands for no text.
            self._proto.pieces[i].type = _Piece.CONTROL
        self._processor = _loaded(self._proto.SerializeToString(), place)
        self._bytes = [self._piece_bytes(i) for i in range(len(names))]
        first = self._processor.encode("a")
        self._adds_space = bool(first) and (self._bytes[first[0]] or b"").startswith(SPACE)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of every piece's text, score and kind, the normaliser, and the roles."""
        normaliser = self._proto.normalizer_spec
        rules = [
            hashlib.sha256(normaliser.precompiled_charsmap).hexdigest(),
            normaliser.add_dummy_prefix,
            normaliser.remove_extra_whitespaces,
            normaliser.escape_whitespaces,
            self._proto.trainer_spec.model_type,
            self._proto.trainer_spec.treat_whitespace_as_suffix,
        ]
        pieces = [[piece.piece, piece.score, piece.type] for piece in self._proto.pieces]
        added = [[i, self._names[i]] for i in range(len(pieces), len(self._names))]
        return fingerprint_of([pieces, added, rules, self._roles.content()])

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`; the ids that SentencePiece gives."""
        return self._processor.encode(require_unicode(text))

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        """See `Tokenizer`."""
        ids, data = self.encode(text), text.encode()
        pieces = [self._bytes[i] for i in ids]
        ends = exact_ends(pieces, data)
        if ends is None:
            cut = self._processor.encode(text, return_type="offset_mapping", return_bytes=True)
            ends = ends_by_spans(pieces, cut["offsets"], data, added_space=self._adds_space)
        return ids, ends

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer`."""
        plain = require_ids(ids, self.vocab_size)
        return self._processor.decode([i for i in plain if self._bytes[i] is not None])

    def token_name(self, token_id: int) -> str:
        """See `Tokenizer`."""
        return self._names[token_id]

    def _piece_bytes(self, token_id: int) -> bytes | None:
        if token_id in self._roles.special:
            return None
        if self._processor.is_byte(token_id):
            return bytes([int(self._names[token_id][3:5], 16)])
        return self._names[token_id].replace(SPACE_MARK, " ").encode()


def _parsed(data: bytes, place: str) -> Any:
    try:
        proto = _Model.FromString(data)
    except DecodeError as error:
        raise _broken(place) from error
    # What is no UTF-8 comes out of the parser as bytes.
    if not proto.pieces or not all(isinstance(piece.piece, str) for piece in proto.pieces):
        raise _broken(place)
    return proto


def _loaded(model: bytes, place: str) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(model)
    # Of the second kind where the library's own message quotes a piece that is no UTF-8.
    except (RuntimeError, UnicodeDecodeError) as error:
        raise _broken(place) from error
    return processor


def _own_ids(proto: Any) -> dict[str, int]:
    """Ids by role, as SentencePiece finds them: by the names in the training settings."""
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces) if piece.type == _Piece.CONTROL}
    spec = proto.trainer_spec
    names = {"bos": spec.bos_piece, "eos": spec.eos_piece, "pad": spec.pad_piece}
    return {role: ids.get(name, -1) for role, name in names.items()}


def _check_added(added: dict[int, tuple[str, bool]], pieces: int, place: str) -> None:
    """Raise UserError where tokens were added that only a tokenizer.json can say how to find."""
    if sorted(added) != list(range(pieces, pieces + len(added))):
        raise UserError(
            field=f"{place}: added tokens",
            got=sorted(added)[:5],
            wanted=f"ids from {pieces} on, without a gap",
            fix="restore the files that came with the model",
        )
    ordinary = [name for name, special in added.values() if not special]
    if ordinary:
        raise UserError(
            field=f"{place}: added tokens",
            got=f"{ordinary[0]!r}, which stands for text",
            wanted="a tokenizer.json, which says how it is found in text",
            fix="open the folder with transformers' AutoTokenizer and save it: it writes one",
        )


def _broken(place: str) -> UserError:
    return UserError(
        field=place,
        got="a file that is no SentencePiece model",
        wanted="a tokenizer's model file",
        fix="restore the file that came with the model",
    )
