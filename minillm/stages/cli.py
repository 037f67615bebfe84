"""How every launch script starts and ends."""

import difflib
import inspect
import io
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from absl import app, flags, logging
from ml_collections import config_dict
from ml_collections.config_flags import config_flags

from minillm.core import configs, hosts
from minillm.core.errors import UserError

T = TypeVar("T")

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # as a shell says of SIGINT
MULTIHOST = flags.DEFINE_bool("multihost", False, "Join the other hosts that run this command.")
_CONFIGS = Path(__file__).parents[2] / "configs"


def define_config(name: str) -> None:
    """Define `--config`, a file of `configs/` by default, and `--config.a.b=value` with it."""
    file = str(_CONFIGS / f"{name}.py")
    settings = ", ".join(f"{key}={value}" for key, value in _settings(file).items())
    words = f"A file of settings; --config.a.b=value changes one of them: {settings}."
    try:
        config_flags.DEFINE_config_file("config", file, words)
    except (AttributeError, KeyError) as error:
        # Overrides are looked up here already, on the default file.
        _refuse(error, sys.argv, file)


def read_config(cls: type[T], **flag_values: Any) -> T:
    """The strict dataclass behind `--config`.

    Args:
        flag_values: what other flags say, by dotted key (`"loop.steps"` as `loop__steps`); None
            leaves the configuration's value.
    """
    values = config_dict.ConfigDict(flags.FLAGS.config)
    for key, value in flag_values.items():
        if value is not None:
            values.update_from_flattened_dict({key.replace("__", "."): value})
    return configs.build(cls, values.to_dict())


def read_scaled_config(cls: type[T], **flag_values: Any) -> T:
    """As `read_config`, where `--config.scale=NAME` chooses the preset that the rest changes.

    The configuration file's `get_config` takes the name of the scale; a file of the user's own
    whose `get_config` takes nothing is the one preset there is.
    """
    flag = flags.FLAGS["config"]
    get_config = runpy.run_path(_config_file())["get_config"]
    if not inspect.signature(get_config).parameters:
        return read_config(cls, **flag_values)
    preset = get_config(flags.FLAGS.config.scale)
    preset.update_from_flattened_dict(config_flags.get_override_values(flag))
    flag.value = preset
    return read_config(cls, **flag_values)


def as_config_dict(settings: Any) -> config_dict.ConfigDict:
    """A dataclass as what a configuration file returns: every field can be set at the flag."""
    return config_dict.ConfigDict(_for_flags(configs.to_dict(settings)))


def _for_flags(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _for_flags(entry) for key, entry in value.items()}
    if value is None:
        # Typed as nothing, it could not be set at the flag; as an object it takes any literal.
        return config_dict.placeholder(object)
    return tuple(value) if isinstance(value, list) else value


def run(main: Callable[[Sequence[str]], int | None], words: Sequence[str] = ()) -> None:
    """Parse flags, call `main`, and exit with its code.

    Flag names may be written with dashes or underscores, and where there is an `--output_dir`,
    `--workdir` is another name for it. A UserError is printed on one line and
    ends the script with exit code 2; any other exception keeps its traceback.

    Args:
        words: what the script can do; its command line names one of them, in `main`'s argv[1].
            Without words a script takes flags only.
    """
    # Orbax reports every thread it closes; a person wants to hear of what went wrong.
    logging.set_verbosity(logging.WARNING)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Not every locale can write mathematics: a question mark is better than a traceback.
        sys.stdout.reconfigure(errors="replace")
    known = flags.FLAGS
    if "output_dir" in known and "workdir" not in known:
        flags.DEFINE_alias("workdir", "output_dir")
    for name in ("config", "workdir", "multihost"):
        if name in known:
            # Defined here, and not in the script: without this its --help leaves them out.
            known.register_key_flag_for_module(sys.argv[0], known[name])
    app.run(
        lambda argv: _guarded(main, argv, words), argv=_underscored(sys.argv), flags_parser=_parse
    )


def _guarded(
    main: Callable[[Sequence[str]], int | None], argv: Sequence[str], words: Sequence[str]
) -> int:
    try:
        if [word for word in argv[1:] if word not in words] or len(argv) != (2 if words else 1):
            raise UserError(
                field="command line",
                got=" ".join(argv[1:]) or "flags only",
                wanted=f"one of {', '.join(words)}, and flags" if words else "flags only",
                fix=f"see {argv[0]} --help",
            )
        if MULTIHOST.value:
            hosts.join_hosts()
        return main(argv) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from what is written", file=sys.stderr)
        sys.stdout.flush()
        # At once: threads that read or write ahead, and a compilation, would be waited for.
        os._exit(EXIT_INTERRUPTED)


def integers(flag: flags.FlagHolder[list[str]]) -> list[int]:
    """The value of a flag that lists integers.

    Raises:
        UserError: naming the flag, where an entry is none.
    """
    try:
        return [int(entry) for entry in flag.value]
    except ValueError:
        raise UserError(
            field=f"--{flag.name}",
            got=",".join(flag.value),
            wanted="integers with commas between them",
            fix=f"--{flag.name}=1,2",
        ) from None


def _parse(argv: list[str]) -> list[str]:
    try:
        return _parsed(argv)
    except (flags.Error, KeyError, AttributeError, UserError) as error:
        # KeyError and AttributeError: what config_flags raises for an unknown --config.key.
        _refuse(error, argv)


def _parsed(argv: list[str]) -> list[str]:
    try:
        left = list(flags.FLAGS(argv))
        if "config" in flags.FLAGS:
            # A file that could not be read raises when its first key is asked for.
            _ = flags.FLAGS.config.keys
        return left
    except OSError as error:
        raise UserError(
            field="config",
            got=" ".join(str(error.__cause__ or error).split()),
            wanted="a Python file with a function get_config()",
            fix="correct the path",
        ) from error


def _config_file() -> str:
    return config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]


def _refuse(error: Exception, argv: Sequence[str], config_file: str | None = None) -> NoReturn:
    words = str(error)
    if isinstance(error, KeyError | AttributeError):
        # Their text is the quoted form of what they hold, here one of them in the other.
        inner: Any = error
        while isinstance(inner, Exception) and inner.args:
            inner = inner.args[0]
        words = f"no such setting: {inner}"
        if config_file is not None and (places := _places(str(inner), config_file)):
            words += f"; there is {', '.join(places)}"
    words = " ".join(words.split())
    print(f"error: {words}; see {argv[0]} --help", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def _places(message: str, config_file: str) -> list[str]:
    """The settings, in full, whose last name is the one that the message quotes, or is like it."""
    wanted = message.split("'")[1] if message.count("'") >= 2 else message
    names = [f"--config.{name}" for name in _settings(config_file)]
    by_last = {name.rpartition(".")[2] for name in names}
    like = difflib.get_close_matches(wanted, by_last, n=2, cutoff=0.6)
    return [name for name in names if name.rpartition(".")[2] in like]


def _settings(config_file: str) -> dict[str, Any]:
    """What the file's `get_config` returns, by dotted name."""
    return _flattened(runpy.run_path(config_file)["get_config"]())


def _flattened(settings: config_dict.ConfigDict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, config_dict.ConfigDict)
        flat |= _flattened(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def _underscored(argv: list[str]) -> list[str]:
    """`--batch-size=8` as `--batch_size=8`; values and single dashes are left alone."""
    changed = argv[:1]
    for position, word in enumerate(argv[1:], start=1):
        if word == "--":
            return changed + argv[position:]
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        changed.append(name + equals + value)
    return changed
