"""The whole chain on a tiny model, the package that comes out of it, and what verifying says of a changed one."""

import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pgolf import sandbox
from pgolf.errors import CheckFailed, PgolfError
from pgolf.program import build as program
from pgolf.progress import Silent
from pgolf.store import lineage, stage_directory
from pgolf.store.manifest import hash_file
from stages.audit import AuditOptions, audit
from stages.eval_sliding import eval_sliding
from stages.package import package, requirements
from stages.quantize import quantize
from stages.reports import summary
from stages.run import run
from stages.verify import verify


@pytest.fixture
def copy(chain, tmp_path) -> Path:
    """The package alone in a folder that a test may change."""
    return Path(shutil.copytree(chain.packaged.path, tmp_path / "package"))


def script_of(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-I", "train_gpt.py", *arguments, "--threads", "1", "--device", "cpu"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def claims_again(folder: Path, change) -> None:
    """Change the claims in every place that holds them, so that the folder agrees with itself."""
    claimed = json.loads((folder / "claims.json").read_text())
    manifest = json.loads((folder / "manifest.json").read_text())
    change(claimed)
    for name in claimed["files"]:
        found = hash_file(folder / name)
        claimed["files"][name] = {"bytes": found.bytes, "sha256": found.sha256}
    (folder / "claims.json").write_text(json.dumps(claimed))
    manifest["details"]["claims"] = claimed
    for name in manifest["outputs"]:
        found = hash_file(folder / name)
        manifest["outputs"][name] = {"bytes": found.bytes, "sha256": found.sha256}
    for row in manifest["details"]["ledger"]["files"]:
        row["bytes"] = (folder / row["file"]).stat().st_size
    files = {row["file"]: row["bytes"] for row in manifest["details"]["ledger"]["files"]}
    total = files["model.pgz"] + files["train_gpt.py"]
    manifest["details"]["ledger"] |= {"counted_bytes": total, "total_bytes": total}
    manifest["metrics"] |= {
        "model_bytes": files["model.pgz"],
        "code_bytes": files["train_gpt.py"],
        "total_bytes": total,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def verdict(folder: Path, chain, **options) -> tuple[bool, str]:
    checks = verify(folder, chain.tokens.path, Silent(), "cpu", 1, **options)
    return not any(check.failed for check in checks), f"{checks[-1].what}: {checks[-1].detail}"


def test_chain_leaves_every_stage_and_does_nothing_again(chain, documents, context):
    before = {stage.label: stage.manifest_sha256 for stage in chain.stages}
    assert set(before) == {
        *("tokenize", "train", "ema-finalize", "quantize"),
        *("eval-sliding@float", "eval-sliding", "eval-ttt", "package"),
    }
    again = run(context(chain.tokens.path.parent), train=[documents[0]], val=[documents[1]])
    assert {stage.label: stage.manifest_sha256 for stage in again.stages} == before
    assert not any(lineage.changed_outputs(stage) for stage in again.stages)
    assert all(item.state == "ok" for stage in again.stages for item in lineage.ancestors(stage))


def test_summary_compares_with_compressors_in_one_unit(chain):
    readings = {reading.key: reading.bits_per_byte for reading in summary.readings(chain)}
    assert readings["raw"] == 8.0
    assert 0 < readings["xz_primed"] < readings["xz"] < 8.0
    assert readings["sliding"] == chain.sliding_score.manifest.metrics["bits_per_byte"]


def test_ledger_adds_up_to_the_files(chain):
    folder, ledger = chain.packaged.path, chain.packaged.manifest.details["ledger"]
    sizes = {row["file"]: row["bytes"] for row in ledger["files"]}
    assert sizes == {name: (folder / name).stat().st_size for name in sizes}
    assert sum(row["packed_bytes"] for row in ledger["code"]) == sizes["train_gpt.py"]
    assert sum(row["bytes"] for row in ledger["model"]) == sizes["model.pgz"]
    assert chain.packaged.manifest.metrics["total_bytes"] == sizes["train_gpt.py"] + sizes["model.pgz"]
    assert ledger["counted_bytes"] == chain.packaged.manifest.metrics["total_bytes"]
    readings = ledger["readings"]
    assert readings["shipped"] == sizes["train_gpt.py"] < readings["minified"] < readings["sources"]


def test_over_the_cap_is_refused_and_leaves_nothing(chain, tmp_path, context):
    size = chain.packaged.manifest.metrics["model_bytes"]
    tight = context(tmp_path / "run", package={"cap_bytes": size - 1, "count_code": False})
    with pytest.raises(CheckFailed, match=rf"1 over the cap .* --target-bytes {size - 1}"):
        package(tight, chain.quantized)
    assert not (tmp_path / "run" / "package").exists()
    fits = context(tmp_path / "run", package={"cap_bytes": size, "count_code": False})
    assert package(fits, chain.quantized).manifest.details["ledger"]["counted_bytes"] == size


def test_a_byte_target_leaves_room_for_the_script(chain, tmp_path, context):
    """Not over the cap and hardly under it, though the script is made after the model and jumps by tens of bytes."""
    target = chain.packaged.manifest.metrics["code_bytes"] + 16_000
    aimed = {"method": "trellis", "calibration_tokens": 1024, "target_bytes": target}
    here = context(tmp_path / "run", quantize=aimed, package={"cap_bytes": target})
    quantized = quantize(here, chain.averaged)
    eval_sliding(here, quantized)
    packed = package(here, quantized).manifest.metrics
    assert target - 200 <= packed["total_bytes"] <= target
    assert packed["model_bytes"] == quantized.manifest.metrics["model_bytes"]


def test_script_alone_scores_trains_and_shows_itself(chain, copy, documents, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    for name in ("train_gpt.py", "model.pgz", "tokenizer.model"):
        shutil.copyfile(copy / name, folder / name)
    scored = json.loads(script_of(folder, "eval", "--val", str(chain.tokens.path), "--ttt"))
    claimed = chain.ttt_score.manifest.metrics
    assert abs(scored["bits_per_byte"] - claimed["bits_per_byte"]) < 1e-6
    assert scored["bytes_scored"] == claimed["bytes_scored"]
    output = script_of(folder, "train", "--data", str(chain.tokens.path), "--out", "again.pgz")
    losses = [float(found) for found in re.findall(r"loss:(\S+)", output)]
    recorded = [json.loads(line)["loss"] for line in chain.trained.file("metrics.jsonl").read_text().splitlines()]
    assert losses == pytest.approx(recorded, abs=2e-6)
    assert (folder / "again.pgz").read_bytes() == (copy / "model.pgz").read_bytes()


def test_script_holds_what_it_needs_and_no_screen(chain):
    files, _ = program.read((chain.packaged.path / "train_gpt.py").read_bytes())
    assert "pgolf/model/gpt.py" in files
    assert not [path for path in files if path.startswith(("cli", "pgolf/bundle", "stages/package"))]
    listed = (chain.packaged.path / "requirements.txt").read_text()
    assert "torch==" in listed
    assert "typer" not in listed
    assert "rich" not in listed
    assert requirements(["numpy"]).startswith("numpy==")


def test_verify_says_true_with_the_code_run_too(chain, copy):
    true, reason = verdict(copy, chain, run_code=True)
    assert true, reason
    assert reason.startswith("script: scored again")


@pytest.mark.parametrize(
    "name", ["model.pgz", "train_gpt.py", "tokenizer.model", "claims.json", "requirements.txt", "README.md"]
)
def test_one_changed_byte_is_told_false(chain, copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(bytes(data))
    true, reason = verdict(copy, chain)
    assert not true
    assert name in reason


def test_changed_claim_in_the_manifest_is_told_false(chain, copy):
    text = (copy / "manifest.json").read_text()
    score = repr(chain.sliding_score.manifest.metrics["bits_per_byte"])
    changed = score[:-1] + ("1" if score[-1] != "1" else "2")
    (copy / "manifest.json").write_text(text.replace(score, changed, 1))
    true, reason = verdict(copy, chain)
    assert not true
    assert reason.startswith("claims:")


def test_consistent_lie_is_found_by_scoring(chain, copy):
    def lie(claimed):
        claimed["scores"] = {"sliding": claimed["scores"]["sliding"]}
        claimed["scores"]["sliding"]["bits_per_byte"] -= 0.001

    claims_again(copy, lie)
    true, reason = verdict(copy, chain)
    assert not true
    assert re.match(r"scores: sliding: scored .* claimed are", reason)


def test_pickle_in_place_of_the_container_is_refused(chain, copy, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "pwned",))

    (copy / "model.pgz").write_bytes(pickle.dumps(Evil()))
    claims_again(copy, lambda claimed: None)
    true, reason = verdict(copy, chain)
    assert not true
    assert reason.startswith("scores:")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("kind", ["extra", "link", "listed"])
def test_foreign_names_are_refused(chain, copy, kind):
    if kind == "extra":
        (copy / "sitecustomize.py").write_text("raise SystemExit")
    elif kind == "link":
        (copy / "model.pgz").unlink()
        (copy / "model.pgz").symlink_to(chain.packaged.path / "model.pgz")
    else:
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["outputs"]["../../outside"] = manifest["outputs"]["model.pgz"]
        (copy / "manifest.json").write_text(json.dumps(manifest))
    true, reason = verdict(copy, chain)
    assert not true
    assert reason.startswith("hashes:" if kind == "listed" else "files:")


def test_missing_folder_or_text_is_bad_usage(chain, tmp_path):
    with pytest.raises(PgolfError, match="no such folder"):
        verify(tmp_path / "none", None, Silent())
    with pytest.raises(PgolfError, match="--val"):
        verify(Path(shutil.copytree(chain.packaged.path, tmp_path / "x" / "package")), None, Silent())


def test_guard_keeps_a_process_to_itself(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("s")
    start = (
        "from pathlib import Path; from pgolf import sandbox; "
        "sandbox.guard([], [Path.cwd()]); open('own', 'w').close(); "
    )

    def attempt(code: str) -> sandbox.Outcome:
        return sandbox.run(["-I", "-c", start + code], tmp_path / "in", 60)

    assert attempt("print(open('own').read())").status == 0
    assert "refused: reading" in attempt(f"open({str(tmp_path / 'secret')!r})").stderr
    assert "refused: writing" in attempt(f"open({str(tmp_path / 'new')!r}, 'w')").stderr
    assert "refused: changing" in attempt(f"import os; os.remove({str(tmp_path / 'secret')!r})").stderr
    assert "refused: starting" in attempt("import subprocess; subprocess.run(['true'])").stderr
    network = attempt("import socket\ntry: socket.socket()\nexcept BaseException: pass")
    assert network.status == sandbox.REFUSED
    assert "refused: the network" in network.stderr
    assert (tmp_path / "secret").exists()


def test_killed_package_leaves_nothing_half_written(chain, tmp_path, monkeypatch, context):
    monkeypatch.setattr(stage_directory.StageWriter, "commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        package(context(tmp_path / "run"), chain.quantized)
    assert not (tmp_path / "run").exists()


def test_audit_is_claimed_and_made_again(chain, tmp_path, context):
    run = Path(shutil.copytree(chain.tokens.path.parent, tmp_path / "run"))
    here = context(run)
    audit(here, here.input(None, "quantize"), AuditOptions(tokens=300, probes=8))
    packaged = package(here, here.input(None, "quantize"))
    claimed = json.loads(packaged.file("claims.json").read_text())
    assert claimed["audits"]["sliding"]["checks_failed"] == 0
    folder = Path(shutil.copytree(packaged.path, tmp_path / "package"))
    true, reason = verdict(folder, chain)
    assert true
    assert re.match(r"audit: sliding: \d+ checks passed on 300 tokens$", reason)

    def confess(claims):
        claims["audits"]["sliding"]["checks_failed"] = 1

    claims_again(folder, confess)
    assert verdict(folder, chain) == (False, "audit: sliding: 1 checks failed by the package's own account")


def test_verify_audits_when_asked_and_says_when_there_is_none(chain, copy):
    assert verdict(copy, chain) == (True, "audit: the package holds no audit; --audit makes one")
    true, reason = verdict(copy, chain, audit=True)
    assert true
    assert reason.startswith("audit: sliding: ")
    assert "; ttt: " in reason
