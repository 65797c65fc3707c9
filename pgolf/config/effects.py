"""The effect of settings on stages: which results a changed setting makes out of date.

A setting affects the result of every stage that lists its section, unless its field declares otherwise with
`field(default=..., metadata=...)`: `NO_EFFECT` for one that changes no result, `only(...)` for one of some stages.
Both "is this stage up to date" and "may this training go on from its checkpoint" read it from here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any


def only(*stages: str) -> dict[str, tuple[str, ...]]:
    """Metadata of a field that changes the results of these kinds of stages alone."""
    return {"stages": stages}


NO_EFFECT = only()


def has_effect(section: Any, key: str, stage: str) -> bool:
    """True if the field `key` of a section (a dataclass) changes the result of a stage that lists the section."""
    found = next((field for field in fields(section) if field.name == key), None)
    return found is None or stage in found.metadata.get("stages", (stage,))


def settings_of(config: Any, stage: str, sections: Iterable[str]) -> Mapping[str, Any]:
    """The settings that decide a stage's result, by `section.key`."""
    return {
        f"{name}.{field.name}": getattr(getattr(config, name), field.name)
        for name in sections
        for field in fields(getattr(config, name))
        if has_effect(getattr(config, name), field.name, stage)
    }
