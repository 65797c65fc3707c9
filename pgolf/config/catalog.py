"""Every setting with its meaning, read from the dataclasses themselves: the string below a field is its description."""

import ast
import dataclasses
import importlib.resources
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pgolf.config.compose import preset_names, to_dict
from pgolf.config.effects import has_effect
from pgolf.config.sections import Config
from pgolf.errors import PgolfError, did_you_mean

_UNITS = {"seconds": "seconds", "tokens": "tokens", "bytes": "bytes", "every": "steps", "steps": "steps"}


@dataclass(frozen=True)
class Setting:
    key: str
    """`section.name`."""
    type: str
    """As the dataclass writes it."""
    default: Any
    meaning: str
    unit: str
    """Empty for a plain number, a name or a switch."""
    choices: tuple[str, ...]
    """Of a setting that takes names; empty: any value of the type."""
    changes_results: bool


def settings() -> list[Setting]:
    """Every setting, in the order of the sections."""
    found = []
    for section in dataclasses.fields(Config):
        if section.name == "seed":
            (seed,) = (item for item in _described(Config, Config(), "") if item.key == "seed")
            found.append(seed)
        else:
            section_type: Any = section.default_factory
            found += _described(section_type, section_type(), f"{section.name}.")
    return found


def find(name: str) -> list[Setting]:
    """The settings of a section, the one of a whole key, or those whose name is `name` in any section.

    Raises PgolfError, naming the nearest one, when there is none.
    """
    every = settings()
    found = [item for item in every if item.key == name or item.key.startswith(f"{name}.")]
    found = found or [item for item in every if item.key.rpartition(".")[2] == name]
    if not found:
        known = [*(item.key for item in every), *{item.key.partition(".")[0] for item in every}]
        raise PgolfError(f"no setting or section {name!r}{did_you_mean(name, known)}")
    return found


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """`section.key` of every setting that two nested configurations have different, with both values; None: absent."""
    flat = [dict(_flat(values)) for values in (left, right)]
    keys = [key for key in {**flat[0], **flat[1]} if flat[0].get(key) != flat[1].get(key)]
    return {key: (flat[0].get(key), flat[1].get(key)) for key in keys}


def changed(config: Config) -> dict[str, tuple[Any, Any]]:
    """The settings in which a configuration differs from the defaults: (default, value) by key."""
    return differences(to_dict(Config()), to_dict(config))


def presets() -> dict[str, str]:
    """Purpose of each preset, by name: the first sentence of its file."""
    found = {}
    for name in preset_names():
        text = (importlib.resources.files("pgolf.config") / "presets" / f"{name}.toml").read_text("utf-8")
        lines = [line.lstrip("# ") for line in text.splitlines()[:3] if line.startswith("#")]
        found[name] = " ".join(lines).partition(". ")[0].strip(" .")
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and not prefix and key != "options":
            yield from _flat(value, f"{key}.")
        elif key != "options":
            yield f"{prefix}{key}", value


def _described(kind: type, section: Any, prefix: str) -> list[Setting]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = []
    for field, below in zip(tree.body, [*tree.body[1:], ast.Pass()], strict=True):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if not (isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)):
            continue
        name, meaning = field.target.id, " ".join(str(below.value.value).split())
        value = getattr(section, name)
        plain = to_dict(Config())[prefix[:-1]][name] if prefix else value
        found.append(
            Setting(
                key=prefix + name,
                type=ast.unparse(field.annotation),
                default=plain,
                meaning=meaning,
                unit=_UNITS.get(name.rpartition("_")[2], "") if isinstance(value, int | float) else "",
                choices=_choices(section, name, meaning) if isinstance(value, str) else (),
                changes_results=not prefix or any(has_effect(section, name, stage) for stage in _STAGES),
            )
        )
    return found


_STAGES = ("tokenize", "train", "ema-finalize", "quantize", "eval-sliding", "eval-ttt", "package")


def _choices(section: Any, name: str, meaning: str) -> tuple[str, ...]:
    """The names in backquotes that a section accepts, where it does not accept every name."""

    def accepted(value: str) -> bool:
        try:
            dataclasses.replace(section, **{name: value})
        except PgolfError as error:
            return f".{name} is" not in str(error)  # another setting may not go with it
        return True

    if accepted("\0"):  # names of a table elsewhere: those that the description explains one by one
        return tuple(dict.fromkeys(re.findall(r"`([\w-]+)`(?::| \()", meaning)))
    return tuple(word for word in dict.fromkeys(re.findall(r"`([\w-]+)`", meaning)) if accepted(word))
