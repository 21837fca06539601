"""What is wrong with keys, values and groups on the command line of a Hydra script, in a few lines.

Hydra refuses a key that no configuration has, but does not say which one was meant; and it takes any value for any key.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bimba.types import BimbaError, first_line

USAGE_ERROR = 2  # status of a program that was called in a wrong way, as argparse has it
# Numbers, switches and lists by default which also take a word: Lightning's "auto" and "00:15:00", our "reentrant", a
# mixture's file.
_ALSO_WORDS = ("trainer.devices", "trainer.val_check_interval", "model.gradient_checkpointing", "data.mixture")


def check_command_line(conf: Path, name: str, arguments: Sequence[str]) -> None:
    """What is wrong with the command line of a Hydra script, said before it starts.

    Args:
        conf: the folder of configurations.
        name: of the one that is composed there, such as "train".
        arguments: of the command line.

    Raises:
        SystemExit: a key that there is not, a value of another kind than its default, an option that a group does not
            have, a word that is no override; each has been printed in a line of its own.
    """
    from hydra import compose, initialize_config_dir
    from hydra._internal.utils import get_args_parser  # Hydra's options, some of which have values
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import CompactHydraException

    options, strange = get_args_parser().parse_known_args(list(arguments))
    if flags := [word for word in strange if word.startswith("-")]:
        _stop([f"{' '.join(flags)}: no such option. Keys are given as KEY=VALUE; --help lists them."])
    if strange:  # argparse takes keys in one place only
        _stop([f"{' '.join(strange)}: not understood there. Give all KEY=VALUE together, before or after the options."])
    if any((options.help, options.hydra_help, options.shell_completion, options.config_dir, options.config_name)):
        return
    try:
        overrides = parsed(options.overrides)
    except CompactHydraException as error:
        _stop([refusal(error)])
    groups = groups_in(conf)
    for replaced in _in_turn(overrides, groups) if options.multirun else [{}]:
        each = [_one(override, replaced) if options.multirun else [override.input_line] for override in overrides]
        words = [word for one in each for word in one]
        with_this = f"with {' '.join(f'{key}={value}' for key, value in replaced.items())}: " if replaced else ""
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(conf), version_base="1.3"):
                cfg = compose(name, words, return_hydra_config=True)
                defaults = compose(name, choices(parsed(words), groups), return_hydra_config=True)
            check_kinds(cfg, defaults, [override.key_or_group for override in overrides])
        except CompactHydraException as error:
            _stop([with_this + line for line in unknown_keys(conf, name, words) or [refusal(error)]])
        except ValueError as error:  # Hydra's, of a group that is given no name of a file
            _stop([with_this + first_line(error)])
        except BimbaError as error:
            _stop([with_this + line for line in str(error).splitlines()])


def _stop(lines: Sequence[str]) -> NoReturn:
    print("\n".join(f"error: {line}" for line in lines), file=sys.stderr)
    raise SystemExit(USAGE_ERROR)


def refusal(error: Exception) -> str:
    """What Hydra's refusal of a command line means, in one line."""
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, OverrideParseException):
        why = error.message.splitlines()
        said = why[1] if len(why) > 1 and why[0].startswith("Error parsing") else why[0]
        return (
            f"{error.override!r} cannot be read ({said}). Expected KEY=VALUE, in quotes if the value has spaces, "
            "brackets or $, such as 'optimizer.betas=[0.9,0.95]'."
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, asked = str(error.missing_cfg_file).rpartition("/")
        similar = difflib.get_close_matches(asked, error.options, n=1)
        hint = f"did you mean {group}={similar[0]}? Expected" if similar else "expected"
        return f"There is no {group}={asked}; {hint} one of {', '.join(error.options)}."
    words = f"{error}\n{error.__cause__ or ''}".splitlines()
    return " ".join(line.strip() for line in words if line.strip())


def check_kinds(cfg: Any, defaults: Any, keys: Sequence[str]) -> None:
    """Refuses values of another kind than their defaults: a word for a number, a number for a list.

    Args:
        cfg: the configuration as the user wants it.
        defaults: the same without the user's values.
        keys: dotted names of what the user has set.

    Raises:
        BimbaError: it names all of them.
    """
    from omegaconf import OmegaConf

    wrong = []
    for key in keys:
        default, value = (OmegaConf.select(node, key, throw_on_resolution_failure=False) for node in (defaults, cfg))
        expected = _kind(default)
        if key in _ALSO_WORDS or value is None or expected is None or _fits(value, default):
            continue
        wrong.append(f"{key} is {value!r}; expected {expected}, such as the default, {default}.")
    if wrong:
        raise BimbaError("\n".join(wrong))


def _kind(default: Any) -> str | None:
    """What values a default stands for, in words; None: any."""
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, int | float):
        return "a number"
    return "a list" if isinstance(default, Sequence) and not isinstance(default, str) else None


def _fits(value: Any, default: Any) -> bool:
    if isinstance(default, bool):
        return isinstance(value, int)  # 1 is as good as true
    if isinstance(default, int | float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, Sequence) and not isinstance(value, str)


