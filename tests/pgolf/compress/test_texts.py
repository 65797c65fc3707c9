"""Text compressed by a model comes back to the byte, or is refused."""

import dataclasses
import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pgolf.compress import text_file
from pgolf.compress.predictors import Documents, LearningStream, Stream
from pgolf.compress.range_coding import encode
from pgolf.compress.texts import CompressSettings, compress, decompress, pieces
from pgolf.config.evaluate import EvaluateConfig
from pgolf.config.model import ModelConfig
from pgolf.config.tokenizer import TokenizerConfig
from pgolf.config.ttt import TttConfig
from pgolf.errors import PgolfError
from pgolf.evaluate.sliding import SlidingEvaluator
from pgolf.evaluate.ttt.methods import TttEvaluator
from pgolf.model.gpt import GPT
from pgolf.progress import Silent
from pgolf.runtime import choose
from pgolf.tokens.tokenizer import Tokenizer, train

TTT = TttConfig(chunk_tokens=4, lr=1e-3)
SETTINGS = CompressSettings(seq_len=12, stride=4, rows=3, piece_bytes=20)
TEXT = b"The quick brown fox.\nIt jumps over the lazy dog,\nand \xf0\x9f\x98\x80 the rest.\n" * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    documents = [b"the quick brown fox jumps over the lazy dog and the rest of it " * 4] * 8
    return train(documents, TokenizerConfig(vocab_size=300))


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> GPT:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, mlp_ratio=2.0,
        smear_gate=True, bos_id=tokenizer.bos_id,
    )  # fmt: skip
    made = GPT(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


@given(st.binary(max_size=200))
@example(b"")
@example(TEXT)
@example("a  b\r\n\u2581 ﬁ½ e\u0301\0".encode() + b"\xff\xfe\n")
@settings(max_examples=25)
def test_any_bytes_come_back(model: GPT, tokenizer: Tokenizer, text: bytes) -> None:
    found = compress(text, model, tokenizer, SETTINGS, Silent())
    assert decompress(found.data, "x.pgt", model, tokenizer, Silent()) == text
    assert found.text_bytes == len(text)


DOCUMENTS = st.one_of(st.text(max_size=60).map(str.encode), st.binary(max_size=40), st.sampled_from([b"", TEXT[:99]]))
_CHILD = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from pgolf.compress.texts import decompress
from pgolf.config import from_dict
from pgolf.model.gpt import GPT
from pgolf.progress import Silent
from pgolf.tokens.tokenizer import Tokenizer
folder = Path(sys.argv[1])
torch.set_num_threads(2)
model = GPT(from_dict({"model": json.loads((folder / "model.json").read_text())}).model).eval()
model.load_state_dict(load_file(folder / "model.safetensors"))
tokenizer = Tokenizer.open(folder / "tokenizer.model")
for file in folder.glob("*.pgt"):
    file.with_suffix(".txt").write_bytes(decompress(file.read_bytes(), file.name, model, tokenizer, Silent()))
"""


@given(st.lists(DOCUMENTS, min_size=16, max_size=16))
@settings(max_examples=1, phases=[Phase.generate])  # a process that loads torch for each example
def test_another_process_gets_any_documents_back(
    model: GPT, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, documents: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("two")
    save_file({name: value.clone() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps(dataclasses.asdict(model.config)))
    (folder / "tokenizer.model").write_bytes(tokenizer.proto)
    for index, document in enumerate(documents):
        found = compress(document, model, tokenizer, SETTINGS, Silent(), TTT if index % 2 else None)
        (folder / f"{index}.pgt").write_bytes(found.data)
    subprocess.run([sys.executable, "-c", _CHILD, str(folder)], check=True, cwd=Path(__file__).parents[3])
    assert [(folder / f"{index}.txt").read_bytes() for index in range(len(documents))] == documents


def test_learning_makes_a_repeating_text_smaller(model: GPT, tokenizer: Tokenizer) -> None:
    plain, learned = (compress(TEXT, model, tokenizer, SETTINGS, Silent(), ttt) for ttt in (None, TTT))
    assert learned.code_bytes < 0.9 * plain.code_bytes
    assert decompress(learned.data, "x.pgt", model, tokenizer, Silent()) == TEXT
    header, blocks = text_file.read(learned.data, "x.pgt")
    assert len(blocks) > 1  # learning goes on from one to the next
    assert header["ttt"]["lr"] == TTT.lr
    faster = text_file.write(header | {"ttt": header["ttt"] | {"lr": 0.5}}, blocks)
    with pytest.raises(PgolfError, match="decodes to other text"):
        decompress(faster, "x.pgt", model, tokenizer, Silent())
    with pytest.raises(PgolfError, match="cannot be followed"):
        compress(TEXT, model, tokenizer, SETTINGS, Silent(), TttConfig(method="lora"))
    with pytest.raises(PgolfError, match="needs the length"):
        compress(TEXT, model, tokenizer, SETTINGS, Silent(), dataclasses.replace(TTT, schedule="cosine"))


@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=6)
def test_code_of_no_text_is_refused_in_one_line(model: GPT, tokenizer: Tokenizer, seed: int, learns: bool) -> None:
    header, blocks = text_file.read(compress(TEXT[:70], model, tokenizer, SETTINGS, Silent(), TTT).data, "x.pgt")
    header["ttt"] = header["ttt"] if learns else None
    noise = np.random.default_rng(seed).bytes(4 * (seed % 7))
    forged = [dataclasses.replace(blocks[0], code=noise), *blocks[1:]]
    with pytest.raises(PgolfError, match="block 1 decodes to other text"):
        decompress(text_file.write(header, forged), "x.pgt", model, tokenizer, Silent())


def test_case_operators_come_back(model: GPT) -> None:
    cased = train([TEXT * 9], TokenizerConfig(vocab_size=310, caseops=True))
    wide = GPT(dataclasses.replace(model.config, vocab_size=cased.vocab_size)).eval()
    for text in ("A B NASA iPhone \ue001\ue004 ÄÖ".encode() * 5, b"A B C D E F G H I"):
        for ttt in (None, TTT):
            found = compress(text, wide, cased, SETTINGS, Silent(), ttt)
            assert decompress(found.data, "x.pgt", wide, cased, Silent()) == text
        header, blocks = text_file.read(found.data, "x.pgt")
        forged = [dataclasses.replace(block, code=bytes(8)) for block in blocks]
        with pytest.raises(PgolfError, match="decodes to other text"):
            decompress(text_file.write(header, forged), "x.pgt", wide, cased, Silent())


@given(st.binary(max_size=500), st.integers(1, 60))
def test_pieces_are_the_text_and_bounded(text: bytes, size: int) -> None:
    found = list(pieces(text, size))
    assert b"".join(found) == text
    assert all(len(piece) <= 2 * size for piece in found)


def test_the_code_length_equals_the_evaluated_bits(model: GPT, tokenizer: Tokenizer) -> None:
    ids = [np.append(tokenizer.encode([TEXT[:n]])[0].astype(np.int64), tokenizer.bos_id) for n in (150, 90, 60)]
    stream = np.concatenate([one[:-1] for one in ids] + [ids[0][:1]])
    evaluate = EvaluateConfig(seq_len=12, stride=4, reset_at_documents=True)
    runtime = choose("cpu", 1, compile=False)
    bits = SlidingEvaluator(model, evaluate, runtime).score(stream).nll.sum() / np.log(2)
    side_by_side = encode(Documents(model, 3, 12, 4), ids, lambda tokens: None)
    assert bits - 1 <= 8 * len(side_by_side) <= bits * 1.002 + 64
    crossing = dataclasses.replace(evaluate, reset_at_documents=False)
    for setting in (evaluate, crossing):
        bits = SlidingEvaluator(model, setting, runtime).score(stream).nll.sum() / np.log(2)
        code = encode(Stream(model, setting, int(stream[0]), len(stream)), [stream], lambda tokens: None)
        assert bits - 1 <= 8 * len(code) <= bits * 1.002 + 64


@pytest.mark.parametrize("output", [True, False])
def test_learning_token_by_token_is_the_evaluation(model: GPT, tokenizer: Tokenizer, output: bool) -> None:
    rates = {} if output else {"output_lr": (), "output_stream_lr": ()}
    ttt, evaluate = TttConfig(chunk_tokens=4, lr=1e-2, **rates), EvaluateConfig(seq_len=12, stride=4)
    ids = [tokenizer.encode([TEXT[:n]])[0].astype(np.int64) for n in (150, 90, 60)]
    stream = np.concatenate(ids)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    nats = TttEvaluator(model, evaluate, ttt, choose("cpu", 1, compile=False)).score(stream).nll
    predictor = LearningStream(model, evaluate, ttt, int(stream[0]), len(stream))
    found = []
    for token in stream[1:]:
        found.append(-np.log(predictor.predict()[0, token]))
        predictor.reveal(np.array([token]))
    # Gradients are divided by their root mean square, so a rounding error in a small one moves single tokens.
    np.testing.assert_allclose(found, nats, rtol=5e-3, atol=1e-4)
    assert abs(np.sum(found) / nats.sum() - 1) < 1e-4
    plain = SlidingEvaluator(model, evaluate, choose("cpu", 1, compile=False)).score(stream).nll
    assert np.abs(plain - nats).max() > 0.01  # it did learn
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_changed_bit_is_refused(model: GPT, tokenizer: Tokenizer) -> None:
    data = compress(TEXT[:60], model, tokenizer, SETTINGS, Silent()).data
    for bit in range(0, 8 * len(data), 5):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PgolfError, match=r"was changed|was not written by pgolf compress"):
            decompress(bytes(changed), "x.pgt", model, tokenizer, Silent())


def test_a_model_that_differs_in_one_weight_is_refused(model: GPT, tokenizer: Tokenizer) -> None:
    data = compress(TEXT, model, tokenizer, SETTINGS, Silent()).data
    other = GPT(model.config).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.blocks[0].attn.c_q.weight[0, 0] += 1e-6  # type: ignore[union-attr]
    with pytest.raises(PgolfError, match="another model"):
        decompress(data, "x.pgt", other, tokenizer, Silent())


def test_a_machine_with_other_bits_fails_at_the_first_block(model: GPT, tokenizer: Tokenizer) -> None:
    found = compress(TEXT, model, tokenizer, SETTINGS, Silent())
    header, blocks = text_file.read(found.data, "x.pgt")
    header["machine"]["vectors"] = "SOMETHING ELSE"
    wrong = dataclasses.replace(blocks[0], code=bytes(len(blocks[0].code)))
    data = text_file.write(header, [wrong, *blocks[1:]])
    with pytest.raises(PgolfError, match=r"block 1 decodes to other text.*vectors SOMETHING ELSE there"):
        decompress(data, "x.pgt", model, tokenizer, Silent())


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"seq_len": 1 << 40, "stride": 4, "rows": 3, "piece_bytes": 20}},
        {"settings": {"seq_len": 0, "stride": 4, "rows": 3, "piece_bytes": 20}},
        {"settings": {"seq_len": 12.0, "stride": 4, "rows": 3, "piece_bytes": 20}},
        {"settings": {"seq_len": 1 << 14, "stride": 4, "rows": 1 << 14, "piece_bytes": 20}},
        {"settings": None},
        {"ttt": 3},
        {"ttt": {"lr": -1.0}},
        {"ttt": {"no such field": 1}},
        {"kind": "proof"},
        {"format": 2},
        {"text": 3},
    ],
)
def test_a_header_that_makes_no_sense_is_refused(model: GPT, tokenizer: Tokenizer, change: dict[str, object]) -> None:
    header, blocks = text_file.read(compress(TEXT, model, tokenizer, SETTINGS, Silent()).data, "x.pgt")
    with pytest.raises(PgolfError):
        decompress(text_file.write(header | change, blocks), "x.pgt", model, tokenizer, Silent())


def test_lengths_beyond_the_file_are_refused() -> None:
    header = json.dumps({"format": 1}).encode()
    for tail in (struct.pack("<IIII", 1, 1, 1, 1 << 30), b"\0\0"):
        body = text_file.MAGIC + struct.pack("<I", len(header)) + header + tail
        with pytest.raises(PgolfError, match="ends inside"):
            text_file.read(body + hashlib.sha256(body).digest(), "x.pgt")
