"""Runs in one table, what two of them differ in, and settings with their meanings."""

import hashlib
import json
import shlex
import shutil
from pathlib import Path

import pytest
from typed import pgolf
from typer.testing import CliRunner

from cli.app import app
from pgolf import open_run
from pgolf.config import catalog
from pgolf.errors import PgolfError
from pgolf.store import runs, stage_directory
from stages.eval_sliding import eval_sliding
from stages.quantize import quantize
from stages.reports import runs_table
from stages.reports.html import render
from stages.views import repeat


@pytest.fixture
def artifacts(chain, tmp_path):
    """Two runs, the second with a variant of its scores."""
    run = chain.packaged.path.parent
    for name in ("one", "two"):
        shutil.copytree(run, tmp_path / name)
    return tmp_path


def test_every_run_and_variant_is_a_row(artifacts, chain):
    rows = {row.run: row for row in runs_table.rows(artifacts, "bits_per_byte")}
    assert list(rows) == sorted(rows, key=lambda name: (rows[name].bits_per_byte, name))
    assert set(rows) == {"one", "one@float", "two", "two@float"}
    one = rows["one"]
    assert one.bits_per_byte == chain.sliding_score.manifest.metrics["bits_per_byte"]
    assert one.ttt_bits_per_byte == chain.ttt_score.manifest.metrics["bits_per_byte"]
    assert one.bytes == chain.packaged.manifest.details["ledger"]["counted_bytes"]
    assert (one.tokens, one.quantizer) == (chain.trained.manifest.metrics["tokens"], "trellis")
    assert (rows["one@float"].quantizer, rows["one@float"].bytes) == (None, None)
    shown = pgolf_look("runs", "--artifacts", artifacts)
    assert max(map(len, shown.splitlines())) <= 80
    assert f"{one.bytes:,}" in shown
    lines = pgolf_look("runs", "--artifacts", artifacts, "--csv", "--sort", "run").splitlines()
    assert lines[0].split(",")[:2] == ["run", "date"]
    assert [line.split(",")[0] for line in lines[1:]] == ["one", "one@float", "two", "two@float"]
    newer = artifacts / "two" / "train" / "manifest.json"
    newer.write_text(newer.read_text().replace('"schema": 1', '"schema": 99'))
    faults: list[str] = []
    assert {row.run for row in runs_table.rows(artifacts, "run", faults.append)} == set(rows)
    assert len(faults) == 1
    assert "two/train/manifest.json has schema 99" in faults[0]
    with pytest.raises(PgolfError, match="no column 'byts'; did you mean bytes"):
        runs_table.rows(artifacts, "byts")
    with pytest.raises(PgolfError, match="holds no run"):
        runs_table.rows(artifacts / "one" / "train")


def test_a_score_of_a_model_that_was_replaced_is_not_shown_as_the_runs(artifacts, chain, context):
    run, model = artifacts / "two", chain.quantized
    made = context(run, quantize={"method": "rtn"})
    quantize(made, stage_directory.open_stage(run / "ema-finalize"))
    rows = {row.run: row for row in runs_table.rows(artifacts)}
    two = rows["two"]
    assert (two.quantizer, two.bits_per_byte, two.ttt_bits_per_byte) == ("rtn", None, None)
    assert two.bytes == stage_directory.open_stage(run / "quantize").manifest.metrics["model_bytes"]
    assert rows["two@float"].bits_per_byte == rows["one@float"].bits_per_byte
    assert set(open_run(run).scores) == {"eval-sliding@float"}
    assert model.manifest.config["quantize"]["method"] == "trellis"
    page = render("two", runs.stages_of(run))
    assert page.count("of a model replaced since") == 3  # two scores and the package
    assert "replaced since" not in render("one", runs.stages_of(artifacts / "one"))


def test_a_variant_of_a_variant_is_described_by_its_own_lineage(artifacts, chain, context):
    run = artifacts / "one"
    rtn = context(run, quantize={"method": "rtn"}).replace(name="rtn")
    made = quantize(rtn, stage_directory.open_stage(run / "ema-finalize"))
    eval_sliding(context(run).replace(name="of-rtn"), made)
    rows = {row.run: row for row in runs_table.rows(artifacts)}
    assert (rows["one"].quantizer, rows["one@of-rtn"].quantizer) == ("trellis", "rtn")
    assert rows["one@of-rtn"].tokens == chain.trained.manifest.metrics["tokens"]


