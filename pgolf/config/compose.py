"""Composing a configuration: defaults, then a preset, then a TOML file, then `section.key=value` assignments."""

import dataclasses
import difflib
import importlib.resources
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pgolf.config.sections import Config
from pgolf.errors import PgolfError, did_you_mean


def preset_names() -> list[str]:
    """The presets that come with pgolf, sorted."""
    folder = importlib.resources.files("pgolf.config") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load(
    preset: str | None = None,
    file: Path | None = None,
    assignments: Iterable[str] = (),
    base: Config | None = None,
) -> Config:
    """Compose a configuration from a preset, a TOML file and assignments such as `model.dim=512`, in that order.

    `base` replaces the defaults that they are applied to.

    Raises PgolfError for an unknown preset, section or key (naming the nearest known one), a value of the wrong
    type, or a file that is not TOML.
    """
    return from_dict(composed(preset, file, assignments, base))


def composed(
    preset: str | None = None,
    file: Path | None = None,
    assignments: Iterable[str] = (),
    base: Config | None = None,
) -> dict[str, Any]:
    """The values that `load` builds a configuration from, by section and key: without `base`, those that are given."""
    values: dict[str, Any] = {} if base is None else to_dict(base)
    if preset is not None:
        _merge(values, _read_preset(preset), f"preset {preset}")
    if file is not None:
        _merge(values, _read_toml(file), str(file))
    for assignment in assignments:
        _merge(values, _parse_assignment(assignment), f"--set {assignment}")
    return values


def from_dict(values: Mapping[str, Any]) -> Config:
    """Configuration from nested plain values, as TOML and manifests hold them. Missing keys take their defaults."""
    return typing.cast(Config, _build(Config, values, ""))


def recorded(values: Mapping[str, Any]) -> Config:
    """The configuration out of a manifest, perhaps of another version of pgolf.

    The model section must be read exactly, or the weights would have another meaning; in every
    other section a setting that this version does not have, or has with another type, takes its default.
    """
    hints = typing.get_type_hints(Config)
    known: dict[str, Any] = {}
    for name, value in values.items():
        if name == "model" or not dataclasses.is_dataclass(hints.get(name)) or not isinstance(value, Mapping):
            if name in hints:
                known[name] = value
            continue
        kept = {key: item for key, item in value.items() if _understood(hints[name], key, item)}
        try:
            _build(hints[name], kept, f"{name}.")
        except PgolfError:
            kept = {}  # values that made sense together in another version and do not in this one
        known[name] = kept
    return from_dict(known)


def _understood(kind: Any, key: str, value: Any) -> bool:
    try:
        _build(kind, {key: value}, "", check_only=True)
    except PgolfError:
        return False
    return True


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain values, fit for JSON; the inverse of `from_dict`."""
    return typing.cast(dict[str, Any], _plain(dataclasses.asdict(config)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _read_preset(name: str) -> dict[str, Any]:
    """The values of a preset, put over those of the preset that its key `base` names."""
    known = preset_names()
    if name not in known:
        raise PgolfError(f"no preset named {name!r}{did_you_mean(name, known)}; presets: {', '.join(known)}")
    text = (importlib.resources.files("pgolf.config") / "presets" / f"{name}.toml").read_text("utf-8")
    values = tomllib.loads(text)
    if "base" not in values:
        return values
    whole = _read_preset(values.pop("base"))
    _merge(whole, values, f"preset {name}")
    return whole


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise PgolfError(f"cannot read the configuration {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # of bad syntax, of numbers of 5,000 digits, of deep nesting
        raise PgolfError(f"{path} is not valid TOML: {error}") from error


def _parse_assignment(assignment: str) -> dict[str, Any]:
    key, separator, text = assignment.partition("=")
    if not separator or not key.strip():
        raise PgolfError(f"--set {assignment!r}: write it as section.key=value, for example model.dim=512")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()  # a bare word is a string: --set quantize.method=gptq
    nested: Any = value
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return typing.cast(dict[str, Any], nested)


def _merge(target: dict[str, Any], update: Mapping[str, Any], source: str) -> None:
    """Put `update` over `target`, checking every key and type at once so that an error names its source."""
    try:
        _build(Config, update, "", check_only=True)
    except PgolfError as error:
        raise PgolfError(f"{source}: {error}") from error
    for key, value in update.items():
        if isinstance(value, Mapping):
            target.setdefault(key, {}).update(value)
        else:
            target[key] = value


def _build(kind: Any, values: Mapping[str, Any], prefix: str, check_only: bool = False) -> Any:
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            raise PgolfError(f"unknown key {prefix}{key}{_meant(key, sorted(names), prefix)}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise PgolfError(f"{prefix}{key} is a section, not a value: write {prefix}{key}.NAME=VALUE")
            arguments[key] = _build(hint, value, f"{prefix}{key}.", check_only)
        else:
            arguments[key] = _convert(value, hint, f"{prefix}{key}")
    # The values of one source alone need not make sense together (num_heads with another file's dim), so the
    # dataclass and its own checks come last, on the composed whole.
    return None if check_only else kind(**arguments)


def _convert(value: Any, hint: Any, name: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise PgolfError(f"{name} must be a list, got {value!r}")
        element = typing.get_args(hint)[0]
        return tuple(_convert(item, element, name) for item in value)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        return _convert(value, options[0], name)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise PgolfError(f"{name} must be a table, got {value!r}")
        element = typing.get_args(hint)[1]
        return {str(key): _convert(item, element, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, int) and abs(value) >= 2**64:
        raise PgolfError(f"{name} is out of range: {value:.3g}" if abs(value) < 10**300 else f"{name} is out of range")
    if isinstance(value, float) and not math.isfinite(value):
        raise PgolfError(f"{name} is {value}; give a finite number")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise PgolfError(f"{name} must be {_type_name(hint)}, got {value!r}")
    return value


def _type_name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(hint, str(hint))


def _meant(key: str, known: list[str], prefix: str) -> str:
    """`; did you mean train.iterations?` for a wrong key, also for one whose section was left out."""
    hints = {} if prefix else typing.get_type_hints(Config)
    whole = [
        f"{section}.{field.name}"
        for section, hint in hints.items()
        if dataclasses.is_dataclass(hint)
        for field in dataclasses.fields(hint)
    ]
    if owners := [name for name in whole if name.endswith(f".{key}")]:
        return f"; did you mean {' or '.join(owners)}?"
    by_name = {name.rpartition(".")[2]: name for name in whole} | {name: f"{prefix}{name}" for name in known}
    matches = difflib.get_close_matches(key, by_name, n=1, cutoff=0.5)
    return f"; did you mean {by_name[matches[0]]}?" if matches else ""
