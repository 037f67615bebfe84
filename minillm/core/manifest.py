"""Manifests: what a stage made, from what, and whether it is finished.

Every stage writes one directory with a `manifest.json`. The file names the schema, the
configuration, the fingerprint of every input, counts, and a checksum for each shard. It is the
only thing that says a directory is complete: data without a manifest is an unfinished run.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from minillm.core.errors import UserError

MANIFEST_NAME = "manifest.json"
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Shard:
    """One data file of a stage: records [first, first + records) of the whole."""

    name: str
    first: int
    records: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`; everything in it survives a trip through JSON."""

    schema: str
    complete: bool
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    counts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shards: tuple[Shard, ...] = ()
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    measured: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over content: package versions and measured times are left out."""
        fields = dataclasses.asdict(self)
        del fields["versions"], fields["measured"]
        return fingerprint_of(fields)


def fingerprint_of(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value, independent of key order and of the process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: epath.PathLike) -> str:
    """SHA-256 (hex) of a file's bytes, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_atomically(path: epath.PathLike, data: bytes) -> None:
    """Write aside, flush, then rename: a reader sees the old bytes or the new, never a part."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".{path.name}.{os.getpid()}.part"
    with aside.open("wb") as stream:
        stream.write(data)
        stream.flush()
        # A bucket's stream has no descriptor; its rename is already all or nothing.
        if hasattr(stream, "fileno"):
            os.fsync(stream.fileno())
    aside.replace(path)


def write_json(path: epath.PathLike, value: Any) -> None:
    """Write a JSON-able value atomically, indented for people."""
    write_atomically(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def read_manifest(directory: epath.PathLike) -> Manifest | None:
    """The manifest of a stage's directory, or None where there is none.

    Raises:
        UserError: the file is there but is no manifest.
    """
    path = epath.Path(directory) / MANIFEST_NAME
    if not path.exists():
        return None
    try:
        fields = json.loads(path.read_text())
        fields["shards"] = tuple(Shard(**shard) for shard in fields["shards"])
        return Manifest(**fields)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(
            field=str(path),
            got=f"{type(error).__name__}: {error}",
            wanted="a manifest written by a minillm stage",
            fix="delete the directory and run the stage again",
        ) from error


def write_manifest(directory: epath.PathLike, manifest: Manifest) -> None:
    """Write `manifest.json` atomically into an existing or new directory."""
    write_json(epath.Path(directory) / MANIFEST_NAME, dataclasses.asdict(manifest))


def open_stage(
    directory: epath.PathLike,
    *,
    schema: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    begun: bool | None = None,
) -> Manifest:
    """Begin or go on with a stage.

    Args:
        begun: whether an unfinished directory holds work that a change would lose; by default,
            whether its manifest lists a shard.

    Returns:
        The existing manifest when it was made with the same schema, configuration and inputs
        (complete or not), otherwise a fresh incomplete one, already written.

    Raises:
        UserError: the directory was made from something else (names every difference), or is a
            file.
    """
    found = found_stage(directory, schema=schema, config=config, inputs=inputs, begun=begun)
    if found is not None:
        return found
    fresh = Manifest(schema, False, _as_json(config), _as_json(inputs), versions=_versions())
    write_manifest(directory, fresh)
    return fresh


def found_stage(
    directory: epath.PathLike,
    *,
    schema: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    begun: bool | None = None,
    all_inputs: bool = True,
) -> Manifest | None:
    """What `open_stage` would go on with, or None where it would begin; nothing is written.

    Args:
        all_inputs: False where `inputs` are those known so far, and others are not compared.

    Raises:
        UserError: as `open_stage`.
    """
    require_folder(directory)
    found = read_manifest(directory)
    if found is None:
        return None
    there = {**found.inputs} if all_inputs else {name: found.inputs.get(name) for name in inputs}
    # What another kind of stage was configured with says nothing more.
    changes = _changes("schema", found.schema, schema) or [
        # Through JSON, so that tuples and lists compare as what the file holds.
        *_changes("config", {**found.config}, _as_json(config)),
        *_changes("inputs", there, _as_json(inputs)),
    ]
    if not changes:
        return found
    kept = bool(found.shards) if begun is None else begun
    if not found.complete and not kept:
        return None
    raise UserError(
        field=str(epath.Path(directory) / MANIFEST_NAME),
        got="; ".join(changes),
        wanted="the configuration and inputs the directory was made with",
        fix="choose another directory, or delete this one to make it anew",
    )


def require_folder(directory: epath.PathLike) -> None:
    """Raise UserError where a file stands in the place of a folder that is to be written to."""
    place = _nearest(directory)
    if not place.is_dir():
        raise _no_folder(directory, f"{place}, which is a file")


def require_writable(directory: epath.PathLike) -> None:
    """As `require_folder`, and what is there of the path may be written to."""
    require_folder(directory)
    place = _nearest(directory)
    # A bucket has no such bits to ask for.
    if "://" not in os.fspath(place) and not os.access(place, os.W_OK | os.X_OK):
        raise _no_folder(directory, f"{place}, which may not be written to")


def _nearest(directory: epath.PathLike) -> epath.Path:
    """The path itself where it exists, else the nearest of its parents that does."""
    path = epath.Path(directory)
    return next((place for place in (path, *path.parents) if place.exists()), epath.Path("."))


def _no_folder(directory: epath.PathLike, got: str) -> UserError:
    return UserError(
        field=f"output folder {epath.Path(directory)}",
        got=got,
        wanted="a folder, there already or not",
        fix="choose another one",
    )


def require_complete(directory: epath.PathLike, schema: str) -> Manifest:
    """The manifest of a finished stage of the given schema.

    Raises:
        UserError: no manifest, another schema, or a stage that was cut off.
    """
    found = read_manifest(directory)
    if found is None:
        raise UserError(
            field=str(directory),
            got="no manifest.json" if epath.Path(directory).exists() else "no such directory",
            wanted=f"a finished stage with schema {schema}",
            fix="run the stage that writes it first, or correct the path",
        )
    if found.schema != schema:
        raise UserError(
            field=f"{directory}/{MANIFEST_NAME} schema",
            got=found.schema,
            wanted=schema,
            fix="give the directory that the right stage wrote",
        )
    if not found.complete:
        raise UserError(
            field=str(directory),
            got="an unfinished stage",
            wanted="a complete one",
            fix="run the stage that writes it again; it goes on where it was cut off",
        )
    return found


def verify_shards(directory: epath.PathLike, manifest: Manifest, *, checksums: bool = True) -> None:
    """Compare every shard's size, and its SHA-256 unless told otherwise, with the manifest.

    Raises:
        UserError: a shard is missing, has another size or another checksum; names the file.
    """
    for shard in manifest.shards:
        path = epath.Path(directory) / shard.name
        size = path.stat().length if path.exists() else None
        if size != shard.bytes:
            got = "no such file" if size is None else f"{size} bytes"
            raise UserError(
                field=str(path),
                got=got,
                wanted=f"{shard.bytes} bytes",
                fix="restore the file, or delete the directory and run its stage again",
            )
        if checksums and (digest := file_sha256(path)) != shard.sha256:
            raise UserError(
                field=str(path),
                got=f"SHA-256 {digest}",
                wanted=f"SHA-256 {shard.sha256}",
                fix="the file is damaged: restore it, or delete the directory and run its stage",
            )


def list_shard(directory: epath.PathLike, name: str, *, first: int, records: int) -> Shard:
    """The manifest's entry for a finished file of a stage."""
    path = epath.Path(directory) / name
    return Shard(name, first, records, path.stat().length, file_sha256(path))


def _as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(value)))


def _changes(name: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        absent = "(absent)"
        return [
            change
            for key in keys
            for change in _changes(f"{name}.{key}", old.get(key, absent), new.get(key, absent))
        ]
    return [] if old == new else [f"{name} was {old!r}, now {new!r}"]


def _versions() -> dict[str, str]:
    from importlib import metadata

    return {name: metadata.version(name) for name in ("minillm", "jax")}
