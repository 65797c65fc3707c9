"""A proof is decoded without the text, costs what the score says, and cannot be written by an evaluator that peeks."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pgolf import sandbox
from pgolf.compress import proof, range_coding
from pgolf.compress.predictors import Stream
from pgolf.config import EvaluateConfig
from pgolf.errors import CheckFailed, PgolfError
from pgolf.progress import Silent
from pgolf.saved.models import load_model
from pgolf.store import kinds, runs
from pgolf.store.manifest import hash_file
from pgolf.store.stage_directory import Stage, open_stage
from stages.eval_ttt import eval_ttt
from stages.package import package
from stages.prove import prove
from stages.reports import runs_table, submission
from stages.reports.html import render
from stages.run import Chain
from stages.views.evaluation import VAL, Documents


def test_a_sliding_score_is_proved(context, chain: Chain, tmp_path) -> None:
    source = open_stage(chain.tokens.path.parent / "eval-sliding")
    made = prove(context(tmp_path / "run"), source, tokens=150)
    found = made.manifest.metrics
    assert made.manifest.details == {
        "score": "sliding",
        "text": "val",
        "whole": False,
        "came_back": True,
        "wall": sandbox.available(),
    }
    assert found["tokens_scored"] == 150
    assert found["bits_per_byte"] == 8 * found["code_bytes"] / found["bytes_scored"]
    assert 0 <= found["bits_per_byte"] / found["claimed_bits_per_byte"] - 1 < 0.02  # the coder's last words
    assert made.file(kinds.PROOF).stat().st_size == found["file_bytes"]


def test_a_score_with_learning_is_proved(context, chain: Chain, tmp_path) -> None:
    changed = context(tmp_path / "run", ttt={"chunk_tokens": 16, "lr": 3e-3})
    scored = eval_ttt(changed, open_stage(chain.tokens.path.parent / "quantize"))
    made = prove(changed, scored, tokens=150)
    assert made.label == "prove@ttt"
    assert made.manifest.details["came_back"]
    assert 0 <= made.manifest.metrics["bits_per_byte"] / made.manifest.metrics["claimed_bits_per_byte"] - 1 < 0.03


def test_a_claim_that_is_too_good_fails(context, chain: Chain, tmp_path) -> None:
    source = open_stage(chain.tokens.path.parent / "eval-sliding")
    better = _with_nats(source, tmp_path / "better", 0.9)
    with pytest.raises(CheckFailed, match="the code takes"):
        prove(context(tmp_path / "run"), better, tokens=200)
    metrics = source.manifest.metrics | {"bits_per_byte": source.manifest.metrics["bits_per_byte"] - 0.01}
    manifest = dataclasses.replace(source.manifest, metrics=metrics)
    with pytest.raises(CheckFailed, match="are claimed, the scores per token sum to"):
        prove(context(tmp_path / "run"), dataclasses.replace(source, manifest=manifest), tokens=200)
    assert not (tmp_path / "run" / "prove").exists()


def test_reports_carry_the_proof_and_say_when_it_no_longer_holds(context, chain, tmp_path) -> None:
    run = tmp_path / "tiny"
    shutil.copytree(chain.packaged.path.parent, run)
    here = context(run, ttt={"chunk_tokens": 16})
    assert submission.read_seed(run).proof is None
    scored = eval_ttt(here, open_stage(run / "quantize"))
    prove(here, open_stage(run / "eval-sliding"), tokens=60)
    made = prove(here, scored, tokens=90).manifest
    page = render("tiny", runs.stages_of(run))
    assert "Proof: prove@ttt of eval-ttt" in page
    coded, claimed = made.metrics["bits_per_byte"], made.metrics["claimed_bits_per_byte"]
    for figure in (f"{coded:.5f} bits per byte", f"{claimed:.5f} bits per byte", f"{coded - claimed:+.5f}"):
        assert figure in page
    assert "got the text back" in page
    assert "no longer valid: " not in page
    row = next(row for row in runs_table.rows(tmp_path) if row.run == "tiny")
    assert row.proved == coded
    assert "tiny@ttt" not in [row.run for row in runs_table.rows(tmp_path)]
    package(here, open_stage(run / "quantize"))
    seed = submission.read_seed(run)
    folder = submission.submission(tmp_path / "out", [seed], submission.Author("A", "a", "b", "c"), "non_record_16mb")
    entry = json.loads((folder / "submission.json").read_text("utf-8"))["seed_results"][str(seed.number)]["proof"]
    assert (entry["bits_per_byte"], entry["claimed_bits_per_byte"], entry["score"]) == (coded, claimed, "ttt")
    assert entry["came_back"] is True
    readme = (folder / "README.md").read_text("utf-8")
    assert (
        f"| {claimed:.6f} | {coded:.6f} | {made.metrics['bytes_scored']:,} | {made.metrics['code_bytes']:,} |" in readme
    )
    other = context(run, ttt={"chunk_tokens": 8})
    eval_ttt(other, open_stage(run / "quantize"))
    package(other, open_stage(run / "quantize"))  # claims another evaluation than the proved one
    stale = submission.read_seed(run)
    assert stale.proof is not None
    assert "no longer the one that was proved" in stale.proof.stale
    assert "proof" not in stale.results()
    assert any("does not count: eval-ttt is no longer" in line for line in submission.warnings([stale], "t"))
    assert "no longer valid" in render("tiny", runs.stages_of(run))
    assert next(row for row in runs_table.rows(tmp_path) if row.run == "tiny").proved is not None  # the sliding one


def test_a_package_is_proved_by_its_own_claim_and_without_its_run(context, chain, documents, tmp_path) -> None:
    made = prove(context(tmp_path / "run"), chain.packaged, 150, "sliding")
    assert (made.label, made.manifest.details["score"]) == ("prove@package", "sliding")
    alone = tmp_path / "sent" / "package"
    shutil.copytree(chain.packaged.path, alone)
    text = Documents.of([documents[1]])
    with pytest.raises(PgolfError, match="name the scored text with --documents"):
        prove(context(tmp_path / "run"), open_stage(alone), 0, "sliding")
    with pytest.raises(PgolfError, match="only the whole text can be proved"):
        prove(context(tmp_path / "run"), open_stage(alone), 150, "sliding", text)
    with pytest.raises(PgolfError, match="is not the text"):
        prove(context(tmp_path / "run"), open_stage(alone), 0, "sliding", Documents.of([documents[0]]))
    whole = prove(context(tmp_path / "run"), open_stage(alone), 0, "sliding", text).manifest
    assert whole.metrics["bits_per_byte"] / whole.metrics["claimed_bits_per_byte"] - 1 < 0.005
    assert whole.metrics["bytes_scored"] == chain.sliding_score.manifest.metrics["bytes_scored"]
    assert whole.details["came_back"]


@pytest.mark.parametrize("with_run", [True, False])
def test_a_package_that_claims_less_is_told_false(context, chain, documents, tmp_path, with_run: bool) -> None:
    folder = (chain.packaged.path.parent if with_run else tmp_path) / "package@lying"
    shutil.copytree(chain.packaged.path, folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        score = manifest["details"]["claims"]["scores"]["sliding"]
        score["bits_per_byte"] -= 0.01 if with_run else 0.3  # 0.01 is within the coder's rounding for so short a text
        (folder / "claims.json").write_text(json.dumps(manifest["details"]["claims"]), "utf-8")
        manifest["outputs"]["claims.json"] = dataclasses.asdict(hash_file(folder / "claims.json"))
        (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
        words = "the scores per token sum to" if with_run else "the code takes"
        text = VAL if with_run else Documents.of([documents[1]])
        with pytest.raises(CheckFailed, match=words):
            prove(context(tmp_path / "run"), open_stage(folder), 0, "sliding", text)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "change", [{"scores": 3}, {"scores": {}}, {"text": None}, {"scores": {"sliding": {}}}, {"bits": 0}]
)
def test_claims_that_make_no_sense_are_one_line(context, chain, tmp_path, change) -> None:
    details = json.loads(json.dumps(chain.packaged.manifest.details))
    if "bits" in change:
        details["claims"]["scores"]["sliding"]["bits_per_byte"] = float(change["bits"])
    else:
        details["claims"] |= change
    stage = dataclasses.replace(chain.packaged, manifest=dataclasses.replace(chain.packaged.manifest, details=details))
    with pytest.raises(PgolfError, match=r"make no sense|claims no sliding"):
        prove(context(tmp_path / "run"), stage, 50, "sliding")


def test_an_evaluator_that_peeks_cannot_be_made_to_decompress(chain: Chain, context, tmp_path, monkeypatch) -> None:
    source = open_stage(chain.tokens.path.parent / "quantize")
    model = load_model(source, context(tmp_path).runtime)
    tokens = np.arange(4, 60).astype(np.uint16)
    tokens[0] = model.config.bos_id

    class Peeking(Stream):
        """Gives the next token of the text nine tenths of the probability."""

        def predict(self) -> np.ndarray:
            honest = super().predict()
            honest *= 0.1
            honest[0, tokens[self._known]] += 0.9
            return honest

    evaluation = proof.Evaluation(EvaluateConfig(seq_len=32, stride=16), None)
    honest_size = proof.encode(model, evaluation, tokens, Silent())[1]
    monkeypatch.setattr(proof, "Stream", Peeking)
    data, size = proof.encode(model, evaluation, tokens, Silent())
    assert size < honest_size / 3  # what its score would say
    monkeypatch.undo()
    with pytest.raises(PgolfError, match="decodes to other tokens"):
        proof.decode(data, "the proof", model, Silent())


@pytest.mark.parametrize(
    ("details", "words"), [({"out_of_time": True}, "ran out of time"), ({"method": "lora"}, "cannot be followed")]
)
def test_what_nobody_can_repeat_is_refused(context, chain: Chain, tmp_path, details, words) -> None:
    source = open_stage(chain.tokens.path.parent / "eval-ttt")
    config = source.manifest.config | {"ttt": source.manifest.config["ttt"] | {"chunk_tokens": 8}}
    config["ttt"] |= {"method": details.get("method", "sgd")}
    manifest = dataclasses.replace(source.manifest, config=config, details=source.manifest.details | details)
    with pytest.raises(PgolfError, match=words):
        prove(context(tmp_path / "run"), dataclasses.replace(source, manifest=manifest), tokens=20)


def test_code_of_a_wrong_length_is_refused(chain: Chain, context, tmp_path) -> None:
    model = load_model(open_stage(chain.tokens.path.parent / "quantize"), context(tmp_path).runtime)
    stream = Stream(model, EvaluateConfig(seq_len=8, stride=4), model.config.bos_id, 4)
    with pytest.raises(PgolfError, match="32-bit words"):
        range_coding.decode_stream(stream, b"abc", lambda tokens: None)


def _with_nats(source: Stage, folder, factor: float) -> Stage:
    """A copy of an evaluation stage whose scores are multiplied by a factor, its hashes made to agree."""
    shutil.copytree(source.path, folder)
    payload = load_file(folder / kinds.SCORES)
    payload["nll"] = payload["nll"] * np.float32(factor)
    save_file(payload, folder / kinds.SCORES)
    data = (folder / kinds.SCORES).read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    manifest["outputs"][kinds.SCORES] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["inputs"]["model"]["path"] = str(source.parent("model").path)
    manifest["metrics"]["bits_per_byte"] *= factor
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return open_stage(folder)
