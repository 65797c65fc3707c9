"""The byte ledger of a package: what counts against the cap, to the byte, in the readings that are disputed.

Records of the challenge count their code in three ways: the file that is shipped (#1394), the file packed, or the
file minified and packed, computed but not shipped (the #1530 to #1855 line, whose files on disk are over the cap).
The shipped file decides here; the other two are what the same code would take, for comparison.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MODEL, SCRIPT, TOKENIZER = "model.pgz", "train_gpt.py", "tokenizer.model"


@dataclass(frozen=True)
class File:
    """A file of the package. The cap is on the sum of those that count."""

    file: str
    bytes: int
    counted: bool


@dataclass(frozen=True)
class Module:
    """A module in the script. Summed over all modules, with the line `loader`, `packed_bytes` is the script's size."""

    module: str
    source_bytes: int
    minified_bytes: int
    packed_bytes: int


@dataclass(frozen=True)
class Ledger:
    files: Sequence[File]
    code: Sequence[Module]
    model: Sequence[Mapping[str, Any]]
    """Bytes of `model.pgz` per tensor role, as the codec has it."""
    readings: Mapping[str, int]
    """Bytes of the code: `shipped`, `packed` (sources as they are, packed), `minified_packed`; and `sources`, plain."""
    cap_bytes: int

    @property
    def counted_bytes(self) -> int:
        """What stands against the cap."""
        return sum(file.bytes for file in self.files if file.counted)

    @property
    def total_bytes(self) -> int:
        """Script and model together, whatever counts."""
        return self.bytes_of(MODEL) + self.bytes_of(SCRIPT)

    @property
    def over(self) -> int:
        """Bytes over the cap; zero or less: it fits."""
        return self.counted_bytes - self.cap_bytes

    def bytes_of(self, name: str) -> int:
        return next(file.bytes for file in self.files if file.file == name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return dataclasses.asdict(self) | {"counted_bytes": self.counted_bytes, "total_bytes": self.total_bytes}


def code_lines(
    sources: Mapping[str, str], minified: Mapping[str, str], packed: Mapping[str, int]
) -> tuple[Module, ...]:
    """One line per module, largest share first; settings and loader, which have no source, last."""
    lines = [Module(name, _bytes(sources.get(name)), _bytes(minified.get(name)), size) for name, size in packed.items()]
    return tuple(sorted(lines, key=lambda line: (line.module not in sources, -line.packed_bytes)))


def _bytes(text: str | None) -> int:
    return 0 if text is None else len(text.encode("utf-8"))