def pgolf_look(*words):
    """What a command that makes nothing prints."""

    done = CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return done.stdout


def test_what_two_stages_differ_in_and_what_it_did(artifacts, chain):
    found = runs_table.compared(artifacts / "one" / "eval-sliding", artifacts / "one" / "eval-sliding@float")
    names = {(what, name) for what, name, _, _ in found}
    assert {("input", "model"), ("number", "bits_per_byte")} <= names
    assert runs_table.compared(artifacts / "one", artifacts / "two") == []
    manifest = artifacts / "two" / "train" / "manifest.json"
    values = json.loads(manifest.read_text())
    values["config"]["train"]["iterations"] = 7
    manifest.write_text(json.dumps(values))
    assert ("setting", "train.iterations", 6, 7) in runs_table.compared(artifacts / "one", artifacts / "two")
    told = json.loads(pgolf_look("inspect", "--artifacts", artifacts, "--diff", "one", "two", "--json"))
    assert {"what": "setting", "name": "train.iterations", "a": 6, "b": 7} in told["differences"]
    settings = json.loads(
        pgolf_look("config", "--artifacts", artifacts, "--diff", "one", str(artifacts / "two" / "train"), "--json")
    )
    assert settings == {"train.iterations": {"a": 6, "b": 7}}
    assert pgolf("config", "--artifacts", artifacts, "--diff", "one", "tow").exit_code == 2


def test_every_setting_has_a_meaning_and_the_choices_are_accepted():
    every = catalog.settings()
    assert len(every) > 100
    assert all(item.meaning.endswith((".", ")")) for item in every)
    known = {item.key: item for item in every}
    assert known["ttt.method"].choices == ("sgd", "lora", "in-place", "phased")
    assert known["train.matmul"].choices == ("float32", "bfloat16", "auto")
    assert (known["train.seconds"].unit, known["train.seconds"].default) == ("seconds", 0.0)
    assert not known["train.log_every"].changes_results
    assert known["model.dim"].changes_results
    assert "seed" in known
    with pytest.raises(PgolfError, match=r"did you mean train.iterations\?"):
        catalog.find("iteratons")
    changed = json.loads(pgolf_look("config", "--preset", "demo", "--set", "train.seconds=7", "--json"))["settings"]
    values = {item["key"]: item["value"] for item in changed}
    assert (values["train.seconds"], values["model.dim"]) == (7.0, 96)
    assert "evaluate.stride" not in values
    assert set(json.loads(pgolf_look("presets", "--json"))) >= {"demo", "mini", "seed", "record"}


def test_only_variants_that_nothing_was_made_from_are_removed(artifacts):
    run = artifacts / "one"
    pgolf_look("report", "--artifacts", artifacts, "--run", "one")  # reads every stage, and holds none

    def variant(label, model=None):
        """A copy of the float score under another label, made from `model`; returns the hash of its manifest."""
        shutil.copytree(run / "eval-sliding@float", run / label)
        values = json.loads((run / label / "manifest.json").read_text()) | {"name": label}
        if model is not None:
            values["inputs"]["model"]["sha256"] = model
        (run / label / "manifest.json").write_text(json.dumps(values))
        return hashlib.sha256((run / label / "manifest.json").read_bytes()).hexdigest()

    base = variant("eval-sliding@base")
    shutil.copytree(run / "eval-sliding", artifacts / "other" / "eval-sliding")
    child = artifacts / "other" / "eval-sliding" / "manifest.json"
    values = json.loads(child.read_text())
    values["inputs"]["model"]["sha256"] = base
    child.write_text(json.dumps(values))
    variant("eval-sliding@leaf", base)
    variant("eval-sliding@mine")
    (run / "eval-sliding@mine" / "notes.txt").write_text("mine")
    listed = json.loads(pgolf_look("clean", "--artifacts", artifacts, "--run", "one", "--json"))["found"]
    kept = {Path(item["path"]).name: item["kept_for"] for item in listed}
    assert kept["eval-sliding@base"] == "other/eval-sliding was made from it"
    assert "notes.txt in it is not pgolf's" in kept["eval-sliding@mine"]
    assert {name for name, reason in kept.items() if not reason} == {"eval-sliding@float", "eval-sliding@leaf"}
    before = {path.name for path in run.iterdir()}
    assert "--force removes 1," in pgolf_look("clean", "leaf", "--artifacts", artifacts, "--run", "one")
    assert {path.name for path in run.iterdir()} == before
    pgolf_look("clean", "leaf", "--artifacts", artifacts, "--run", "one", "--force")
    assert {path.name for path in run.iterdir()} | {".lock"} == before - {"eval-sliding@leaf"} | {".lock"}
    pgolf_look("clean", "--artifacts", artifacts, "--run", "one", "--force")
    assert {path.name for path in run.glob("*@*")} == {"eval-sliding@base", "eval-sliding@mine"}
    assert (run / "train" / "model.safetensors").is_file()
    wrong = pgolf("clean", "lefa", "--artifacts", artifacts, "--run", "one")
    assert wrong.exit_code == 2


