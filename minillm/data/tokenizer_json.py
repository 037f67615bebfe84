"""What a `tokenizer.json` holds: its tokens, their bytes, and how to keep text from naming one."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from minillm.core.errors import UserError
from minillm.data.special_tokens import parse_object

_KINDS = ("BPE", "Unigram")
_BYTE_NAME = re.compile(r"<0x([0-9A-F]{2})>")
# Around a special token's name where text is cut: Unicode sets these two apart for a program's
# own use, so that they stand in no text.
_HIDDEN = ("\ufdd0", "\ufdd1")
# What decides about ids and text. The rest says how results are cut to length, or is a version.
_CONTENT = ("normalizer", "pre_tokenizer", "decoder", "added_tokens", "model")


class TokenizerFile:
    """A `tokenizer.json`, checked as far as minillm reads it itself.

    Attributes:
        document: the JSON object.
        added: names of the tokens beside the model's pieces, by id.
        names: of all tokens, by id.
        special: ids that the file marks as special, or the model's unknown.
    """

    def __init__(self, data: bytes, place: str) -> None:
        self.place = place
        self.document = parse_object(data, place)
        self._model = self._object(self.document, "model")
        kind = self._model.get("type") or ("BPE" if "merges" in self._model else None)
        if kind not in _KINDS:
            raise self._wrong("model.type", kind, " or ".join(_KINDS))
        for key in ("continuing_subword_prefix", "end_of_word_suffix"):
            if self._model.get(key):
                raise self._wrong(f"model.{key}", self._model[key], "none: bytes as they stand")
        self._pieces = self._read_pieces()
        self.added, marked = self._read_added()
        self.names = {**self._pieces, **self.added}
        self.special = frozenset(marked | self._unknown())

    def id_of(self) -> dict[str, int]:
        """Ids by name; where an added token has a piece's name, they are one token."""
        return {name: number for number, name in self.names.items()}

    def leading(self) -> int | None:
        """The special id that the file's own post-processor puts before a text.

        Raises:
            UserError: more than one.
        """
        for part in _parts(self.document.get("post_processor"), "processors"):
            if part.get("type") in ("BertProcessing", "RobertaProcessing"):
                pair = part.get("cls")
                if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], int):
                    return pair[1]
            if part.get("type") == "TemplateProcessing":
                return self._first_of_template(part)
        return None

    def content(self) -> dict[str, Any]:
        """The parts that decide about ids and text; merges in one of their two spellings."""
        found = {key: self.document.get(key) for key in _CONTENT}
        if "merges" in self._model:
            found["model"] = {**self._model, "merges": [list(pair) for pair in self._merges()]}
        return found

    def hidden(self, special: Mapping[int, str]) -> dict[str, Any]:
        """The document with special tokens under names that no text holds, and their old ids.

        The library finds a token's name in a text wherever it is a piece of the vocabulary, be
        it special or not.
        """
        names = {name: name.join(_HIDDEN) for name in special.values()}
        model = {**self._model, "dropout": None}
        vocabulary = self._model["vocab"]
        if isinstance(vocabulary, dict):
            model["vocab"] = {names.get(name, name): i for name, i in vocabulary.items()}
            model["merges"] = [
                list(pair) for pair in self._merges() if not names.keys() & {*pair, "".join(pair)}
            ]
            unknown = model.get("unk_token")
            if isinstance(unknown, str):
                model["unk_token"] = names.get(unknown, unknown)
        else:
            model["vocab"] = [[names.get(name, name), score] for name, score in vocabulary]
        tokens = self.document.get("added_tokens") or []
        return {
            **self.document,
            "model": model,
            "added_tokens": [
                {**token, "content": names[token["content"]], "special": True}
                if token["content"] in names
                else token
                for token in tokens
            ],
            "post_processor": None,
            "truncation": None,
            "padding": None,
        }

    def piece_bytes(self, special: frozenset[int]) -> list[bytes | None]:
        """Bytes of every id up to the last; None for special ids and for those without a token.

        The decoder treats added tokens as it does pieces, and often they are both: Gemma lists
        runs of "▁" as added, which its merges make of spaces.
        """
        decoders = list(_parts(self.document.get("decoder"), "decoders"))
        cutters = list(_parts(self.document.get("pre_tokenizer"), "pretokenizers"))
        kinds = {str(part.get("type")) for part in (*decoders, *cutters)}
        letters = _byte_letters() if "ByteLevel" in kinds else None
        spaces = {
            str(part.get("replacement", "▁"))
            for part in decoders
            if part.get("type") == "Metaspace"
        } | {
            part["pattern"]["String"]
            for part in decoders
            if part.get("type") == "Replace"
            and part.get("content") == " "
            and isinstance(part.get("pattern"), dict)
            and isinstance(part["pattern"].get("String"), str)
        }
        in_bytes = bool(self._model.get("byte_fallback")) or "ByteFallback" in kinds
        table: list[bytes | None] = [None] * (max(self.names) + 1)
        for number, name in self.names.items():
            if number in special:
                continue
            if letters is not None:
                # Of a token that is no piece, text holds the name. A letter outside the alphabet
                # is no byte; the library writes the piece as it is.
                known = [letters.get(letter) for letter in name]
                in_letters = None not in known and self._pieces.get(number) == name
                table[number] = bytes(known) if in_letters else name.encode()  # type: ignore[arg-type]
            elif in_bytes and (match := _BYTE_NAME.fullmatch(name)):
                table[number] = bytes([int(match[1], 16)])
            else:
                for space in spaces:
                    name = name.replace(space, " ")
                table[number] = name.encode()
        return table

    def _read_pieces(self) -> dict[int, str]:
        vocabulary = self._model.get("vocab")
        if isinstance(vocabulary, dict) and self._model.get("type") != "Unigram":
            numbers = list(vocabulary.values())
            if not all(type(i) is int and i >= 0 for i in numbers):
                raise self._wrong("model.vocab", "an id that is none", "integers from 0")
            if len(set(numbers)) != len(numbers):
                raise self._wrong("model.vocab", "two pieces of one id", "an id for each piece")
            if not numbers or max(numbers) > 2 * len(numbers) + 1024:
                raise self._wrong("model.vocab", f"{len(numbers)} pieces", "pieces, ids from 0 on")
            return {number: name for name, number in vocabulary.items()}
        if isinstance(vocabulary, list) and self._model.get("type") == "Unigram":
            good = all(
                isinstance(entry, list)
                and len(entry) == 2
                and isinstance(entry[0], str)
                and isinstance(entry[1], int | float)
                for entry in vocabulary
            )
            if good and vocabulary:
                return {number: name for number, (name, _) in enumerate(vocabulary)}
        raise self._wrong("model.vocab", type(vocabulary).__name__, "the pieces of its model type")

    def _read_added(self) -> tuple[dict[int, str], set[int]]:
        listed = self.document.get("added_tokens") or []
        if not isinstance(listed, list):
            raise self._wrong("added_tokens", type(listed).__name__, "a list")
        added: dict[int, str] = {}
        special = set()
        for token in listed:
            number = token.get("id") if isinstance(token, dict) else None
            name = token.get("content") if isinstance(token, dict) else None
            if type(number) is not int or number < 0 or not isinstance(name, str):
                raise self._wrong("added_tokens", token, "tokens with id and content")
            added[number] = name
            if token.get("special"):
                special.add(number)
        return added, special

    def _unknown(self) -> set[int]:
        number = self._model.get("unk_id")
        if isinstance(number, int):
            return {number}
        name = self._model.get("unk_token")
        return {i for i, piece in self._pieces.items() if piece == name}

    def _merges(self) -> Iterator[tuple[str, ...]]:
        merges = self._model.get("merges") or []
        if not isinstance(merges, list):
            raise self._wrong("model.merges", type(merges).__name__, "a list of pairs")
        for pair in merges:
            parts = tuple(pair.split(" ")) if isinstance(pair, str) else pair
            if not isinstance(parts, list | tuple) or not all(isinstance(p, str) for p in parts):
                raise self._wrong("model.merges", pair, "pairs of pieces")
            yield tuple(parts)

    def _first_of_template(self, part: Mapping[str, Any]) -> int | None:
        single, tokens = part.get("single"), part.get("special_tokens")
        if not isinstance(single, list) or not isinstance(tokens, dict):
            raise self._wrong(
                "post_processor", "a template without parts", "single, special_tokens"
            )
        ids: list[int] = []
        for piece in single:
            if not isinstance(piece, dict) or "SpecialToken" not in piece:
                break
            token = piece["SpecialToken"]
            name = token.get("id") if isinstance(token, dict) else None
            entry = tokens.get(name) if isinstance(name, str) else None
            numbers = entry.get("ids") if isinstance(entry, dict) else None
            if not isinstance(numbers, list) or not all(type(i) is int for i in numbers):
                raise self._wrong("post_processor", token, "a token of its special_tokens")
            ids += numbers
        if len(ids) > 1:
            raise self._wrong("post_processor", f"{ids} before a text", "one beginning at most")
        return ids[0] if ids else None

    def _object(self, holder: Mapping[str, Any], key: str) -> dict[str, Any]:
        value = holder.get(key)
        if not isinstance(value, dict):
            raise self._wrong(key, type(value).__name__, "an object")
        return value

    def _wrong(self, key: str, got: Any, wanted: str) -> UserError:
        return UserError(
            field=f"{self.place}: {key}",
            got=str(got)[:80],
            wanted=wanted,
            fix="give the tokenizer.json that came with the model",
        )


def _parts(component: Any, key: str) -> Iterator[Mapping[str, Any]]:
    """A component, or those of a sequence."""
    if not isinstance(component, dict):
        return
    if component.get("type") == "Sequence":
        for part in component.get(key) or ():
            yield from _parts(part, key)
    else:
        yield component


def _byte_letters() -> dict[str, int]:
    """The alphabet of byte-level BPE: printable Latin-1 stands for itself, the other bytes for
    the letters from U+0100 on, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}
