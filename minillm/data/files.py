"""Files of a corpus: which are meant by a path, and their lines and records with their places."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from minillm.core.errors import UserError
from minillm.core.manifest import MANIFEST_NAME

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

SUFFIXES = (".txt", ".json", ".jsonl")
_PATTERN = re.compile(r"[*?\[]")


def resolve_paths(paths: Paths) -> list[epath.Path]:
    """Files meant by a path, several separated by commas, patterns like `a/*.txt`, or folders.

    A folder stands for the .txt, .json and .jsonl files directly in it, by name; its manifest is
    no data and is left out.

    Raises:
        UserError: nothing there, or a file of another kind.
    """
    listed = [paths] if isinstance(paths, str | os.PathLike) else paths
    names = [name for entry in listed for name in _separated(os.fspath(entry))]
    found = [file for name in names for file in _expanded(name)]
    if not found:
        raise UserError(
            field="data path",
            got="no path at all",
            wanted=f"files ({', '.join(SUFFIXES)}), patterns or folders",
            fix="name at least one file",
        )
    return found


def _separated(names: str) -> list[str]:
    # A file whose name has a comma in it is that file.
    if names and epath.Path(names).exists():
        return [names]
    return [name.strip() for name in names.split(",") if name.strip()]


def _expanded(name: str) -> list[epath.Path]:
    path = epath.Path(name)
    if path.is_dir():
        inside = [p for p in path.iterdir() if _readable(p) and p.name != MANIFEST_NAME]
        return _some(sorted(inside, key=lambda p: p.name), name, "folder")
    if path.exists():
        if not _readable(path):
            raise UserError(
                field=f"data path {name}",
                got=f"suffix {path.suffix!r}",
                wanted=" or ".join(SUFFIXES),
                fix="rename or convert the file",
            )
        return [path]
    magic = next((i for i, part in enumerate(path.parts) if _PATTERN.search(part)), None)
    if magic is None:
        raise UserError(
            field=f"data path {name}",
            got="nothing there",
            wanted="a file, a pattern like 'texts/*.txt', or a folder",
            fix="correct the path",
        )
    parent = epath.Path(*path.parts[:magic]) if magic else epath.Path(".")
    matches = parent.glob("/".join(path.parts[magic:])) if parent.is_dir() else ()
    return _some(sorted((p for p in matches if _readable(p)), key=str), name, "pattern")


def _some(found: list[epath.Path], name: str, kind: str) -> list[epath.Path]:
    if not found:
        raise UserError(
            field=f"data path {name}",
            got=f"a {kind} without such files",
            wanted=f"at least one file ending in {', '.join(SUFFIXES)}",
            fix="correct the path",
        )
    return found


def _readable(path: epath.Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def read_lines(path: epath.Path) -> Iterator[tuple[int, str]]:
    """Lines with their ends as they stand, numbered from 1; a byte order mark is dropped.

    Raises:
        UserError: not UTF-8; names the line and the byte.
    """
    # Bytes are decoded here, since opening as text would turn "\r\n" into "\n".
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    field=f"{path} line {number}",
                    got=f"byte 0x{raw[error.start]:02X} at byte {error.start + 1} of the line",
                    wanted="UTF-8",
                    fix="convert the file, for instance with iconv -t utf-8",
                ) from None


def read_objects(path: epath.Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Objects of a .json list or of .jsonl lines, each with its place ("a.json record 3").

    Raises:
        UserError: no JSON, no list, a record that is no object, or no record at all.
    """
    located = _json_lines(path) if path.suffix.lower() == ".jsonl" else _json_list(path)
    some = False
    for place, record in located:
        if not isinstance(record, dict):
            raise UserError(
                field=place,
                got=brief(record),
                wanted="an object",
                fix="correct or remove the record",
            )
        some = True
        yield place, record
    if not some:
        raise empty_file(path)


def _json_lines(path: epath.Path) -> Iterator[tuple[str, Any]]:
    for number, line in read_lines(path):
        if line.strip():
            place = f"{path} line {number}"
            # ValueError: no JSON, or a number of more digits than Python reads.
            try:
                yield place, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    field=place,
                    got=f"no JSON that can be read ({error})",
                    wanted="one JSON object a line",
                    fix="correct the line; a list over many lines belongs in a .json file",
                ) from None


def _json_list(path: epath.Path) -> Iterator[tuple[str, Any]]:
    text = "".join(line for _, line in read_lines(path))
    if not text.strip():
        raise empty_file(path)
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            field=str(path),
            got=f"no JSON that can be read ({error})",
            wanted="one JSON list of records",
            fix="correct the file; one object a line belongs in a .jsonl file",
        ) from None
    if not isinstance(records, list):
        raise UserError(
            field=str(path),
            got=brief(records),
            wanted="a list of records",
            fix="put the records into [ and ]",
        )
    for number, record in enumerate(records, start=1):
        yield f"{path} record {number}", record


def brief(value: Any) -> str:
    """A JSON value as an error message shows it, cut when long."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    kind = {dict: "an object", list: "a list", type(None): "null"}.get(type(value), "")
    return (kind + " " if kind and value is not None else "") + (
        text if len(text) <= 60 else text[:57] + "..."
    )


def empty_file(path: epath.Path) -> UserError:
    """The error for a file without documents."""
    return UserError(
        field=str(path),
        got="no text" if path.suffix.lower() == ".txt" else "no records",
        wanted="at least one document",
        fix="give a file with something in it",
    )
