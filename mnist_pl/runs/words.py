"""The words of a command line, before Hydra reads them: flags apart, `none` spelt out, pictures gathered."""

import os
from collections.abc import Callable
from glob import glob
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from mnist_pl.storage import quoted, read_value

PRESETS = ("experiment", "sweep")  # groups that set what others have chosen, and of which there may be none
LONG = {"-cd": "--config-dir", "-cp": "--config-path", "-cn": "--config-name", "-p": "--package", "-c": "--cfg"}
VALUED = (*LONG, *LONG.values(), "--experimental-rerun")  # flags of Hydra that are followed by a value
BETWEEN = "\0"  # pictures in `input`, which Hydra reads a hundred times as fast as a list


def split(arguments: list[str], is_word: Callable[[str], bool] = "-".__eq__) -> tuple[list[str], list[str]]:
    """Hydra's flags, each with its value, and the other words; argparse wants them apart.

    A word may begin with a dash where `is_word` says so.
    """
    flags: list[str] = []
    words: list[str] = []
    for argument in arguments:
        if flags and (flags[-1] in VALUED or (flags[-1] in ("--info", "-i") and "=" not in argument)):
            flags[-1] = f"{LONG.get(flags[-1], flags[-1])}={argument}"
        else:
            (flags if argument.startswith("-") and not is_word(argument) else words).append(argument)
    return flags, words


def key_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def spell_out_none(arguments: list[str], conf: Path) -> list[str]:
    """`scheduler=null`, `logger=false` and `~callbacks`, which Hydra has for single settings alone, as `none`.

    `conf` is the folder of the groups. Raises ValueError where the group has no option `none`.
    """
    spelt = []
    for word in arguments:
        group = word.partition("=")[0].removeprefix("~")
        if not word.startswith("-") and "/" not in group and group and (conf / group).is_dir():
            override = OverridesParser.create().parse_override(word)
            value, options = override.value(), sorted(path.stem for path in (conf / group).glob("*.yaml"))
            if override.is_delete() or value is None or value is False:
                if "none" not in options and group not in PRESETS:
                    raise ValueError(f"{word}: {group} must be one of {', '.join(options)}")
                word = f"{group}=none" if "none" in options else ""
            elif isinstance(value, bool | int | float | dict):
                raise ValueError(f"{word}: {group} must be one of {', '.join(options)}")
        spelt += [word] if word else []
    return spelt


def expand_input(arguments: list[str]) -> list[str]:
    """A command line's arguments in which one `input=` has all the pictures that were named, one way or another.

    A word is a picture's name where there is such a file, or where it is no setting; after `--`, each is. Raises
    ValueError where one of the names is empty.
    """
    dashes = arguments.index("--") if "--" in arguments else len(arguments)
    flags, words = split(arguments[:dashes], lambda word: word == "-" or os.path.lexists(word))
    settings: list[str] = []
    named: list[str] = []
    for word in words:
        key, is_setting, value = word.partition("=")
        if os.path.lexists(word) or not is_setting:
            named += _listed(word)
        elif key_of(key) == "input":
            named += _listed(value) if value != "null" or os.path.lexists(value) else []
        else:
            settings.append(word)
    named += arguments[dashes + 1 :]
    if "" in named:
        raise ValueError("input= is empty; name a picture or a folder of pictures, or leave it out for the test images")
    found = [match for name in named for match in _matches(name)]
    return [*flags, *settings, *([f"input={quoted(BETWEEN.join(found))}"] if found else [])]


def _listed(value: str) -> list[str]:
    """The names in one word: itself, where there is such a file; else as Hydra reads it."""
    read = None if os.path.lexists(value) else read_value(value)
    if read is None:
        return [value]
    several = getattr(read, "list", read)  # a,b is a choice for a sweep to Hydra
    return [str(getattr(one, "text", one)) for one in (several if isinstance(several, list) else [several])]


def _matches(name: str) -> list[str]:
    """The shell leaves `input=*.png` and what is in quotes as it is."""
    name = name if os.path.lexists(name) else os.path.expanduser(name)
    return [name] if os.path.lexists(name) else sorted(glob(name, recursive=True)) or [name]
