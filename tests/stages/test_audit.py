"""Audit, compare and report on a small run with a real tokenizer and a model that was never trained."""

import dataclasses
import json
import lzma
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from typer.testing import CliRunner

from cli.app import app
from pgolf import config as configs
from pgolf import runtime
from pgolf.audit import evaluators, record
from pgolf.audit.text import round_trips
from pgolf.errors import CheckFailed, PgolfError
from pgolf.evaluate.evaluator import Trace
from pgolf.model.gpt import GPT
from pgolf.progress import Silent
from pgolf.saved import tokens as token_stages
from pgolf.saved.models import load_model
from pgolf.store.manifest import hash_file
from pgolf.store.stage_directory import open_stage
from stages import audit as audits
from stages.audit import AuditOptions, audit
from stages.context import StageContext
from stages.eval_sliding import eval_sliding
from stages.eval_ttt import eval_ttt
from stages.reports import compare
from stages.reports.html import FILE, html_report, render
from stages.tokenize import tokenize

SETTINGS = (
    "tokenizer.vocab_size=300",
    "model.vocab_size=300",
    "model.dim=16",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "train.seq_len=32",
    "evaluate.stride=16",
    "evaluate.canonical=true",
    "ttt.chunk_tokens=64",
)
OPTIONS = AuditOptions(tokens=300, probes=10)


def documents(count, seed):
    words = ["the", "cat", "sat on", "a mat", "<b>&", "saw", "an old", "dog", "ran far", "over", "hills", "of snow"]
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(words, 25)) + f" {index}." for index in range(count)]


