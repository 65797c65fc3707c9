"""A run on one page: `report.html` holds scores, loss curve, bytes, the gain of learning, the audit and the lineage.

Every figure comes from the manifests and payload of the run's stages, but for gzip and xz, which are run on the val
text. The page is a jinja2 template, which escapes what goes in, with matplotlib's SVG; it refers to nothing outside.
"""

import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from safetensors.numpy import load_file

from pgolf.errors import PgolfError
from pgolf.runtime import Runtime
from pgolf.store import kinds, lineage, lineage_file, runs
from pgolf.store.stage_directory import Stage
from stages.audit import REPORT as AUDIT_FILE
from stages.context import StageContext
from stages.reports import loss_curve, summary
from stages.views import evaluation, proofs, repeat

FILE = kinds.PAGE
_TEMPLATE = Path(__file__).with_name("page.html.jinja")
_STRETCHES = 60  # of the stream, over which the gain is averaged
_INK = "#010203"  # replaced by the page's text color, which follows light and dark
_COLORS = ("#3f7fc1", "#d0702f", "#3d9a6c", "#a06cc0", "#c09a2e", "#7a8a9a")
_Rows = list[tuple[str, ...]]


def html_report(context: StageContext) -> Stage:
    """Write the `report` stage of the run. Raises PgolfError when the run holds no finished stage."""
    stages = [stage for stage in runs.stages_of(context.run) if stage.manifest.stage != "report"]
    if not stages:
        raise PgolfError(f"{runs.missing(context.run)}; pgolf run makes a run")
    with context.build("report", inputs={stage.label: stage for stage in stages}, sections=()) as build:
        if build.existing is None:
            with context.reporter.progress("report"):
                build.writer.path(FILE).write_text(
                    render(context.run.name, stages, _written(stages, context.runtime)), "utf-8"
                )
    context.reporter.result(f"{build.stage.path / FILE}")
    return build.stage


def page(title: str, stages: Sequence[Stage], path: Path) -> Path:
    """Write the page of stages that are no run of one's own. Raises PgolfError when the file exists."""
    lineage_file.write_new(path, render(title, stages), "move it away first")
    return path


def _written(stages: Sequence[Stage], runtime: Runtime) -> list[str]:
    """Three lines by the run's model, where its payload and the val text are here."""
    tokens = _main(stages, "tokenize")
    model = next(filter(None, (_main(stages, kind) for kind in kinds.MODELS)), None)
    if tokens is None or model is None or kinds.TOKENIZER not in tokens.manifest.outputs:
        return []
    return summary.continued(model, tokens, runtime)


def render(run: str, stages: Sequence[Stage], written: Sequence[str] = ()) -> str:
    """The page of a run's stages, oldest first. written: text by its model."""
    newest = stages[-1].manifest
    tokens, audits = _main(stages, "tokenize"), _audits(stages)
    commits = {stage.manifest.pgolf.get("commit") for stage in stages} - {None}
    facts = {**newest.environment, "commit": ", ".join(sorted(map(str, commits)))}
    jinja = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return jinja.from_string(_TEMPLATE.read_text("utf-8")).render(
        run=run,
        newest=newest,
        last_label=stages[-1].label,
        corpus="shards" if tokens is None else tokens.manifest.details.get("corpus", "shards"),
        readings=summary.compressors(tokens) if tokens is not None and _whole(tokens) else [],
        facts=_facts(stages, audits),
        written=written,
        audits=audits,
        lineage=[_ancestry(stage) for stage in stages],
        machine=[
            ({"compile": "fast paths allowed"}.get(key, key.replace("_", " ")), str(value))
            for key, value in facts.items()
            if value != "" and key != "packages"
        ],
        repeated=[
            (score.label, repeat.lines(score)) for score in (_main(stages, kind) for kind in kinds.SCORED) if score
        ],
        commands="\n".join(dict.fromkeys(repeat.typed(stage) for stage in stages)),
        **_scores(stages),
        **_training(stages),
        **_bytes(stages),
        **_gain(stages),
        proofs=[(f"{proof.stage.label} of {proof.of}", proof.rows()) for proof in proofs.proofs_of(stages)],
    )


