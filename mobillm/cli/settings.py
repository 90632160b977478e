"""Settings of a command from four places: flags, environment, a file, and what is built in.

A flag wins over the environment, that over the file, and the file over the default; values of a setting that
can be given again are merged, name by name. The name is the same everywhere: ``--data-dir``,
``MOBILLM_SERVE_DATA_DIR``, and in the file ``data-dir``. A name that is not known is an error in each of the
three.
"""

from __future__ import annotations

import argparse
import dataclasses
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .arguments import Parser, file_path

__all__ = ["Setting", "add_settings", "resolve"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting.

    Attributes:
        name: of the flag, without the two dashes.
        help: what it does, without the default.
        read: makes its value of a text, as for argparse; ``bool`` is a flag without a value.
        default: its value if nobody says otherwise.
        metavar: shown for the value.
        choices: all values there are; None bounds nothing.
        shown: the default as people read it; None shows the value.
        many: whether it can be given again; its value is a list then, of all places together with what wins
            last, and in the file a table.

    """

    name: str
    help: str
    read: Callable[[str], Any] = str
    default: Any = None
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    shown: str | None = None
    many: bool = False

    @property
    def field(self) -> str:
        """Name of the attribute of the parsed arguments."""
        return self.name.replace("-", "_")


def add_settings(parser: Parser, settings: Sequence[Setting], prefix: str) -> None:
    """Add ``--config`` and a flag for each setting.

    Args:
        parser: of the command.
        settings: all of them.
        prefix: of the environment's variables, for the help.

    """
    parser.add_argument(
        "--config",
        type=file_path,
        metavar="TOML",
        help=f"settings in a file, named as the flags; {prefix}NAME in the environment wins over it, and a "
        "flag over both",
    )
    for setting in settings:
        shown = setting.shown or (str(setting.default) if setting.default not in (None, False, []) else None)
        text = setting.help if shown is None else f"{setting.help} (default: {shown})"
        # No default here: what was not given on the command line may come from elsewhere.
        if setting.read is bool:
            parser.add_argument(f"--{setting.name}", action="store_true", default=None, help=text)
        else:
            parser.add_argument(
                f"--{setting.name}",
                type=setting.read,
                action="append" if setting.many else "store",
                choices=setting.choices,
                default=None,
                metavar=setting.metavar,
                help=text,
            )


def resolve(
    args: argparse.Namespace, settings: Sequence[Setting], prefix: str, environment: Mapping[str, str]
) -> argparse.Namespace:
    """Return the arguments with each setting filled in.

    Args:
        args: parsed; its settings are None where no flag was given.
        settings: as for :func:`add_settings`.
        prefix: of the environment's variables.
        environment: usually ``os.environ``.

    Raises:
        ConfigError: the file cannot be read, a name is not known, or a value is wrong.

    """
    found = argparse.Namespace(**vars(args))
    path: Path | None = args.config
    variable = f"{prefix}CONFIG"
    if path is None and variable in environment:
        path = Path(environment[variable])
    file = {} if path is None else _read(path)
    names = {setting.name for setting in settings}
    variables = {f"{prefix}{setting.field.upper()}": setting for setting in settings}
    for key in file:
        if key not in names:
            raise ConfigError(f"a setting in {path}", key, f"one of {', '.join(sorted(names))}")
    for key in environment:
        if key.startswith(prefix) and key not in variables and key != variable:
            raise ConfigError("a variable", key, f"one of {', '.join(sorted(variables))}")
    for key, setting in variables.items():
        values = []
        if setting.name in file:
            values.append(_value(setting, file[setting.name], f"{path}: {setting.name}"))
        if key in environment:
            values.append(_value(setting, environment[key], f"the variable {key}"))
        if getattr(args, setting.field) is not None:
            values.append(getattr(args, setting.field))
        if setting.many:
            setattr(found, setting.field, [*setting.default, *(item for value in values for item in value)])
        else:
            setattr(found, setting.field, values[-1] if values else setting.default)
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise ConfigError("--config", str(path), f"a TOML file that can be read ({reason})") from exc


def _value(setting: Setting, value: Any, where: str) -> Any:
    """Read one value of the environment or the file as the flag would."""
    if setting.read is bool:
        words = {"true": True, "1": True, "false": False, "0": False}
        if isinstance(value, bool):
            return value
        if not isinstance(value, str) or value.lower() not in words:
            raise ConfigError(where, value, "true or false")
        return words[value.lower()]
    if setting.many:
        if not isinstance(value, dict | str):
            raise ConfigError(where, value, "a table")
        if isinstance(value, dict):
            for name, item in value.items():
                if type(item) is not int:
                    raise ConfigError(f"{where}.{name}", item, "an integer")
            texts = [f"{name}={item}" for name, item in value.items()]
        else:
            texts = value.split(",")
        one = dataclasses.replace(setting, many=False)
        return [_value(one, text, where) for text in texts]
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ConfigError(where, value, "a text or a number")
    try:
        read = setting.read(str(value))
    except (argparse.ArgumentTypeError, ValueError) as exc:
        raise ConfigError(where, value, f"what --{setting.name} takes ({exc})") from exc
    if setting.choices is not None and read not in setting.choices:
        raise ConfigError(where, value, f"one of {', '.join(setting.choices)}")
    return read
