"""The byte ledger of a package: the files that count against the cap, and where the bytes are in them.

Records of the challenge count their code in three ways: the file that is shipped (#1394), the sources packed, or the
sources minified and packed but not shipped (the #1530 to #1855 line, whose files on disk are over the cap). Here the
shipped file decides, and it is minified and packed; the size of the sources is listed for comparison.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgolf.bundle import Module

MODEL, SCRIPT, TOKENIZER, README = "model.pgz", "train_gpt.py", "tokenizer.model", "README.md"


@dataclass(frozen=True)
class File:
    """A file of the package. The cap is on the sum of those that count."""

    file: str
    bytes: int
    counted: bool


@dataclass(frozen=True)
class Ledger:
    files: Sequence[File]
    code: Sequence[Module]
    """The script by module; `packed_bytes` sum to its size."""
    model: Sequence[Mapping[str, Any]]
    """Bytes of `model.pgz` per tensor role, as the codec counts them."""
    cap_bytes: int

    @property
    def readings(self) -> dict[str, int]:
        """Bytes of the code: `shipped`; minified but not packed; `sources`, as in the repository."""
        return {
            "shipped": self.bytes_of(SCRIPT),
            "minified": sum(module.minified_bytes for module in self.code),
            "sources": sum(module.source_bytes for module in self.code),
        }

    @property
    def counted_bytes(self) -> int:
        """Bytes of the files that count against the cap."""
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
        sums = {"readings": self.readings, "counted_bytes": self.counted_bytes, "total_bytes": self.total_bytes}
        return dataclasses.asdict(self) | sums