def _whole(stage: Stage) -> bool:
    """Whether the payload is here; of a lineage file only the texts are."""
    return all((stage.path / name).exists() for name in stage.manifest.outputs)


def _of(stages: Sequence[Stage], *kinds: str) -> list[Stage]:
    return [stage for kind in kinds for stage in stages if stage.manifest.stage == kind]


def _main(stages: Sequence[Stage], kind: str) -> Stage | None:
    """The plainly named stage of a kind, else the newest one."""
    found = _of(stages, kind)
    return next((stage for stage in found if stage.label == kind), found[-1] if found else None)


def _audits(stages: Sequence[Stage]) -> list[tuple[str, dict[str, Any]]]:
    return [(stage.label, json.loads(stage.file(AUDIT_FILE).read_text("utf-8"))) for stage in _of(stages, "audit")]


def _facts(stages: Sequence[Stage], audits: Sequence[tuple[str, dict[str, Any]]]) -> _Rows:
    """The few figures that come first: (name, value)."""
    items: _Rows = []
    for kind, name in (("eval-ttt", "with test-time training"), ("eval-sliding", "sliding window")):
        if (stage := _main(stages, kind)) is not None:
            items.append((f"bits per byte, {name}{_replaced(stage)}", f"{stage.manifest.metrics['bits_per_byte']:.4f}"))
            if (proof := proofs.valid(stages, kind)) is not None:
                proved = proof.stage.manifest
                text = "all of it" if proved.details["whole"] else f"{proved.metrics['bytes_scored']:,} bytes of it"
                items.append((f"{name}, as a file that was decoded: {text}", f"{proved.metrics['bits_per_byte']:.4f}"))
    if (packed := _main(stages, "package")) is not None:
        ledger = packed.manifest.details["ledger"]
        limit = f"limit {ledger['cap_bytes']:,}{_replaced(packed)}"
        items.append((f"counted bytes, {limit}", f"{ledger['counted_bytes']:,}"))
    elif (quantized := _main(stages, "quantize")) is not None and "model_bytes" in quantized.manifest.metrics:
        items.append(("bytes of the model", f"{quantized.manifest.metrics['model_bytes']:,}"))
    if (trained := _main(stages, "train")) is not None:
        metrics = trained.manifest.metrics
        items.append(("parameters", f"{metrics['parameters']:,}"))
        items.append((f"of training, {metrics['tokens'] / 1e6:.2f} million tokens", _duration(metrics["seconds"])))
    if audits:
        failed = sum(report["metrics"]["checks_failed"] for _, report in audits)
        items.append(("audit", "failed" if failed else "passed"))
    return items


def _replaced(stage: Stage) -> str:
    """Said of a figure whose model is no longer the run's."""
    return " (of a model replaced since)" if lineage.outdated(stage) else ""


def _scores(stages: Sequence[Stage]) -> dict[str, Any]:
    scored: dict[bool, list[Stage]] = {True: [], False: []}  # by whether the text is val
    for stage in _of(stages, "eval-sliding", "eval-ttt"):
        scored[stage.manifest.details.get("text", "val") == "val"].append(stage)
    heldout = [
        (stage.label, _number(stage, "holdout_bits_per_byte"), _number(stage, "holdout_nats_per_token"))
        for stage in _of(stages, "train", "ema-finalize")
        if "holdout_nats_per_token" in stage.manifest.metrics
    ]
    values = [(stage.label, float(stage.manifest.metrics["bits_per_byte"])) for stage in scored[True]]
    return {
        "scores": [_score(stage) for stage in scored[True]],
        "others": [_score(stage) for stage in scored[False]],
        "heldout": heldout,
        "lossy": any(not stage.manifest.details.get("lossless", True) for part in scored.values() for stage in part),
        "score_bars": _bars(values, [f"{value:.4f}" for _, value in values]) if values else "",
    }


