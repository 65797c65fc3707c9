"""The whole chain on a tiny model, the package that comes out of it, and what verifying says of a changed one."""

import json
import math
import pickle
import re
import shutil
from pathlib import Path

import pytest
from lying_packages import claims_again

from pgolf.errors import CheckFailed, PgolfError
from pgolf.program import build as program
from pgolf.progress import Silent
from pgolf.store import lineage, stage_directory
from stages.audit import AuditOptions, audit
from stages.eval_sliding import eval_sliding
from stages.package import package, requirements
from stages.quantize import quantize
from stages.reports import summary
from stages.run import run
from stages.verify import CANNOT, PASS, SHOWN, Options, _Package, answer_of, verify


@pytest.fixture
def copy(chain, tmp_path) -> Path:
    """The package alone in a folder that a test may change."""
    return Path(shutil.copytree(chain.packaged.path, tmp_path / "package"))


def verdict(folder: Path, chain, **options) -> tuple[bool, str]:
    checks = verify(folder, Options(**{"val": chain.tokens.path, "device": "cpu", "threads": 1} | options), Silent())
    decides = next((check for check in checks if check.answer == answer_of(checks) != PASS), checks[-1])
    return answer_of(checks) == PASS, f"{decides.what}: {decides.detail}"


def test_a_second_run_of_the_chain_does_nothing(chain, documents, context):
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
    assert readings["zstd"] < readings["gzip"]
    assert "ppmd" not in readings or readings["ppmd"] < readings["gzip"]
    assert [row.key for row in summary.shown(summary.readings(chain))] == [key for key in readings if key != "xz"]
    assert readings["sliding"] == chain.sliding_score.manifest.metrics["bits_per_byte"]
    sizes = {reading.key: reading.bytes for reading in summary.readings(chain)}
    scored = chain.sliding_score.manifest.metrics["bytes_scored"]
    assert (sizes["raw"], sizes["sliding"]) == (scored, round(readings["sliding"] * scored / 8))


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


def test_script_holds_what_it_needs_and_no_screen(chain):
    files, _ = program.read((chain.packaged.path / "train_gpt.py").read_bytes())
    assert "pgolf/model/gpt.py" in files
    assert not [path for path in files if path.startswith(("cli", "pgolf/bundle", "stages/package"))]
    listed = (chain.packaged.path / "requirements.txt").read_text()
    assert "torch==" in listed
    assert "typer" not in listed
    assert "rich" not in listed
    assert requirements(["numpy"]).startswith("numpy==")


def test_verify_passes_with_run_code(chain, copy):
    options = Options(val=chain.tokens.path, device="cpu", threads=1, run_code=True)
    checks = verify(copy, options, Silent())
    assert answer_of(checks) == PASS, checks
    found = {check.what: check for check in checks}
    assert "script prints the claimed numbers" in found["script"].detail
    assert found["time"].answer == SHOWN
    assert re.search(r"sliding: claimed \d+ s on 1 x .*, \d+ s here without a clock; ", found["time"].detail)


def test_a_false_proof_of_the_tokenizer_beside_the_package_fails(chain, tmp_path):
    shutil.copytree(chain.tokens.path, tmp_path / "tokenize")
    shutil.copytree(chain.packaged.path, tmp_path / "package")
    place = tmp_path / "private"
    place.mkdir()
    package = _Package(place, tmp_path / "package", Options())
    package.files()
    val = chain.tokens.manifest.details["val"]
    answer = {"documents": val["documents"], "bytes": val["bytes"], "text": {"tokens": val["tokens"]}}
    answer |= {"lossy_documents": 0, "changed_bytes": 0}
    assert package._tokenizer_proof(answer) == ", as tokenizer_proof.json says"
    with pytest.raises(Exception, match="changed documents of val are 0, counted are 1"):
        package._tokenizer_proof(answer | {"lossy_documents": 1})
    file = tmp_path / "tokenize" / "tokenizer_proof.json"
    file.write_text("{")
    with pytest.raises(Exception, match="makes no sense"):
        package._tokenizer_proof(answer)
    file.unlink()
    assert package._tokenizer_proof(answer) == ""


