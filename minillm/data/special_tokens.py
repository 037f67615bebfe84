"""Beginning, end and padding: what the JSON files beside a tokenizer say of them."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from minillm.core.errors import UserError
from minillm.core.manifest import write_json

TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
GENERATION_CONFIG = "generation_config.json"
MODEL_CONFIG = "config.json"
_OF_TOKENIZER = (TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS)
_OF_MODEL = (GENERATION_CONFIG, MODEL_CONFIG)
_ROLES = ("bos", "eos", "pad", "unk")
_LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclasses.dataclass(frozen=True)
class Roles:
    """Which ids begin, end and fill.

    Attributes:
        eos_ids: the first stands at the end of a document.
        special: ids that stand for no text, these among them.
    """

    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int
    adds_bos: bool
    special: frozenset[int]

    def content(self) -> list[Any]:
        """What of it decides about packed rows, for a fingerprint.

        A beginning that is not put there is left out: it often stands in the model's
        configuration alone, and the same tokenizer elsewhere has none.
        """
        begin = self.bos_id if self.adds_bos else None
        return [begin, self.eos_ids[0], self.pad_id, self.adds_bos, sorted(self.special)]


@dataclasses.dataclass(frozen=True)
class Declarations:
    """The JSON objects beside a tokenizer, by file name.

    Tokens are named in the tokenizer's files, in the model's they are numbers. The tokenizer's
    come first: a model's `config.json` is often a copy of its predecessor's.
    """

    files: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    place: str = "tokenizer"

    @property
    def added(self) -> dict[int, tuple[str, bool]]:
        """Tokens given to the tokenizer after its training, by id: name, and whether special."""
        found = {}
        special_names = self.special_names
        for token, number in self.files.get(ADDED_TOKENS, {}).items():
            found[self._number(ADDED_TOKENS, token, number)] = (token, token in special_names)
        field = "added_tokens_decoder"
        for key, entry in self._mapping(TOKENIZER_CONFIG, field).items():
            name = _name_in(entry)
            if not key.isdecimal() or name is None:
                raise self._wrong(TOKENIZER_CONFIG, field, {key: entry}, "ids with their tokens")
            special = bool(entry.get("special")) if isinstance(entry, Mapping) else False
            found[int(key)] = (name, special or name in special_names)
        return found

    @property
    def special_names(self) -> frozenset[str]:
        """Tokens with a role, and those listed as special."""
        names = {name for role in _ROLES for name in self._names(role)}
        for file in (TOKENIZER_CONFIG, SPECIAL_TOKENS):
            for key in _LISTS:
                listed = self.files.get(file, {}).get(key) or []
                entries = list(listed.values()) if isinstance(listed, Mapping) else listed
                if not isinstance(entries, list):
                    raise self._wrong(file, key, listed, "a list of tokens")
                names |= {name for name in map(_name_in, entries) if name is not None}
        return frozenset(names)

    def resolve(
        self,
        *,
        id_of: Callable[[str], int | None],
        vocab_size: int,
        own: Mapping[str, int],
        leading: int | None,
        special: frozenset[int],
    ) -> Roles:
        """The roles in a vocabulary.

        Args:
            id_of: a token's id by its name.
            own: ids by role that the tokenizer's file itself gives.
            leading: the id that the tokenizer's file itself puts before a text.
            special: ids that its file marks as special.

        Raises:
            UserError: no end, an end or a needed beginning outside the vocabulary.
        """

        def candidates(role: str) -> Iterator[int]:
            named = map(id_of, self._names(role))
            yield from (number for number in named if number is not None)
            if role in own:
                yield own[role]
            yield from self._numbers(role)

        eos_ids = tuple(dict.fromkeys(candidates("eos")))
        if not eos_ids:
            raise UserError(
                field=f"{self.place}: eos_token",
                got="no end among its tokens",
                wanted="the token that ends a document",
                fix=f'name it in {TOKENIZER_CONFIG}, as {{"eos_token": "</s>"}}',
            )
        adds = self._adds_bos()
        bos_id = next(candidates("bos"), None)
        if adds is None:
            adds = leading is not None
            bos_id = leading if adds else bos_id
        adds = adds and bos_id is not None
        for role, numbers in (("eos", eos_ids), ("bos", (bos_id,) if adds else ())):
            for number in numbers:
                if number is None or not 0 <= number < vocab_size:
                    raise UserError(
                        field=f"{self.place}: {role}_token_id",
                        got=number,
                        wanted=f"an id of the tokenizer, 0 to {vocab_size - 1}",
                        fix="give the tokenizer and the configuration of one model",
                    )
        if bos_id is not None and not 0 <= bos_id < vocab_size:
            bos_id = None
        pads = (number for number in candidates("pad") if 0 <= number < vocab_size)
        pad_id = next(pads, eos_ids[0])
        named = {id_of(name) for name in self.special_names}
        named |= {number for number, (_, is_special) in self.added.items() if is_special}
        ids = special | set(eos_ids) | {i for i in named if i is not None and i < vocab_size}
        if adds and bos_id is not None:
            ids |= {bos_id}
        return Roles(bos_id, eos_ids, pad_id, adds, ids)

    def save(self, directory: epath.Path, roles: Roles) -> None:
        """Write the tokenizer's files, and the ids that came from the model's."""
        for name in _OF_TOKENIZER:
            if name in self.files:
                # The names of classes to fetch and run: of no use here, and better not passed on.
                kept = {key: value for key, value in self.files[name].items() if key != "auto_map"}
                write_json(directory / name, kept)
        ids: dict[str, Any] = {"eos_token_id": list(roles.eos_ids), "pad_token_id": roles.pad_id}
        if roles.bos_id is not None:
            ids["bos_token_id"] = roles.bos_id
        write_json(directory / GENERATION_CONFIG, ids)

    def _adds_bos(self) -> bool | None:
        value = self.files.get(TOKENIZER_CONFIG, {}).get("add_bos_token")
        if value is not None and not isinstance(value, bool):
            raise self._wrong(TOKENIZER_CONFIG, "add_bos_token", value, "true or false")
        return value

    def _names(self, role: str) -> list[str]:
        key = f"{role}_token"
        found = []
        for file in (TOKENIZER_CONFIG, SPECIAL_TOKENS):
            value = self.files.get(file, {}).get(key)
            name = _name_in(value)
            if value is not None and name is None:
                raise self._wrong(file, key, value, "a token")
            if name is not None:
                found.append(name)
        # The second file repeats the first, or is older.
        return found[:1]

    def _numbers(self, role: str) -> list[int]:
        key = f"{role}_token_id"
        found = []
        for file in _OF_MODEL:
            content = self.files.get(file, {})
            value = content.get(key)
            if value is None and isinstance(content.get("text_config"), Mapping):
                value = content["text_config"].get(key)
            if value is None:
                continue
            listed = value if isinstance(value, list) else [value]
            found += [self._number(file, key, number) for number in listed]
        return found

    def _number(self, file: str, key: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(file, key, value, "an integer")
        return value

    def _mapping(self, file: str, key: str) -> Mapping[str, Any]:
        value = self.files.get(file, {}).get(key) or {}
        if not isinstance(value, Mapping):
            raise self._wrong(file, key, value, "an object")
        return value

    def _wrong(self, file: str, key: str, got: Any, wanted: str) -> UserError:
        text = json.dumps(got, default=str)
        return UserError(
            field=f"{self.place}: {key} in {file}",
            got=text if len(text) <= 60 else text[:57] + "...",
            wanted=wanted,
            fix="restore the file that came with the model",
        )


def read_declarations(folder: epath.Path) -> Declarations:
    """What stands in a folder's files; those that are not there say nothing.

    Raises:
        UserError: a file that holds no JSON object.
    """
    files = {}
    for name in (*_OF_TOKENIZER, *_OF_MODEL):
        path = folder / name
        if path.exists():
            files[name] = read_object(path)
    return Declarations(files, str(folder))


def read_object(path: epath.Path) -> dict[str, Any]:
    """A file's JSON object; UserError where it holds something else, or cannot be read."""
    return parse_object(read_bytes(path), str(path))


def read_bytes(path: epath.Path) -> bytes:
    """What a file holds; UserError where it cannot be read, or is a folder."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            field=str(path),
            got=error.strerror or str(error),
            wanted="a file that can be read",
            fix="check the path and its permissions, or restore the file",
        ) from error


def parse_object(data: bytes, place: str) -> dict[str, Any]:
    """The JSON object in a file's bytes; UserError, naming the place, for something else."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(
            field=place,
            got=f"no JSON that can be read ({error})",
            wanted="a JSON object",
            fix="restore the file that came with the model",
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            field=place,
            got=f"a JSON {type(content).__name__}",
            wanted="a JSON object",
            fix="restore the file that came with the model",
        )
    return content


def _name_in(value: Any) -> str | None:
    """A token as text, or as an object that says how it is matched."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None
