"""Settings of the package and its byte budget."""

from dataclasses import dataclass, field

from pgolf.config.effects import only
from pgolf.errors import PgolfError

CODERS = ("range", "brotli", "zlib", "lzma")


@dataclass(frozen=True)
class PackageConfig:
    cap_bytes: int = field(default=16_000_000, metadata=only("package"))
    """The byte budget, decimal (the challenge's cap)."""
    count_code: bool = True
    """Count the script against the cap; the `mini` track caps `model.pgz` alone and reports the code separately."""
    count_tokenizer: bool = False
    """Count the tokenizer against the cap; the challenge does not."""
    coder: str = "range"
    """Coder of `model.pgz`: `range` (the entropy coder), or `brotli`, `lzma`, `zlib` for comparison."""

    def __post_init__(self) -> None:
        if self.cap_bytes < 1:
            raise PgolfError(f"package.cap_bytes is {self.cap_bytes}; it must be at least 1")
        if self.coder not in CODERS:
            raise PgolfError(f"package.coder is {self.coder!r}; choose {', '.join(CODERS)}")