@pytest.mark.parametrize(
    "name", ["model.pgz", "train_gpt.py", "tokenizer.model", "claims.json", "requirements.txt", "README.md"]
)
def test_verify_fails_for_one_changed_byte(chain, copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(bytes(data))
    true, reason = verdict(copy, chain)
    assert not true
    assert name in reason


def test_verify_fails_for_a_changed_claim(chain, copy):
    text = (copy / "manifest.json").read_text()
    score = chain.sliding_score.manifest.metrics["bits_per_byte"]
    (copy / "manifest.json").write_text(text.replace(repr(score), repr(math.nextafter(score, 0)), 1))
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
    assert re.match(r"scores: sliding: .* bits per byte, claimed are", reason)


def test_pickle_in_place_of_the_container_is_refused(chain, copy, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "pwned",))

    (copy / "model.pgz").write_bytes(pickle.dumps(Evil()))
    claims_again(copy, lambda claimed: None)
    true, reason = verdict(copy, chain)
    assert not true
    assert reason.startswith("bytes: this is not a model.pgz")
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


def test_missing_folder_is_bad_usage_and_missing_text_cannot_be_checked(chain, tmp_path):
    with pytest.raises(PgolfError, match="does not exist"):
        verify(tmp_path / "none", Options(), Silent())
    alone = Path(shutil.copytree(chain.packaged.path, tmp_path / "x" / "package"))
    checks = {check.what: check for check in verify(alone, Options(), Silent())}
    assert [checks[what].answer for what in ("files", "hashes", "claims", "size", "code")] == [PASS] * 5
    assert checks["scores"].answer == CANNOT
    assert "--val" in checks["scores"].detail


def test_killed_package_leaves_nothing_half_written(chain, tmp_path, monkeypatch, context):
    monkeypatch.setattr(stage_directory.StageWriter, "commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        package(context(tmp_path / "run"), chain.quantized)
    assert not (tmp_path / "run").exists()


def test_scores_under_two_settings_are_not_packaged_and_the_mixture_is_no_setting(chain, tmp_path, context):
    run_copy = Path(shutil.copytree(chain.packaged.path.parent, tmp_path / "run"))
    model = stage_directory.open_stage(run_copy / "quantize")
    eval_sliding(context(run_copy, evaluate={"stride": 7}), model)
    with pytest.raises(PgolfError, match=r"eval-ttt and eval-sliding .*stride 16 and 7"):
        package(context(run_copy), model)
    assert stage_directory.open_stage(run_copy / "package").manifest_sha256 == chain.packaged.manifest_sha256
    eval_sliding(
        context(run_copy, evaluate={"stride": 16, "canonical": True, "mixture": True, "batch_windows": 3}), model
    )
    true, why = verdict(package(context(run_copy), model).path, chain)
    assert true, why


def test_a_claimed_audit_is_repeated(chain, tmp_path, context):
    run = Path(shutil.copytree(chain.tokens.path.parent, tmp_path / "run"))
    here = context(run)
    audit(here, here.input(None, "quantize"), AuditOptions(tokens=300, probes=8))
    packaged = package(here, here.input(None, "quantize"))
    claimed = json.loads(packaged.file("claims.json").read_text())
    assert claimed["audits"]["sliding"]["checks_failed"] == 0
    folder = Path(shutil.copytree(packaged.path, tmp_path / "package"))
    true, reason = verdict(folder, chain)
    assert true
    assert (found := re.match(r"audit: sliding: \d+ checks passed on ([\d,]+) tokens", reason))
    assert int(found[1].replace(",", "")) > 300

    def confess(claims):
        claims["audits"]["sliding"]["checks_failed"] = 1

    claims_again(folder, confess)
    assert verdict(folder, chain) == (False, "audit: sliding: 1 checks failed by the package's own account")


def test_verify_audits_on_request_and_reports_a_missing_audit(chain, copy):
    assert verdict(copy, chain) == (True, "audit: --audit audits the scores")
    true, reason = verdict(copy, chain, audit=True)
    assert true
    assert reason.startswith("audit: sliding: ")
    assert "; ttt: " in reason