def _score(stage: Stage) -> tuple[str, ...]:
    metrics, text = stage.manifest.metrics, stage.manifest.details.get("text", "val")
    return (
        stage.label,
        (stage.manifest.inputs["model"].name or "model") + (" (replaced since)" if lineage.outdated(stage) else ""),
        f"{text}, {metrics['bytes_scored']:,} bytes",
        _number(stage, "bits_per_byte"),
        _number(stage, "nats_per_token"),
        _duration(metrics["seconds"]),
    )


def _number(stage: Stage, metric: str) -> str:
    return f"{stage.manifest.metrics[metric]:.4f}" if metric in stage.manifest.metrics else "not measured"


def _training(stages: Sequence[Stage]) -> dict[str, Any]:
    trained = _main(stages, "train")
    if trained is None or kinds.METRICS_LOG not in trained.manifest.outputs:
        return {"training": [], "loss_curve": ""}
    lines = [json.loads(line) for line in trained.file(kinds.METRICS_LOG).read_text("utf-8").splitlines()]
    seconds, losses = [line["seconds"] for line in lines], [line["loss"] for line in lines]
    metrics, marker = trained.manifest.metrics, "o" if len(lines) == 1 else None  # a line needs two points
    figure, axes = _axes()
    for values, width in ((losses, 0.8), (loss_curve.running_mean(losses), 1.8)):
        axes.plot(seconds, values, color=_COLORS[0], linewidth=width, marker=marker)
    axes.set_ylim(*loss_curve.limits(losses))
    axes.set(xlabel="seconds of training", ylabel="nats per token")
    rows = [(name.replace("_", " "), f"{metrics[name]:,.0f}") for name in ("iterations", "tokens", "seconds")]
    rows += [("tokens per second", f"{metrics['tokens_per_second']:,.0f}"), ("last loss", f"{losses[-1]:.4f}")]
    return {"training": rows, "loss_curve": _svg(figure)}


def _bytes(stages: Sequence[Stage]) -> dict[str, Any]:
    packed, quantized = _main(stages, "package"), _main(stages, "quantize")
    made: dict[str, Any] = {"files": [], "modules": [], "tensors": [], "byte_bars": "", "byte_caption": ""}
    parts: list[tuple[str, float]] = []
    if packed is not None:
        ledger = packed.manifest.details["ledger"]
        cap, counted = ledger["cap_bytes"], ledger["counted_bytes"]
        parts = [(f"model: {row['role']}", row["bytes"]) for row in ledger["model"]]
        parts += [(row["file"], row["bytes"]) for row in ledger["files"] if row["file"] != "model.pgz"]
        made["byte_caption"] = f"bytes of the package; {counted:,} of them count, the limit is {cap:,}"
        made["files"] = [
            (row["file"], f"{row['bytes']:,}", "yes" if row["counted"] else "no") for row in ledger["files"]
        ]
        made["files"].append(("left under the limit", f"{cap - counted:,}", ""))
        largest = sorted(ledger["code"], key=lambda row: -row["packed_bytes"])[:12]
        made["modules"] = [(r["module"], f"{r['packed_bytes']:,}", f"{r['source_bytes']:,}") for r in largest]
    if quantized is not None:
        tensors = quantized.manifest.details["tensors"]
        made["tensors"] = [
            (row["name"], f"{row['weights']:,}", f"{row['bits']:.3f}", f"{row['relative_error']:.4f}")
            for row in tensors
        ]
        if packed is None:
            sums: dict[str, float] = {}
            for row in tensors:
                sums[row["role"]] = sums.get(row["role"], 0.0) + row["weights"] * row["bits"] / 8
            parts, made["byte_caption"] = (
                list(sums.items()),
                "bytes of the quantized model by role, at its tensors' entropy",
            )
    if parts:
        total = sum(value for _, value in parts)
        made["byte_bars"] = _bars(parts, [f"{value:,.0f} ({value / total:.1%})" for _, value in parts])
    return made


