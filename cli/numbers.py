"""Sizes and times as people write them: `16MB`, `16,000,000`, `150k`, `10m`, `1h30m`."""

import re
from collections.abc import Sequence
from decimal import Decimal

import typer

_NUMBER = r"(?!0\d)(?:\d{1,3}(?:,\d{3})+|[\d_]*\d)(?:\.\d+)?"
_BYTES = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9}
_BYTES |= {"kib": 2**10, "mib": 2**20, "gib": 2**30}
_SECONDS = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}


def size(text: str) -> int:
    """Bytes; decimal units (k, MB) count by 1,000, binary ones (MiB) by 1,024. Raises typer.BadParameter."""
    found = re.fullmatch(rf"({_NUMBER}) ?([a-z]*)", str(text).strip().lower())
    value = None if found is None or found[2] not in _BYTES else _decimal(found[1]) * _BYTES[found[2]]
    if value is None or value != int(value):
        raise typer.BadParameter(f"{text!r} is not a number of bytes; write it as 16000000, 16,000,000 or 16MB")
    return int(value)


def seconds(text: str) -> float:
    """Seconds, from a number alone or numbers with the units h, m and s. Raises typer.BadParameter."""
    lower = str(text).strip().lower()
    parts = re.findall(rf"({_NUMBER}) ?([a-z]*) ?", lower)
    whole = re.fullmatch(rf"(?:{_NUMBER} ?[a-z]* ?)+", lower)
    units = [unit for _, unit in parts]
    if whole is None or any(unit not in _SECONDS for unit in units) or (len(units) > 1 and "" in units):
        raise typer.BadParameter(f"{text!r} is not a time; write it as 600 (seconds), 10m or 1h30m")
    return float(sum(_decimal(number) * _SECONDS[unit] for number, unit in parts))


def sizes(texts: Sequence[str]) -> list[int]:
    """Several sizes, each by itself or joined by commas: `150k 170k`, `150k,170k`; `16,000,000` is one of them."""
    return [
        size(part)
        for text in texts
        for part in ([text] if re.fullmatch(rf"{_NUMBER} ?[a-zA-Z]*", text) else text.split(","))
    ]


def _decimal(text: str) -> Decimal:
    return Decimal(text.replace(",", "").replace("_", ""))
