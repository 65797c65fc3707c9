"""A run on one page: `report.html` holds lineage, loss curve, scores, bytes, the gain of learning, and the audit.

Nothing on the page is measured here: every figure comes from the manifests and payload of the run's stages.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from pgolf.errors import PgolfError
from pgolf.page import drawing
from pgolf.page.html import (
    Cell,
    Markup,
    chain,
    code,
    facts,
    figure,
    folded,
    join,
    noted,
    page,
    paragraph,
    section,
    table,
    verdict,
)
from pgolf.store import kinds, lineage, runs
from pgolf.store.stage_directory import Stage
from stages.audit import REPORT as AUDIT_FILE
from stages.context import StageContext
from stages.views import evaluation, repeat

FILE = kinds.PAGE
_STRETCHES = 60  # of the stream, over which the gain is averaged
_NOT_SHOWN = ("report",)


def html_report(context: StageContext) -> Stage:
    """Write the `report` stage of the run. Raises PgolfError when the run holds no finished stage."""
    stages = [stage for stage in runs.stages_of(context.run) if stage.manifest.stage not in _NOT_SHOWN]
    if not stages:
        raise PgolfError(f"{runs.missing(context.run)}; pgolf run makes a run")
    with context.build("report", inputs={stage.label: stage for stage in stages}, sections=()) as build:
        if build.existing is None:
            build.writer.path(FILE).write_text(render(context.run.name, stages), "utf-8")
    context.reporter.result(f"{build.stage.path / FILE}")
    return build.stage


def render(run: str, stages: Sequence[Stage]) -> str:
    """The page of a run's stages, oldest first."""
    parts = [
        _headline(stages),
        *_scores(stages),
        *_training(stages),
        *_bytes(stages),
        *_gain(stages),
        *_audits(stages),
        _lineage(stages),
        _machine(stages),
    ]
    newest = stages[-1].manifest
    version = newest.pgolf.get("version", "?")
    return page(f"pgolf run {run}", f"{newest.started[:10]}, pgolf {version}, seed {newest.seed}", parts)


def _of(stages: Sequence[Stage], kind: str) -> list[Stage]:
    return [stage for stage in stages if stage.manifest.stage == kind]


def _main(stages: Sequence[Stage], kind: str) -> Stage | None:
    """The plainly named stage of a kind, else the newest one."""
    found = _of(stages, kind)
    return next((stage for stage in found if stage.label == kind), found[-1] if found else None)


def _headline(stages: Sequence[Stage]) -> Markup:
    items: list[tuple[str, Cell]] = []
    for kind, name in (("eval-ttt", "with test-time training"), ("eval-sliding", "sliding window")):
        if (stage := _main(stages, kind)) is not None:
            items.append((f"bits per byte, {name}", f"{stage.manifest.metrics['bits_per_byte']:.4f}"))
    if (packed := _main(stages, "package")) is not None:
        cap = packed.manifest.details["ledger"]["cap_bytes"]
        counted = packed.manifest.details["ledger"]["counted_bytes"]
        items.append((f"bytes that count, of {cap:,}" if cap else "bytes that count", f"{counted:,}"))
    elif (quantized := _main(stages, "quantize")) is not None and "model_bytes" in quantized.manifest.metrics:
        items.append(("bytes of the model", f"{quantized.manifest.metrics['model_bytes']:,}"))
    if (trained := _main(stages, "train")) is not None:
        metrics = trained.manifest.metrics
        items.append(("parameters", f"{metrics['parameters']:,}"))
        items.append((f"of training, {metrics['tokens'] / 1e6:.2f} million tokens", _duration(metrics["seconds"])))
    audits = [json.loads(stage.file(AUDIT_FILE).read_text("utf-8")) for stage in _of(stages, "audit")]
    if audits:
        failed = sum(report["metrics"]["checks_failed"] for report in audits)
        items.append(("audit", verdict("passed") if not failed else verdict("failed")))
    return facts(items)


def _scores(stages: Sequence[Stage]) -> list[Markup]:
    scored = _of(stages, "eval-sliding") + _of(stages, "eval-ttt")
    rows: list[Sequence[Cell]] = []
    for stage in [*_of(stages, "train"), *_of(stages, "ema-finalize")]:
        value = stage.manifest.metrics.get("holdout_nats_per_token")
        if value is not None:
            rows.append((noted(stage.label, "held-out train text"), "", f"{value:.4f}", ""))
    for stage in scored:
        metrics, details = stage.manifest.metrics, stage.manifest.details
        rows.append(
            (
                noted(
                    stage.label,
                    f"{stage.manifest.inputs['model'].name}, {metrics['bytes_scored']:,} bytes of "
                    f"{details.get('text', 'val')}",
                ),
                f"{metrics['bits_per_byte']:.4f}",
                f"{metrics['nats_per_token']:.4f}",
                _duration(metrics["seconds"]),
            )
        )
    if not rows:
        return []
    columns = ("stage", "bits per byte", "nats per token", "time")
    parts = [table(columns, rows)]
    if scored:
        values = [(stage.label, float(stage.manifest.metrics["bits_per_byte"])) for stage in scored]
        low = _below(min(value for _, value in values), max(value for _, value in values))
        drawn = drawing.bars([(name, value, f"{value:.4f}") for name, value in values], low)
        parts.insert(0, figure(drawn, f"bits per byte, lower is better; bars begin at {low:g}"))
    if any(not stage.manifest.details.get("lossless", True) for stage in scored):
        parts.append(paragraph("The tokenizer is lossy: its tokens do not decode to the documents exactly.", soft=True))
    return [section("Score at every stage", *parts)]


