"""Parse a training log of a record: scores, sizes, clocks and counts, each with its line number.

The patterns cover the forms found in the logs of the merged records from March to May 2026. Many logs begin with the
source of the script; its format strings have no digits in place of values and so match nothing.
"""

import re
from dataclasses import dataclass, field
from decimal import Decimal

_SCORE = re.compile(
    r"^\s*(?P<tag>[A-Za-z][\w +:()./-]*?)[\s:]+val_loss[:=]\s*(?P<loss>\d+\.\d+)\s+val_bpb[:=]\s*(?P<bpb>\d+\.\d+)"
)
_BARE = re.compile(r"^\s*(?P<tag>[\w ():./-]*\bbpb\b[\w ()./-]*)[:=]\s*(?P<bpb>\d\.\d{4,})\s*$", re.IGNORECASE)
_DECIMAL = re.compile(r"\b\d\.\d{4,}\b")
_PART = re.compile(r"\bbytes[:=]\s*([\d,]{7,})")
_DURING = re.compile(r"^(step|warmup|iter|epoch)\b|^\d")
_EVAL_TIME = re.compile(r"(?:eval_time|elapsed)[:=]\s*([\d.]+)\s*(ms|s)\b")
_TOKENS = re.compile(r"(?:val_tokens:|Validation tokens:|val_loader:.*\btokens:)\s*([\d,]+)\s*$")
_PATTERNS = {
    "documents": re.compile(r"total_docs:\s*(\d+)"),
    "train_shards": re.compile(r"train_shards:\s*(\d+)\s*$"),
    "total_bytes": re.compile(r"^\s*(?:Total submission(?: size)?|Artifact)\b[^:=]*:\s*([\d,]+) bytes"),
    "code_bytes": re.compile(r"^\s*Code size(?: \(compressed\))?:\s*([\d,]+) bytes"),
    "raw_code_bytes": re.compile(r"^\s*Code size \(uncompressed\):\s*([\d,]+) bytes"),
    "model_bytes": re.compile(r"^\s*Serialized model [^:\s][^:]*:\s*([\d,]+) bytes"),
    "seed": re.compile(r"^\s*seed:\s*(\d+)\s*$"),
    "steps": re.compile(r"stopping_early: .*?step:\s*(\d+)/\d+"),
    "within_gate": re.compile(r"\bwithin_gate=(\d+)"),
    "word_gate": re.compile(r"\bword_gate=(\d+)"),
}
_TRAIN_TIME = re.compile(r"(?:^|\s)train_time:\s*([\d.]+)\s*(ms)\b")
_TOTAL_EVAL = re.compile(r"^\s*total_eval_time:\s*([\d.]+)\s*(s)\b")
_PRODUCTION = re.compile(r"artifact_production_wallclock:\s*([\d.]+)\s*(s)\b")


@dataclass(frozen=True)
class Value:
    value: float
    line: int


@dataclass(frozen=True)
class ScoreLine:
    """One line with a score of the whole validation text; losses in nats per token."""

    tag: str
    loss: str
    bits_per_byte: str
    """As printed, with all digits."""
    line: int
    seconds: float | None

    @property
    def is_final(self) -> bool:
        """True if it scores the finished artifact, not an intermediate model."""
        return not re.search(r"diagnostic|pre-?quant|post_?-?ema", self.tag, re.IGNORECASE)


@dataclass
class Log:
    name: str
    scores: list[ScoreLine] = field(default_factory=list)
    bare: dict[str, list[Value]] = field(default_factory=dict)
    """Bits per byte without a loss, by what the line calls them; #1545 prints nothing else."""
    decimals: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    """Every number on a line about bits per byte: the first such line, and the bytes of text that it names, if any."""
    values: dict[str, list[Value]] = field(default_factory=dict)
    """By kind: tokens, documents, train_shards, total_bytes, code_bytes, raw_code_bytes, model_bytes, seed, steps,
    within_gate, word_gate, and in seconds train_seconds, eval_seconds, production_seconds."""

    def last(self, kind: str) -> Value | None:
        found = self.values.get(kind)
        return found[-1] if found else None

    def printed(self, claimed: Decimal) -> tuple[str, int | None] | None:
        """The line that prints a claimed number in any form, and the bytes of text that it names."""
        found = next((place for text, place in self.decimals.items() if same(claimed, text)), None)
        return None if found is None else (f"{self.name}:{found[0]}", found[1])

    def where(self, value: Value | ScoreLine) -> str:
        return f"{self.name}:{value.line}"

    @property
    def seed(self) -> str | None:
        """The seed that the log states, else the digits of its file name."""
        stated = self.values.get("seed")
        if stated:
            return str(int(stated[0].value))
        named = re.search(r"seed_?(\d+)", self.name) or re.search(r"train_?(\d+)", self.name)
        return named.group(1) if named else None


def same(claimed: Decimal, printed: str) -> bool:
    """True if a claimed number equals the printed one, rounded or truncated to the fewer digits of the two."""
    digits = min(-int(claimed.as_tuple().exponent), -int(Decimal(printed).as_tuple().exponent))
    return abs(claimed - Decimal(printed)) < Decimal(1).scaleb(-max(digits, 0)) * Decimal("1.000001")


def parse_log(name: str, text: str) -> Log:
    """All facts of one log, in the order of its lines."""
    log = Log(name)

    def note(kind: str, value: str, line: int, unit: str = "") -> None:
        scale = 0.001 if unit == "ms" else 1.0
        log.values.setdefault(kind, []).append(Value(float(value.replace(",", "")) * scale, line))

    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > 2_000:
            continue  # a dump of something, never a line of results
        if (score := _SCORE.match(line)) and not _DURING.match(score["tag"]):
            time = _EVAL_TIME.search(line)
            seconds = float(time[1]) * (0.001 if time[2] == "ms" else 1.0) if time else None
            log.scores.append(ScoreLine(score["tag"], score["loss"], score["bpb"], number, seconds))
            if seconds is not None:
                note("eval_seconds", str(seconds), number)
        elif bare := _BARE.match(line):
            log.bare.setdefault(bare["tag"].strip(), []).append(Value(float(bare["bpb"]), number))
        if re.search("bpb|bits per byte", line, re.IGNORECASE):
            part = _PART.search(line)
            for decimal in _DECIMAL.findall(line):
                log.decimals.setdefault(decimal, (number, int(part[1].replace(",", "")) if part else None))
        if tokens := _TOKENS.search(line):
            note("tokens", tokens[1], number)
        for kind, pattern in _PATTERNS.items():
            if found := pattern.search(line):
                note(kind, found[1], number)
        for kind, pattern in (
            ("train_seconds", _TRAIN_TIME),
            ("eval_seconds", _TOTAL_EVAL),
            ("production_seconds", _PRODUCTION),
        ):
            if found := pattern.search(line):
                note(kind, found[1], number, found[2])
    return log
