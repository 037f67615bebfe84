"""From a loose configuration at the flag to a strict frozen dataclass inside."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from minillm.core.errors import UserError

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], *, field: str = "config") -> T:
    """A dataclass from a mapping (a dict or a ConfigDict), nested dataclasses included.

    Keys that are absent take the dataclass's default. Lists become tuples, integers become
    floats where a float is declared; nothing else is converted.

    Raises:
        UserError: an unknown key (names the nearest known one), a missing one, a wrong type.
    """
    hints = typing.get_type_hints(cls)
    known = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise UserError(
                field=f"{field}.{key}",
                got="an unknown key",
                wanted=f"one of {', '.join(known)}",
                fix=f"did you mean {field}.{near[0]}?" if near else "remove it",
            )
    given = {key: _convert(hints[key], values[key], f"{field}.{key}") for key in values}
    for name, item in known.items():
        required = item.default is item.default_factory is dataclasses.MISSING
        if required and name not in given:
            raise UserError(
                field=f"{field}.{name}", got="nothing", wanted=str(hints[name]), fix="set it"
            )
    return cls(**given)


def require_at_least(minimum: float, **values: float) -> None:
    """Raise UserError for the first setting that is below `minimum`, infinite or no number.

    For `__post_init__` of settings.
    """
    for name, value in values.items():
        # Written so that NaN, too, is outside.
        if not minimum <= value < math.inf:
            kind = "a finite number of at least" if value == math.inf else "at least"
            raise UserError(
                field=name, got=value, wanted=f"{kind} {minimum}", fix=f"try {minimum or 1}"
            )


def to_dict(value: Any) -> Any:
    """A dataclass as plain dicts and lists, fit for JSON and for fingerprints."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {item.name: to_dict(getattr(value, item.name)) for item in fields}
    if isinstance(value, Mapping):
        return {str(key): to_dict(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_dict(entry) for entry in value]
    return value


def _convert(hint: Any, value: Any, field: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return _convert_union(typing.get_args(hint), value, field)
    if dataclasses.is_dataclass(hint) and not isinstance(value, hint):  # type: ignore[arg-type]
        if not isinstance(value, Mapping):
            raise _wrong_type(field, value, "a group of settings")
        return build(hint, value, field=field)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise _wrong_type(field, value, "a list")
        inner = typing.get_args(hint)
        each = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(each) != len(value):
            raise _wrong_type(field, value, f"a list of {len(each)} entries")
        return tuple(
            _convert(kind, entry, f"{field}[{index}]")
            for index, (kind, entry) in enumerate(zip(each, value, strict=True))
        )
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise _wrong_type(field, value, f"one of {', '.join(map(str, typing.get_args(hint)))}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = origin or hint
    # bool is an int to Python; as a setting, `layers=True` is a mistake.
    if isinstance(expected, type) and (
        not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool)
    ):
        raise _wrong_type(field, value, expected.__name__)
    return value


def _convert_union(options: tuple[Any, ...], value: Any, field: str) -> Any:
    if value is None and type(None) in options:
        return None
    first_error: UserError | None = None
    for option in options:
        if option is type(None):
            continue
        try:
            return _convert(option, value, field)
        except UserError as error:
            first_error = first_error or error
    raise first_error or _wrong_type(field, value, "None")


def _wrong_type(field: str, value: Any, wanted: str) -> UserError:
    return UserError(
        field=field,
        got=f"{value!r} ({type(value).__name__})",
        wanted=wanted,
        fix="correct the value at the flag or in the configuration file",
    )
