"""The records folder: its fields and figures are those of the manifests."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pgolf
from pgolf.errors import PgolfError
from stages.reports import credits, submission

AUTHOR = submission.Author("Ada", "ada", "tiny run", "Small.")


@pytest.fixture
def seed(chain):
    return submission.read_seed(chain.packaged.path.parent)


def another(seed: submission.Seed) -> submission.Seed:
    """The same run as if it had another seed and a score 0.01 lower."""
    manifest = dataclasses.replace(seed.train.manifest, seed=seed.number + 1)
    best = seed.best.manifest
    lower = best.metrics | {"bits_per_byte": best.metrics["bits_per_byte"] - 0.01}
    scored = dataclasses.replace(seed.best, manifest=dataclasses.replace(best, metrics=lower))
    return dataclasses.replace(
        seed,
        train=dataclasses.replace(seed.train, manifest=manifest),
        scores={**seed.scores, "eval-ttt": scored},
    )


@pytest.mark.parametrize(("name", "wanted"), [("../../my GPT/run", "MyGPTRun"), ("  ", "Run"), ("..", "Run")])
def test_the_folder_stays_below_out_whatever_the_name(seed, tmp_path, name, wanted):
    author = dataclasses.replace(AUTHOR, name=name)
    folder = submission.submission(tmp_path / "records", [seed], author, "non_record_16mb")
    assert folder.resolve().parent == tmp_path / "records"
    assert folder.name[11:] == wanted
    assert json.loads((folder / "submission.json").read_text())["name"] == name


def test_figures_come_from_the_manifests(chain, seed, tmp_path):
    folder = submission.submission(tmp_path, [seed, another(seed)], AUTHOR, "non_record_16mb")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_TinyRun", folder.name)
    entry = json.loads((folder / "submission.json").read_text())
    score, packaged = chain.ttt_score.manifest.metrics, chain.packaged.manifest.metrics
    assert entry["val_bpb"] == pytest.approx(score["bits_per_byte"] - 0.005)
    assert entry["val_bpb_std"] == pytest.approx(0.01 / 2**0.5)
    result = entry["seed_results"][str(seed.number)]
    assert result["val_bpb"] == score["bits_per_byte"]
    assert result["pre_ttt_val_bpb"] == chain.sliding_score.manifest.metrics["bits_per_byte"]
    assert result["pre_quant_val_bpb"] == chain.float_score.manifest.metrics["bits_per_byte"]
    # As records have it: after minus before, below zero where learning helped.
    assert result["ttt_gain_bpb"] == result["val_bpb"] - result["pre_ttt_val_bpb"]
    assert result["steps"] == entry["train_steps_mean"] == 6
    assert entry["hardware"].startswith("1 CPU core (")
    assert entry["bytes_total"] == packaged["total_bytes"] == result["artifact_bytes"]
    assert entry["seeds"] == [seed.number, seed.number + 1]
    # Nothing was audited, so nothing is said of what an audit tests.
    assert entry["compliance"] == {
        "artifact_under_16mb": True, "eval_under_600s": True, "train_under_600s": True,
        "three_seeds": False, "no_pre_quant_ttt": True,
    }  # fmt: skip
    readme = (folder / "README.md").read_text()
    assert f"**val_bpb {entry['val_bpb']:.8f}** ± {entry['val_bpb_std']:.5f}" in readme
    assert f"{packaged['total_bytes']:,}" in readme
    assert f"tokens scored: {score['tokens_scored']:,}; bytes scored: {score['bytes_scored']:,}" in readme
    assert "is not the challenge's FineWeb" in readme
    assert "val.jsonl`" in readme
    assert "[--ttt]" not in readme
    assert entry["reproducibility_notes"].startswith("pgolf makes the shards")
    assert entry["attribution"]["muon"].startswith("Keller Jordan")
    assert "| dynamic_evaluation | arXiv 1709.07432 |" in readme
    for default in ("num_heads = 2", "logit_softcap = 30.0", "method = trellis", "matrix_lr = 0.026"):
        assert default in readme
    log = (folder / f"train_seed{seed.number}.log").read_text()
    # What training wrote while it trained comes first, to the byte.
    assert log.startswith(chain.trained.file("train.log").read_text())
    assert log.startswith("Hyperparameters:\n  tokenizer.vocab_size: 384\n")
    assert log.index("model_params:") < log.index("\n1/6 train_loss:") < log.index("\n6/6 train_loss:")
    assert f"Total submission size quantized+range: {packaged['total_bytes']} bytes" in log
    assert f"val_bpb:{score['bits_per_byte']:.8f}" in log
    assert (folder / "train_gpt.py").read_bytes() == chain.packaged.file("train_gpt.py").read_bytes()
    with pytest.raises(PgolfError, match="exists"):
        submission.submission(tmp_path, [seed], AUTHOR, "non_record_16mb")


def test_the_lines_of_its_readme_run_in_that_folder(chain, seed, tmp_path):
    """Without pgolf beside it: train, then score without and with test-time training.

    Where no compiler is found it computes in plain torch, as the stages of `chain` did, and the bytes are the same.
    With one it times its kernels in C and takes the faster: they round differently, so losses are compared.
    """
    folder = submission.submission(tmp_path, [seed], AUTHOR, "non_record_16mb")
    block = (folder / "README.md").read_text().partition("## How to run\n\n```\n")[2].partition("```")[0]
    lines = [line.split() for line in block.splitlines() if line.startswith("python train_gpt.py")]
    assert len(lines) == 3

    def printed_by(line: list[str], *more: str, path: str) -> str:
        words = [str(chain.tokens.path) if word == "FOLDER_OF_SHARDS" else word for word in line[1:]]
        command = [sys.executable, "-I", *words, *more, "--threads", "1", "--device", "cpu"]
        where = {"cwd": folder, "env": {**os.environ, "PATH": path}}
        done = subprocess.run(command, **where, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    printed = [printed_by(line, path=str(tmp_path)) for line in lines]
    assert "kernels in use: none" in printed[0]
    assert (folder / "model.pgz").read_bytes() == chain.packaged.file("model.pgz").read_bytes()
    log = (folder / "model.log").read_text()
    assert log.startswith(printed[0])
    assert printed[0].startswith("Hyperparameters:\n  tokenizer.vocab_size: 384\n")
    recorded = [json.loads(line)["loss"] for line in chain.trained.file("metrics.jsonl").read_text().splitlines()]
    with_kernels = printed_by(lines[0], "--out", "again.pgz", path=os.environ["PATH"])
    for text, tolerance in ((log, 2e-6), (with_kernels, 1e-3)):
        losses = [float(found) for found in re.findall(r"train_loss:(\S+)", text)]
        assert losses == pytest.approx(recorded, abs=tolerance)
    for text, stage in zip(printed[1:], (chain.sliding_score, chain.ttt_score), strict=True):
        scored, claimed = json.loads(text), stage.manifest.metrics
        assert abs(scored["bits_per_byte"] - claimed["bits_per_byte"]) < 1e-6
        assert scored["bytes_scored"] == claimed["bytes_scored"]
        assert text in log


def test_no_claims_of_a_failed_or_missing_audit(seed, monkeypatch):
    audited = dataclasses.replace(
        seed.package,
        manifest=dataclasses.replace(
            seed.package.manifest,
            stage="audit",
            inputs={"model": seed.package.manifest.inputs["model"]},
            config={"options": {"evaluator": "ttt"}},
            details={"failed": []},
        ),
    )
    monkeypatch.setattr(submission.runs, "stages_of", lambda run: [audited])
    assert submission.describe([seed], AUTHOR, "t", "d", None)["compliance"]["score_first_ttt"] is True
    audited.manifest.details["failed"].append("causality")
    assert submission.describe([seed], AUTHOR, "t", "d", None)["compliance"]["score_first_ttt"] is False


def test_runs_that_differ_in_more_than_the_seed_are_refused(chain, seed, tmp_path):
    for seeds, match in (([seed, seed], "same seed"), ([], "at least one")):
        with pytest.raises(PgolfError, match=match):
            submission.submission(tmp_path, seeds, AUTHOR, "non_record_16mb")
    with pytest.raises(PgolfError, match="--track"):
        submission.submission(tmp_path, [seed], AUTHOR, "fast")
    other = another(seed)
    config = json.loads(json.dumps(other.quantized.manifest.config))
    config["model"]["qk_gain"] = 2.0
    manifest = dataclasses.replace(other.quantized.manifest, config=config)
    other = dataclasses.replace(other, quantized=dataclasses.replace(other.quantized, manifest=manifest))
    with pytest.raises(PgolfError, match=r"differs .* in \[model\]"):
        submission.submission(tmp_path, [seed, other], AUTHOR, "non_record_16mb")
    with pytest.raises(PgolfError, match="has no package"):
        submission.read_seed(tmp_path)
    with pytest.raises(PgolfError, match="has no package@x; it has package: choose with --variant"):
        submission.read_seed(seed.run, "x")
    assert submission.warnings([seed], "10min_16mb")[0].startswith("track 10min_16mb wants 8 GPUs; this was made on 1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("NVIDIA H100 80GB HBM3", "8xH100 80GB SXM"),
        ("NVIDIA A100-SXM4-80GB", "8xA100 80GB SXM"),
        ("NVIDIA H100 PCIe", "8xH100 PCIe"),
        ("NVIDIA H200", "8xH200"),
        ("NVIDIA GeForce RTX 4090", "8xGeForce RTX 4090"),
    ],
)
def test_hardware_is_written_as_in_the_records(name, written):
    assert submission.hardware({"device_name": name, "device": "cuda", "world_size": 8}) == written


def test_every_credit_is_named_where_the_technique_is_made():
    library = "".join(path.read_text() for path in Path(pgolf.__file__).parent.rglob("*.py"))
    for name, source, _ in (*credits._ALWAYS, *credits._LEARNING):
        for number in re.findall(r"#\d+|\d{4}\.\d{5}", source):
            assert number in library, name
