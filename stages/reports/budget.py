"""Byte budget of a model at any stage, compared with a cap. Reads only; writes no stage."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.codec import container, ledger
from pgolf.codec.ledger import Ledger, Line
from pgolf.errors import PgolfError
from pgolf.saved import models
from pgolf.store import kinds
from pgolf.store.stage_directory import Stage
from stages.context import StageContext

KINDS = kinds.MODELS


@dataclass(frozen=True)
class Budget:
    what: str
    """The directory or file that was counted."""
    coder: str
    """`range`, a general compressor, or `float32` for an uncompressed checkpoint."""
    roles: tuple[Line, ...]
    header_bytes: int
    model_bytes: int
    other_bytes: Mapping[str, int]
    """Other files that count against the cap, such as the script."""
    cap_bytes: int
    tensors: Sequence[Mapping[str, Any]]
    """Rate and errors of each tensor from the quantize stage (`details.tensors`); empty when not known."""

    @property
    def total_bytes(self) -> int:
        return self.model_bytes + sum(self.other_bytes.values())

    @property
    def over(self) -> int:
        """Bytes over the cap; zero or less: it fits."""
        return self.total_bytes - self.cap_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the table of the command, in bytes and bits per weight."""
        roles = [
            dataclasses.asdict(line)
            | {
                "bytes": line.bytes,
                "bits_per_weight": line.bits_per_weight,
                "against_entropy": line.against_entropy,
                "coder_distance": line.coder_distance,
            }
            for line in self.roles
        ]
        return {
            "what": self.what,
            "coder": self.coder,
            "roles": roles,
            "header_bytes": self.header_bytes,
            "model_bytes": self.model_bytes,
            "other_bytes": dict(self.other_bytes),
            "total_bytes": self.total_bytes,
            "cap_bytes": self.cap_bytes,
            "over_bytes": max(self.over, 0),
            "tensors": list(self.tensors),
        }


def remedy(cap_bytes: int, other_bytes: Mapping[str, int]) -> str:
    """Advice for a package over its cap. other_bytes: counted files other than the model, by name.

    A byte target of `pgolf quantize` counts the same files as the cap does, so the target is the cap itself.
    """
    if cap_bytes > sum(other_bytes.values()):
        return f"pgolf quantize --target-bytes {cap_bytes}"
    alone = " and ".join(f"{name} alone has {size:,} bytes" for name, size in other_bytes.items())
    return f"impossible under this cap: {alone}"


def of_stage(context: StageContext, stage: Stage) -> Budget:
    """Count a package (the files it has), a quantize stage (as it would be packed), or a checkpoint (float32)."""
    kind, cap = stage.manifest.stage, context.config.package.cap_bytes
    details: Mapping[str, Any] = stage.manifest.details
    if kind == "package":
        files = details["ledger"]["files"]
        counted = [file["file"] for file in files if file["counted"] and file["file"] != models.PACKED]
        other = {name: stage.file(name).stat().st_size for name in counted}
        found = ledger.ledger(stage.file(models.PACKED).read_bytes())
        try:
            details = stage.parent("model").manifest.details
        except PgolfError:
            details = {}  # the quantize stage is gone: its errors are not known, its bytes are
        return _of_ledger(str(stage.path), found, other, cap, details)
    if kind == "quantize":
        with context.reporter.progress("code", total=None):
            data = container.encode(models.load_quantized(stage), context.config.package.coder)
            found = ledger.ledger(data)
        return _of_ledger(str(stage.path), found, {}, cap, details)
    return _of_checkpoint(context, stage, cap)


def of_file(path: Path, cap_bytes: int) -> Budget:
    """Count one `model.pgz` by itself."""
    try:
        found = ledger.ledger(path.read_bytes())
    except PgolfError as error:
        raise PgolfError(f"{path}: {error}; --from names a stage directory or a model.pgz") from error
    return _of_ledger(str(path), found, {}, cap_bytes, {})


def _of_ledger(what: str, found: Ledger, other: Mapping[str, int], cap: int, details: Mapping[str, Any]) -> Budget:
    return Budget(
        what=what,
        coder=found.coder,
        roles=found.roles(),
        header_bytes=found.header_bytes,
        model_bytes=found.total_bytes,
        other_bytes=other,
        cap_bytes=cap,
        tensors=tuple(details.get("tensors", ())),
    )


def _of_checkpoint(context: StageContext, stage: Stage, cap: int) -> Budget:
    model = models.load_model(stage, context.runtime)
    roles = model.matrix_roles()
    lines: dict[str, list[Line]] = {}
    for name, tensor in model.state_dict().items():
        role = roles.get(name, ledger.CONTROL)
        size = 4 * tensor.numel()
        control = size if role == ledger.CONTROL else 0
        lines.setdefault(role, []).append(
            Line(name, role, tensor.numel(), float(size - control), 0.0, float(control), 0.0, 0.0)
        )
    ordered = sorted(lines, key=lambda role: role == ledger.CONTROL)
    file = stage.file(models.WEIGHTS).stat().st_size
    tensors = sum(line.bytes for some in lines.values() for line in some)
    return Budget(
        what=str(stage.path),
        coder="float32",
        roles=tuple(ledger.total(role, lines[role]) for role in ordered),
        header_bytes=file - round(tensors),
        model_bytes=file,
        other_bytes={},
        cap_bytes=cap,
        tensors=(),
    )