def _below(low: float, high: float) -> float:
    """A round value under all bars that leaves their differences in sight."""
    spread = max(high - low, 0.01 * high)
    step = 10.0 ** math.floor(math.log10(spread))
    return max(0.0, round(math.floor((low - 2 * spread) / step) * step, 10))


def _training(stages: Sequence[Stage]) -> list[Markup]:
    trained = _main(stages, "train")
    if trained is None or kinds.METRICS_LOG not in trained.manifest.outputs:
        return []
    text = trained.file(kinds.METRICS_LOG).read_text("utf-8")
    lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    seconds = np.array([line["seconds"] for line in lines])
    loss = np.array([line["loss"] for line in lines])
    curve = drawing.lines([("loss", seconds, loss)], "seconds of training", "nats per token")
    metrics = trained.manifest.metrics
    rows: list[Sequence[Cell]] = [
        ("steps", f"{metrics['iterations']:,}"),
        ("tokens", f"{metrics['tokens']:,}"),
        ("tokens per second", f"{metrics['tokens_per_second']:,.0f}"),
        ("seconds", f"{metrics['seconds']:,.1f}"),
        ("loss of the last steps", f"{loss[-1]:.4f}"),
    ]
    return [section("Training", figure(curve, "loss while training, means over logged steps"), table(("", ""), rows))]


def _bytes(stages: Sequence[Stage]) -> list[Markup]:
    packed, quantized = _main(stages, "package"), _main(stages, "quantize")
    parts: list[Markup] = []
    if packed is not None:
        ledger = packed.manifest.details["ledger"]
        counted = [(str(row["file"]), float(row["bytes"])) for row in ledger["files"] if row["counted"]]
        cap = float(ledger["cap_bytes"])
        rows: list[Sequence[Cell]] = [
            (str(row["file"]), f"{row['bytes']:,}", "yes" if row["counted"] else "no") for row in ledger["files"]
        ]
        rows.append(("counted together", f"{ledger['counted_bytes']:,}", ""))
        if cap:
            rows.append(("left under the cap", f"{cap - ledger['counted_bytes']:,.0f}", ""))
        names = [name for name, _ in counted]
        caption = f"what counts, of a cap of {cap:,.0f} bytes" if cap else "what counts"
        parts += [figure(drawing.stacked(counted, cap), caption, names), table(("file", "bytes", "counts"), rows)]
        parts += _shares("the model, by role of its tensors", [(r["role"], r["bytes"]) for r in ledger["model"]])
        largest = sorted(ledger["code"], key=lambda row: -row["packed_bytes"])[:12]
        if largest:
            modules: list[Sequence[Cell]] = [
                (str(row["module"]), f"{row['packed_bytes']:,}", f"{row['source_bytes']:,}") for row in largest
            ]
            parts.append(table(("largest modules of the script", "packed bytes", "source bytes"), modules))
    elif quantized is not None:
        sums: dict[str, float] = {}
        for row in quantized.manifest.details["tensors"]:
            sums[row["role"]] = sums.get(row["role"], 0.0) + row["weights"] * row["bits"] / 8
        parts += _shares("the quantized model, by role (rate of its tensors)", list(sums.items()))
    if quantized is not None:
        tensors = quantized.manifest.details["tensors"]
        each: list[Sequence[Cell]] = [
            (row["name"], f"{row['weights']:,}", f"{row['bits']:.3f}", f"{row['relative_error']:.4f}")
            for row in tensors
        ]
        listed = table(("tensor", "weights", "bits each", "relative error"), each)
        parts.append(Markup(f"<details><summary>every tensor</summary>{listed.text}</details>"))
    return [section("Where the bytes went", *parts)] if parts else []


def _shares(title: str, rows: Sequence[tuple[str, float]]) -> list[Markup]:
    if not rows:
        return []
    total = sum(value for _, value in rows)
    cells: list[Sequence[Cell]] = [(name, f"{value:,.0f}", f"{value / total:.1%}") for name, value in rows]
    names = [name for name, _ in rows]
    return [figure(drawing.stacked(rows), title, names), table(("role", "bytes", "share"), cells)]