@pytest.mark.parametrize("label", ["eval-sliding", "eval-sliding@float", "eval-ttt", "eval-sliding@other"])
def test_the_line_that_repeats_a_score_repeats_it(artifacts, documents, tmp_path, monkeypatch, label):
    monkeypatch.chdir(artifacts)
    if label.endswith("@other"):
        named = ("--documents", documents[1], "--name", "other", "--set", "evaluate.stride=8")
        assert pgolf("eval-sliding", "--artifacts", ".", "--run", "one", *named).exit_code == 0
    stage = stage_directory.open_stage(Path("one") / label)
    done = pgolf(*shlex.split(repeat.command(stage))[1:])
    assert done.exit_code == 0, done.output
    made = stage_directory.open_stage(Path("one") / label)
    assert made.manifest_sha256 != stage.manifest_sha256  # it was made once more
    for name in ("bits_per_byte", "tokens_scored"):
        assert made.manifest.metrics[name] == pytest.approx(stage.manifest.metrics[name], abs=1e-6)  # other kernels
    # The line is printed whole, to be copied.
    assert f"repeat it: {repeat.command(made)}\n" in done.stdout


def test_a_report_of_a_package_alone_is_beside_it(chain, tmp_path):
    alone = Path(shutil.copytree(chain.packaged.path, tmp_path / "sent package"))
    pgolf_look("report", alone)
    page = (tmp_path / "sent package.html").read_text()
    assert f"{chain.packaged.manifest.details['ledger']['counted_bytes']:,}" in page
    refused = pgolf("report", alone)
    assert (refused.exit_code, "exists" in refused.stderr) == (2, True)
    assert pgolf("report", "--from", alone).exit_code == 2


def test_a_lineage_file_is_read_like_the_run(artifacts, chain, tmp_path):
    file = tmp_path / "one.lineage.json"
    pgolf_look("share", "one", "--artifacts", artifacts, "--out", file)
    tensors = sum(item.stat().st_size for item in (artifacts / "one").rglob("*.safetensors"))
    assert file.stat().st_size < tensors
    assert pgolf_look("inspect", "--from", file).startswith(f"{file}\n")
    told = json.loads(pgolf_look("inspect", "--from", file, "--json"))
    whole = json.loads(pgolf_look("inspect", "--artifacts", artifacts, "--run", "one", "--json"))
    assert [item["metrics"] for item in told["stages"]] == [item["metrics"] for item in whole["stages"]]
    assert {item["name"]: item["lineage"].get("model") for item in told["stages"]}["package"] == "ok"
    pgolf_look("report", file)
    page = file.with_suffix(".html").read_text()
    assert f"{chain.ttt_score.manifest.metrics['bits_per_byte']:.4f}" in page
    assert f"numpy {chain.ttt_score.manifest.environment['packages']['numpy']}" in page
    manifest = artifacts / "two" / "eval-sliding" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'))  # or it would be the same evaluation
    side = json.loads(pgolf_look("compare", file, artifacts / "two", "--stage", "eval-sliding", "--json"))
    assert side["a"]["bits_per_byte"] == side["b"]["bits_per_byte"]
    assert side["a"]["stages"] == [f"{file}, eval-sliding"]
    for text in ("{}", "[", '{"pgolf_lineage": 2, "run": "x", "stages": {}}'):
        file.write_text(text)
        refused = pgolf("inspect", "--from", file)
        assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
    values = {"pgolf_lineage": 1, "run": "..", "stages": {"../x": {"manifest": "{}", "files": {}}}}
    file.write_text(json.dumps(values))
    assert "no lineage file" in pgolf("report", file).stderr.replace("\n", " ")