def fake_train(context, tokens):
    """A train stage with the weights a model begins with."""
    with context.build("train", inputs={"tokens": tokens}, sections=("model",)) as build:
        torch.manual_seed(context.config.seed)
        model = GPT(context.config.model)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.3 * torch.randn_like(weight))  # zero-initialized projections would hide the context
        save_file(
            {name: value.clone() for name, value in model.state_dict().items()}, build.writer.path("model.safetensors")
        )
        lines = [
            {"iteration": 10 * i, "seconds": float(i), "loss": 6 - 0.1 * i, "tokens": 640 * i} for i in range(1, 30)
        ]
        build.writer.path("metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        build.metrics |= {
            "iterations": 290,
            "tokens": 18560,
            "parameters": 5000,
            "seconds": 29.0,
            "tokens_per_second": 640.0,
            "holdout_nats_per_token": 3.1,
        }
    return build.stage


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(context, trained): a run with its two evaluations and its first audit."""
    folder = tmp_path_factory.mktemp("artifacts")
    for name, count, seed in (("train", 60, 0), ("val", 8, 1)):
        rows = [json.dumps({"text": text}) for text in documents(count, seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    context = StageContext(
        run=folder / "run",
        config=configs.load("demo", None, SETTINGS),
        runtime=runtime.choose("cpu", threads=1),
        reporter=Silent(),
        command=("pgolf", "test"),
    )
    tokens = tokenize(context, train=[folder / "train.jsonl"], val=[folder / "val.jsonl"])
    trained = fake_train(context, tokens)
    eval_sliding(context, trained)
    eval_ttt(context, trained)
    audit(context, trained, OPTIONS)
    return context, trained


def report_of(stage):
    return json.loads(stage.file(audits.REPORT).read_text())


def test_our_sliding_window_passes_with_evidence(run):
    context, trained = run
    report = report_of(audit(context, trained, OPTIONS))  # up to date: read, not run again
    outcomes = {row["check"]: row["outcome"] for row in report["findings"]}
    assert "failed" not in outcomes.values()
    for check in ("causality", "own target", "normalization", "single pass", "bytes", "isolation", "reported score"):
        assert outcomes[check] == "passed", check
    isolation = next(row for row in report["findings"] if row["check"] == "isolation")
    assert any(path.endswith("model.safetensors") for path in isolation["numbers"]["inputs_read"])
    bytes_row = next(row for row in report["findings"] if row["check"] == "bytes")
    assert bytes_row["numbers"]["compared_with"] == "documents"


def watch_off(monkeypatch):
    """Without the process of its own, which one test above starts."""
    monkeypatch.setattr(audits, "_isolation", lambda case, nll, noise: audits.watch.not_watched("left out"))


@pytest.mark.parametrize(
    "assignments",
    [
        ("evaluate.context=banded",),
        ("evaluate.reset_at_documents=true",),
    ],
    ids=["banded", "reset"],
)
def test_every_way_to_slide_passes(run, monkeypatch, assignments):
    watch_off(monkeypatch)
    context, trained = run
    context = context.replace(config=configs.load(None, None, assignments, base=context.config), name="other")
    report = report_of(audit(context, trained, OPTIONS))
    documents = next(row for row in report["findings"] if row["check"] == "documents")
    assert documents["outcome"] == ("passed" if "reset" in assignments[0] else "shown")


@pytest.mark.parametrize("method", ["sgd", "lora", "in-place", "phased"])
def test_every_way_to_learn_passes(run, monkeypatch, method):
    watch_off(monkeypatch)
    context, trained = run
    config = configs.load(None, None, (f"ttt.method={method}",), base=context.config)
    context = context.replace(config=config, name=method)
    options = AuditOptions(evaluator="ttt", tokens=300, probes=10)
    outcomes = {row["check"]: row["outcome"] for row in report_of(audit(context, trained, options))["findings"]}
    for check in ("causality", "own target", "normalization", "first block", "single pass"):
        assert outcomes[check] == "passed", check


def test_the_mixture_passes_as_what_learns_and_is_named_in_the_disputes(run, monkeypatch):
    watch_off(monkeypatch)
    context, trained = run
    config = configs.load(None, None, ("evaluate.mixture=true",), base=context.config)
    context = context.replace(config=config, name="mixture")
    scored = eval_sliding(context, trained).manifest.metrics
    report = report_of(audit(context, trained, OPTIONS))
    outcomes = {row["check"]: row["outcome"] for row in report["findings"]}
    for check in ("causality", "own target", "normalization", "score first", "single pass"):
        assert outcomes[check] == "passed", check
    assert "failed" not in outcomes.values()
    assert "statistics built at evaluation" in {row["question"] for row in report["disputes"]}
    assert report["metrics"]["bits_per_byte"] != pytest.approx(scored["bits_per_byte"], abs=1e-4)


@pytest.mark.parametrize("evaluator", ["sliding", "ttt"])
def test_the_tilt_passes_in_and_out_of_stream_order(run, monkeypatch, evaluator):
    watch_off(monkeypatch)
    context, trained = run
    tilt = ("evaluate.tilt_boost=2.6", "evaluate.tilt_order=2", "evaluate.tilt_threshold=0.4", "ttt.method=lora")
    context = context.replace(config=configs.load(None, None, tilt, base=context.config), name=f"tilt-{evaluator}")
    scored = (eval_sliding if evaluator == "sliding" else eval_ttt)(context, trained)
    assert scored.manifest.details["tilt"]["hinted"] > 10
    report = report_of(audit(context, trained, AuditOptions(evaluator=evaluator, tokens=300, probes=10)))
    outcomes = {row["check"]: row["outcome"] for row in report["findings"]}
    for check in ("causality", "own target", "normalization", "first block", "single pass"):
        assert outcomes[check] == "passed", check
    assert "failed" not in outcomes.values()
    assert any("#1514" in row["here"] for row in report["disputes"])


class Peek:
    def __init__(self, inner):
        self.inner = inner

    def score(self, tokens, positions=()):
        found = self.inner.score(tokens, positions)
        ahead = np.append(tokens[2:] % 2, 0)
        return Trace(found.nll - 0.01 * ahead, found.order, found.log_probs)


def test_a_failed_audit_keeps_its_report_and_names_its_path(run, monkeypatch):
    watch_off(monkeypatch)
    context, trained = run
    honest = evaluators.evaluator
    monkeypatch.setattr(evaluators, "evaluator", lambda *arguments: Peek(honest(*arguments)))
    context = context.replace(name="peek")
    with pytest.raises(CheckFailed, match=r"tokens before the change 1.*report\.md"):
        audit(context, trained, OPTIONS)
    stage = context.run / "audit@peek"
    assert "looks 1 token ahead" in (stage / audits.READABLE).read_text()
    with pytest.raises(CheckFailed):  # up to date and still a failure
        audit(context, trained, OPTIONS)


def test_an_unknown_evaluator_is_refused(run):
    context, trained = run
    with pytest.raises(PgolfError, match="choose sliding or ttt"):
        audit(context, trained, AuditOptions(evaluator="oracle"))


def test_compare_pairs_documents_and_refuses_copies(run):
    context, _ = run
    sides = [compare.find(name, context.run.parent, None) for name in ("run/eval-sliding", "run")]
    assert [side[0].label for side in sides] == ["eval-sliding", "eval-ttt"]
    result = compare.compare(Silent(), *sides)
    assert result.paired is not None
    assert result.paired.documents == 8
    assert "Nothing can be claimed about seeds" in " ".join(result.verdict)
    gap = result.samples[1].mean - result.samples[0].mean
    assert result.paired.difference == pytest.approx(gap, abs=1e-6)
    val = "".join(text + "\n" for text in documents(8, 1)).encode()
    shown = {row.key: row.bits_per_byte for row in compare.compressors(Silent(), sides[1][0])}
    assert shown["xz"] == 8 * len(lzma.compress(val)) / len(val)
    with pytest.raises(PgolfError, match="named twice"):
        compare.compare(Silent(), sides[0], sides[0])
    with pytest.raises(PgolfError, match="no run of that name"):
        compare.find("nothing*", context.run.parent, None)


def test_inspect_checks_the_order_of_scoring(run, tmp_path):
    context, _ = run
    assert CliRunner().invoke(app, ["inspect", "--check", "--from", str(context.run / "eval-ttt")]).exit_code == 0
    forged = tmp_path / "run" / "eval-ttt"
    shutil.copytree(context.run / "eval-ttt", forged)
    with (forged / "order.csv").open("a") as stream:
        stream.write("learn,1,200,0,1\n")
    facts = json.loads((forged / "manifest.json").read_text())
    facts["outputs"]["order.csv"] = dataclasses.asdict(hash_file(forged / "order.csv"))  # a forger would
    (forged / "manifest.json").write_text(json.dumps(facts))
    result = CliRunner().invoke(app, ["inspect", "--check", "--json", "--from", str(forged)])
    assert result.exit_code == 1
    assert "learned from it" in " ".join(json.loads(result.stdout)["problems"])


def without(text, words):
    return "".join(line for line in text.splitlines(True) if not line.startswith(words))


def early(text):
    """Every update 64 steps before the scores that it learns from."""
    rows = [line.split(",") for line in text.splitlines()]
    return "".join(
        ",".join([*row[:3], str(max(0, int(row[3]) - 64)), row[4]] if row[0] == "learn" else row) + "\n" for row in rows
    )


@pytest.fixture(scope="module")
def observed(run):
    """(order.csv, its evaluation's nats and number of updates, the audit's own run over the first 400 tokens)."""
    context, trained = run
    scored, config = open_stage(context.run / "eval-ttt"), evaluators.resolve(context.config, 32)
    tokens = np.asarray(token_stages.open_split(trained.ancestor("tokenize"), "val")[0:400]).astype(np.int64)
    trace = evaluators.evaluator("ttt", load_model(trained, context.runtime), config, context.runtime).score(tokens)
    nll = load_file(scored.file("scores.safetensors"))["nll"]
    return scored.file("order.csv"), nll, scored.manifest.details["steps"], trace


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text, ""),
        (lambda text: without(text, "learn,"), "lists 0 updates"),
        (lambda text: without(text, "learn-each"), "is missing, though made by the evaluation"),
        (early, "that learned from it"),
        (lambda text: text.replace("score-each,1,", "score-each,2,"), "target 1 is scored 0 times"),
        (lambda text: text + "score,5,5,3,0\n", "scored 2 times"),
        (lambda text: "what,first\n", "not a table of the intervals"),
        (lambda text: text + "learn,1,200,1000000,1\n" * 9999, "not a table of the intervals"),
        (lambda text: text + "look,1,200,0,1\n", "not a table of the intervals"),
    ],
)
def test_a_forged_order_is_found(observed, tmp_path, change, words):
    file, nll, updates, trace = observed
    (tmp_path / "order.csv").write_text(change(file.read_text()))
    found = record.scoring_order("eval-ttt", tmp_path / "order.csv", nll, updates, trace, 300)
    assert found.failed == bool(words)
    assert words in found.summary
    assert "the first 300 as the audit saw it" in found.summary or words


def test_audit_fails_with_a_forged_order_and_agrees_with_the_true_one(run, tmp_path):
    context, _ = run
    shutil.copytree(context.run.parent, tmp_path / "copy")
    copy = context.replace(run=tmp_path / "copy" / context.run.name)
    file = copy.run / "eval-ttt" / "order.csv"
    file.write_text(without(file.read_text(), "learn,"))
    facts = json.loads((file.parent / "manifest.json").read_text())
    facts["outputs"]["order.csv"] = dataclasses.asdict(hash_file(file))  # a forger would
    (file.parent / "manifest.json").write_text(json.dumps(facts))
    options = dataclasses.replace(OPTIONS, evaluator="ttt", tokens=400, probes=8)
    with pytest.raises(CheckFailed, match=r"order on record \(A9\) failed: eval-ttt: .*lists 0 updates"):
        audit(copy, open_stage(copy.run / "train"), options)
    rows = {row["check"]: row for row in report_of(open_stage(copy.run / "audit@ttt"))["findings"]}
    assert rows["tokenizer's proof"]["outcome"] == "passed"
    assert rows["tokenizer's proof"]["numbers"]["documents"] == 8
    assert rows["order on record"]["numbers"]["compared_with_the_audit"] == 399 - 32 - 64


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"changed_documents": 0', '"changed_documents": 3', "changed documents of val are 3"),
        ('"sha256": "', '"sha256": "0', "of another tokenizer"),
        ('"lossless": true', '"lossless": false', "against its own counts"),
        ('"splits"', '"parts"', "makes no sense"),
        ("{", "", "makes no sense"),
    ],
)
def test_a_forged_proof_of_the_tokenizer_fails(run, tmp_path, old, new, words):
    context, _ = run
    tokens = open_stage(context.run / "tokenize")
    file, changed = tokens.file("tokenizer_proof.json"), tmp_path / "proof.json"
    changed.write_text(new.join(file.read_text().rsplit(old, 1)))
    digest = hash_file(tokens.file("tokenizer.model")).sha256
    val = tokens.manifest.details["val"]
    facts = {"documents": 8, "bytes": val["bytes"], "tokens": val["tokens"], "changed_documents": 0}
    assert round_trips(file, digest, facts).outcome == "passed"
    assert round_trips(None, digest, facts).outcome == "not run"
    found = round_trips(changed, digest, facts)
    assert found.failed
    assert words in found.summary


def test_report_is_one_file_that_needs_nothing(run):
    context, _ = run
    stage = html_report(context)
    text = Path(stage.file(FILE)).read_text("utf-8")
    for title in (
        "Score at every stage",
        "Training",
        "What the model writes",
        "What test-time training gained",
        "Audit: audit",
        "Lineage",
    ):
        assert title in text
    assert "<script" not in text
    assert "http:" not in text
    assert "https:" not in text
    assert 'src="' not in text
    value = stage.parent("eval-sliding").manifest.metrics["bits_per_byte"]
    assert f"{value:.4f}" in text
    drawn = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(drawn) >= 3  # scores, loss, gain
    for svg in drawn:
        ElementTree.fromstring(re.sub(r"xlink:", "", svg))
    rude = render("<b>rude", [stage.parent("train")])
    assert "&lt;b&gt;rude" in rude
    assert "<b>rude" not in rude
    assert "This run holds no audit" in rude
    assert "This run holds no audit" not in text
    assert html_report(context).manifest_sha256 == stage.manifest_sha256