def _gain(stages: Sequence[Stage]) -> dict[str, Any]:
    """Bits per byte that test-time training gained over the sliding window, along the stream."""
    none = {"gain": [], "gain_curve": ""}
    plain, learned = _main(stages, "eval-sliding"), _main(stages, "eval-ttt")
    if (
        plain is None
        or learned is None
        or plain.manifest.inputs["model"].sha256 != learned.manifest.inputs["model"].sha256
        or not (_whole(plain) and _whole(learned))
    ):
        return none
    first, second = (load_file(stage.file(evaluation.SCORES_FILE)) for stage in (plain, learned))
    if len(first["nll"]) != len(second["nll"]):
        return none
    edges = np.linspace(0, len(first["nll"]), min(_STRETCHES, len(first["nll"])) + 1).astype(int)
    sizes = np.maximum(np.add.reduceat(first["token_bytes"].astype(np.float64), edges[:-1]), 1.0)
    saved = np.add.reduceat(first["nll"].astype(np.float64) - second["nll"], edges[:-1]) / math.log(2)  # bits
    place, running = (edges[:-1] + edges[1:]) / 2, np.cumsum(saved) / np.cumsum(sizes)
    figure, axes = _axes()
    axes.plot(place, saved / sizes, color=_COLORS[0], linewidth=1.0, label="in each stretch")
    axes.plot(place, running, color=_COLORS[1], linewidth=1.8, label="from the beginning on")
    axes.axhline(0.0, color=_INK, linewidth=0.8)
    axes.set(xlabel="tokens of the stream", ylabel="bits per byte gained")
    axes.legend(frameon=False)
    thirds = zip(("first third", "second third", "last third"), np.array_split(np.arange(len(saved)), 3), strict=True)
    rows = [(name, f"{saved[part].sum() / sizes[part].sum():+.4f}") for name, part in thirds if len(part)]
    return {"gain": [*rows, ("all", f"{running[-1]:+.4f}")], "gain_curve": _svg(figure)}


def _ancestry(stage: Stage) -> tuple[str, ...]:
    found = lineage.ancestors(stage)
    made = [item.label + ("" if item.state in ("ok", "unchecked") else f" ({item.state})") for item in found[:4]]
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    size, origin = sum(output.bytes for output in stage.manifest.outputs.values()), ", ".join(made) or "documents"
    return stage.label, origin + more, _duration(stage.manifest.seconds), f"{size:,}", stage.manifest_sha256[:12]


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _axes(height: float = 2.8) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # half a second to import, and most commands draw nothing

    figure = Figure(figsize=(5.6, height), layout="constrained")
    axes = figure.subplots()
    axes.tick_params(colors=_INK)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set_color(_INK)
    for side, spine in axes.spines.items():
        spine.set(color=_INK, visible=side in ("left", "bottom"))
    return figure, axes


def _bars(rows: Sequence[tuple[str, float]], shown: Sequence[str]) -> str:
    """A horizontal bar from zero for each (name, value), with its text behind it."""
    figure, axes = _axes(0.4 + 0.28 * len(rows))
    places = range(len(rows))
    drawn = axes.barh(places, [value for _, value in rows], color=[_COLORS[i % len(_COLORS)] for i in places])
    axes.bar_label(drawn, shown, padding=4, color=_INK)
    axes.set_yticks(places, [name for name, _ in rows])
    axes.set_xlim(0, max(*(value for _, value in rows), 1e-9) * 1.35)
    axes.xaxis.set_visible(False)
    axes.invert_yaxis()
    return _svg(figure)


def _svg(figure: Any) -> str:
    """The figure as an SVG element for an HTML page: text stays text, and nothing names another address."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pgolf", "text.parse_math": False}):
        for text in (text for axes in figure.axes if (legend := axes.get_legend()) for text in legend.get_texts()):
            text.set_color(_INK)
        figure.patch.set_visible(False)
        for axes in figure.axes:
            axes.patch.set_visible(False)
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = re.sub(
        r"<metadata>.*?</metadata>|<!--.*?-->| xmlns(?::\w+)?=\"[^\"]*\"", "", text[text.index("<svg") :], flags=re.S
    )
    return text.replace(_INK, "currentColor")