def _gain(stages: Sequence[Stage]) -> list[Markup]:
    """Bits per byte that test-time training gained over the sliding window, along the stream."""
    plain, learned = _main(stages, "eval-sliding"), _main(stages, "eval-ttt")
    if plain is None or learned is None:
        return []
    if plain.manifest.inputs["model"].sha256 != learned.manifest.inputs["model"].sha256:
        return []
    if not all((stage.path / evaluation.SCORES_FILE).exists() for stage in (plain, learned)):
        return []  # of a lineage file
    first, second = (load_file(stage.file(evaluation.SCORES_FILE)) for stage in (plain, learned))
    if len(first["nll"]) != len(second["nll"]):
        return []
    edges = np.linspace(0, len(first["nll"]), min(_STRETCHES, len(first["nll"])) + 1).astype(int)
    sizes = np.maximum(np.add.reduceat(first["token_bytes"].astype(np.float64), edges[:-1]), 1.0)
    saved = np.add.reduceat(first["nll"].astype(np.float64) - second["nll"], edges[:-1]) / math.log(2)  # bits
    place = (edges[:-1] + edges[1:]) / 2
    running = np.cumsum(saved) / np.cumsum(sizes)
    drawn = drawing.lines(
        [("in each stretch", place, saved / sizes), ("from the beginning on", place, running)],
        "tokens of the stream",
        "bits per byte gained",
        zero=True,
    )
    thirds = np.array_split(np.arange(len(saved)), 3)
    rows: list[Sequence[Cell]] = [
        (name, f"{saved[part].sum() / sizes[part].sum():+.4f}")
        for name, part in zip(("first third", "second third", "last third"), thirds, strict=True)
        if len(part)
    ]
    rows.append(("all", f"{running[-1]:+.4f}"))
    names = ["in each stretch", "from the beginning on"]
    method = learned.manifest.details.get("method", learned.manifest.config["ttt"]["method"])
    caption = f"{learned.label} ({method}) against {plain.label}; above zero is gained"
    return [
        section(
            "What test-time training gained",
            figure(drawn, caption, names),
            table(("of the stream", "bits per byte gained"), rows),
        )
    ]


def _audits(stages: Sequence[Stage]) -> list[Markup]:
    found = []
    for stage in _of(stages, "audit"):
        report: dict[str, Any] = json.loads(stage.file(AUDIT_FILE).read_text("utf-8"))
        metrics = report["metrics"]
        rows: list[Sequence[Cell]] = [
            (
                join(row["check"], " ", Markup('<span class="soft">'), row["rule"], Markup("</span>")),
                verdict(row["outcome"]),
                row["summary"],
            )
            for row in report["findings"]
        ]
        parts = [
            paragraph(
                f"Evaluator {report['evaluator']} of {report['source']}, as a black box: {metrics['evaluations']} "
                f"evaluations of {report['text']}; {metrics['checks_passed']} checks passed, "
                f"{metrics['checks_failed']} failed, {metrics['checks_not_run']} did not apply."
            ),
            table(("check", "verdict", "evidence"), rows, words=True),
        ]
        for row in report["findings"]:
            if row["counterexample"]:
                parts.append(
                    folded(f"{row['check']}: first counterexample", json.dumps(row["counterexample"], indent=1))
                )
        shown: list[Sequence[Cell]] = [(row["question"], row["here"]) for row in report["disputes"]]
        parts += [
            paragraph("Judges differ on these; shown, not decided:"),
            table(("question", "here"), shown, words=True),
        ]
        found.append(section(f"Audit: {stage.label}", *parts))
    return found


def _lineage(stages: Sequence[Stage]) -> Markup:
    items: list[tuple[str, Cell]] = []
    for stage in stages:
        ancestors = lineage.ancestors(stage)
        made = ", ".join(
            item.label + ("" if item.state in ("ok", "unchecked") else f" ({item.state})") for item in ancestors[:4]
        ) + (f" and {len(ancestors) - 4} more" if len(ancestors) > 4 else "")
        size = sum(output.bytes for output in stage.manifest.outputs.values())
        commit = stage.manifest.pgolf.get("commit")
        said = join(
            Markup('<span class="soft">'),
            f"from {made or 'the embedded corpus'} in {_duration(stage.manifest.seconds)}, {size:,} bytes, manifest ",
            code(stage.manifest_sha256[:12]),
            *((" commit ", code(f"{commit[:10]}{'+' if commit.endswith('+') else ''}")) if commit else ()),
            Markup("</span>"),
        )
        items.append((stage.label, said))
    return section(
        "Lineage",
        chain(items),
        paragraph(
            "Each stage names the SHA-256 of the manifests it was made from; pgolf inspect checks them.", soft=True
        ),
    )


def _machine(stages: Sequence[Stage]) -> Markup:
    newest = stages[-1].manifest
    rows: list[Sequence[Cell]] = [
        (key.replace("_", " "), str(value)) for key, value in newest.environment.items() if key != "packages"
    ]
    config = json.dumps(newest.config, indent=1, ensure_ascii=False)
    commands = "\n".join(dict.fromkeys(" ".join(stage.manifest.command) for stage in stages))
    return section(
        "How it was made",
        table(("machine", ""), rows, words=True),
        folded("command lines", commands),
        folded(f"configuration of {stages[-1].label}", config),
        *(table((f"to repeat {stage.label}", ""), repeat.lines(stage), words=True) for stage in _repeated(stages)),
    )


def _repeated(stages: Sequence[Stage]) -> list[Stage]:
    """The score that the page leads with, if there is one."""
    return [stage for stage in (_main(stages, "eval-ttt") or _main(stages, "eval-sliding"),) if stage is not None]


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