def unknown_keys(conf: Path, name: str, arguments: Sequence[str]) -> list[str]:
    """A line for each override of a key that there is not, with the one that it resembles.

    Groups count with what was chosen for them. Empty if something else is wrong, which Hydra's own error says: an
    option that a group does not have, or a word that is no override.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    groups = groups_in(conf)
    try:
        overrides = parsed(arguments)
        chosen = choices(overrides, groups)
        GlobalHydra.instance().clear()  # Hydra's main function has left its own
        with initialize_config_dir(str(conf), version_base="1.3"):
            composed = compose(name, chosen, return_hydra_config=True)
    except HydraException:
        return []
    tree = OmegaConf.to_container(composed)
    asked = [o.key_or_group for o in overrides if not (o.is_add() or o.is_force_add()) and o.package is None]
    return [line for key in asked if key not in groups and (line := _describe(key, tree, sorted(groups), conf))]


def groups_in(conf: Path) -> set[str]:
    """The names of the groups of a folder of configurations, such as "model/compressor"."""
    return {path.parent.relative_to(conf).as_posix() for path in conf.rglob("*.yaml")} - {"."}


def parsed(arguments: Sequence[str]) -> list[Any]:
    """Hydra's overrides among the arguments of a command line.

    Raises:
        HydraException: one of them is none.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_overrides([word for word in arguments if not word.startswith("-")])


def choices(overrides: Sequence[Any], groups: set[str]) -> list[str]:
    """Those that choose a file of a group, of a sweep its first one."""
    return [
        f"{override.key_or_group}={value}"
        for override in overrides
        if override.key_or_group in groups and isinstance(value := _first(override), str)
    ]


def _in_turn(overrides: Sequence[Any], groups: set[str]) -> list[dict[str, str]]:
    """What to replace in the first cell of a sweep to have those that are looked at: nothing, then each other file."""
    swept = [
        one for one in overrides if one.key_or_group in groups and one.is_choice_sweep() and _first(one) is not None
    ]
    return [{}, *({one.key_or_group: value} for one in swept for value in list(one.sweep_string_iterator())[1:])]


def _one(override: Any, replaced: Mapping[str, str]) -> list[str]:
    """The override as it was written; of a sweep its first value, nothing of one that is not known before it runs.

    Args:
        replaced: key or group -> which value of a sweep instead of the first one.
    """
    if not override.is_sweep_override():
        return [str(override.input_line)]
    value = replaced.get(override.key_or_group, _first(override))
    return [] if value is None else [f"{override.input_line.partition('=')[0]}={value}"]


def _first(override: Any) -> Any:
    """Its value, the first one of a sweep; None of an interval and of a pattern."""
    from hydra.core.override_parser.types import ValueType

    if not override.is_sweep_override():
        return override.value()
    if override.value_type in (ValueType.INTERVAL_SWEEP, ValueType.GLOB_CHOICE_SWEEP):
        return None
    return next(override.sweep_string_iterator())


def _describe(key: str, tree: Any, groups: Sequence[str], conf: Path) -> str | None:
    """What to say about a dotted key; None if it is there."""
    names = key.split(".")
    node = tree
    for depth, name in enumerate(names):
        if not isinstance(node, dict):
            return f"There is no key {key}; {'.'.join(names[:depth])} has no keys of its own."
        if name not in node:
            hint = _other_choices(conf, names[:depth], name) or _hint(names, depth, node, tree, groups)
            return f"There is no key {key}; {hint}"
        node = node[name]
    return None


def _other_choices(conf: Path, place: Sequence[str], name: str) -> str | None:
    """Which other files of the same group have the key, if there are some."""
    from omegaconf import OmegaConf

    files = sorted(conf.joinpath(*place).glob("*.yaml")) if place else []
    having = [f"{'/'.join(place)}={file.stem}" for file in files if name in OmegaConf.load(file)]
    return f"those that have it: {', '.join(having)}." if having else None


def _hint(names: Sequence[str], depth: int, node: Any, tree: dict[str, Any], groups: Sequence[str]) -> str:
    """What was meant by names whose ``depth``-th is not in ``node``: a similar one, or one of that name elsewhere."""
    here = list(groups) if "/" in names[0] else [str(name) for name in node if name != "hydra"]
    meant, options = list(names[:depth]), here
    for name in names[depth:]:
        similar = difflib.get_close_matches(name, options, n=1)
        if not similar:
            break
        meant.append(similar[0])
        node = node.get(similar[0])
        options = list(map(str, node)) if isinstance(node, dict) else []
    if len(meant) > depth:
        return f"did you mean {'.'.join(meant)}?"
    elsewhere = [path for path in _paths(tree) if path.split(".")[-1] == names[-1] and not path.startswith("hydra.")]
    if 0 < len(elsewhere) <= 3:
        return f"did you mean {' or '.join(elsewhere)}?"
    return f"expected one of {', '.join(sorted(here))}."


def _paths(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted names of all keys."""
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{name}.")
