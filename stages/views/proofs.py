"""The proofs of a run's scores, for the reports: what was coded, whether it came back, and whether it still holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgolf import sandbox
from pgolf.store import lineage
from pgolf.store.stage_directory import Stage


@dataclass(frozen=True)
class Proof:
    """A `prove` stage."""

    stage: Stage
    of: str
    """Label of the evaluation or package whose score it proves."""
    stale: str
    """Why it is no proof of the run as it is now; empty: it is one."""

    @property
    def score(self) -> str:
        """`sliding` or `ttt`; proofs of version 0.2 name their evaluation only."""
        return str(self.stage.manifest.details.get("score") or self.of.partition("@")[0].removeprefix("eval-"))

    def rows(self) -> list[tuple[str, str]]:
        """The proof for readers, (what, value) each."""
        manifest = self.stage.manifest
        environment, made = manifest.environment, manifest.pgolf
        by = (
            f"pgolf {made.get('version')}, commit {made.get('commit') or 'unknown'}, torch {environment.get('torch')} "
            f"on {environment.get('device_name')}, {manifest.started[:10]}"
        )
        state = [("no longer valid", self.stale)] if self.stale else []
        return [*rows(manifest.metrics, manifest.details), ("made by", by), *state]

    def record(self) -> dict[str, Any]:
        """The proof as an entry of submission.json."""
        manifest = self.stage.manifest
        names = ("bits_per_byte", "claimed_bits_per_byte", "bytes_scored", "code_bytes", "file_bytes")
        return {
            "score": self.score,
            **{name: manifest.metrics[name] for name in names},
            "whole_text": manifest.details["whole"],
            "came_back": manifest.details["came_back"],
            "sandbox": manifest.details["wall"],
            "date": manifest.started[:10],
            "manifest_sha256": self.stage.manifest_sha256,
        }


def rows(metrics: Mapping[str, Any], details: Mapping[str, Any]) -> list[tuple[str, str]]:
    coded, claimed = metrics["bits_per_byte"], metrics["claimed_bits_per_byte"]
    part = "the whole of" if details["whole"] else f"the first {metrics['tokens_scored']:,} tokens of"
    rest = metrics["file_bytes"] - metrics["code_bytes"]
    where = "a fresh process" if details["wall"] == sandbox.NOTHING else "a fresh process without the text"
    return [
        ("text", f"{part} {details['text']}, {metrics['bytes_scored']:,} bytes"),
        ("claimed score", f"{claimed:.5f} bits per byte"),
        ("the text as code", f"{metrics['code_bytes']:,} bytes, {coded:.5f} bits per byte"),
        (
            "overhead of the coder",
            f"{coded - claimed:+.5f} bits per byte, {(coded - claimed) / max(claimed, 1e-9):+.3%}",
        ),
        ("header and checks of the file", f"{rest:,} bytes"),
        (where, "got the text back" if details["came_back"] else "got another text"),
    ]


def proofs_of(stages: Sequence[Stage]) -> list[Proof]:
    """The proofs among a run's stages, each compared with the stages that the run has now."""
    return [_proof(stage, stages) for stage in stages if stage.manifest.stage == "prove"]


def valid(stages: Sequence[Stage], kind: str) -> Proof | None:
    """The proof of the run's score of a kind (`eval-ttt`) that covers most of the text; None when there is none."""
    found = [proof for proof in proofs_of(stages) if not proof.stale and proof.score == kind.removeprefix("eval-")]
    return max(found, key=lambda proof: proof.stage.manifest.metrics["tokens_scored"], default=None)


def _proof(stage: Stage, stages: Sequence[Stage]) -> Proof:
    entry = stage.manifest.inputs["score"]
    of = entry.name or entry.stage or "score"
    source = next((one for one in stages if one.manifest_sha256 == entry.sha256), None)
    if source is None:
        return Proof(stage, of, f"{of} is no longer the one that was proved: run pgolf prove again")
    if lineage.outdated(source):
        return Proof(stage, of, f"the model of {of} was made again since: run pgolf prove again")
    mine = source.manifest.inputs["model"]
    packed = [one.manifest.inputs["model"] for one in stages if one.manifest.stage == "package"]
    if any(model.name == mine.name and model.sha256 != mine.sha256 for model in packed):
        return Proof(stage, of, "the package holds another model than the one that was proved: run pgolf prove again")
    return Proof(stage, of, "")
