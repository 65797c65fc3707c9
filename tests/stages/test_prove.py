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
from pgolf.store import kinds
from pgolf.store.stage_directory import Stage, open_stage
from stages.eval_ttt import eval_ttt
from stages.prove import prove
from stages.run import Chain


def test_a_sliding_score_is_proved(context, chain: Chain, tmp_path) -> None:
    source = open_stage(chain.tokens.path.parent / "eval-sliding")
    made = prove(context(tmp_path / "run"), source, tokens=150)
    found = made.manifest.metrics
    assert made.manifest.details == {
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
    made = prove(changed, scored, tokens=100)
    assert made.manifest.details["came_back"]
    assert 0 <= made.manifest.metrics["bits_per_byte"] / made.manifest.metrics["claimed_bits_per_byte"] - 1 < 0.03


def test_a_claim_that_is_too_good_fails(context, chain: Chain, tmp_path) -> None:
    source = open_stage(chain.tokens.path.parent / "eval-sliding")
    better = _with_nats(source, tmp_path / "better", 0.9)
    with pytest.raises(CheckFailed, match="the code takes"):
        prove(context(tmp_path / "run"), better, tokens=200)
    assert not (tmp_path / "run" / "prove").exists()


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
        range_coding.decode_one(stream, b"abc", model.config.bos_id, lambda tokens: None)


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
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return open_stage(folder)
