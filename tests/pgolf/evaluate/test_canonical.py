"""Ruling out what the tokenizer never writes: exact, normalized, and a gain."""

import struct

import numpy as np
import pytest
import texts
import torch

from pgolf.config.evaluate import EvaluateConfig
from pgolf.config.model import ModelConfig
from pgolf.config.tokenizer import TokenizerConfig
from pgolf.errors import PgolfError
from pgolf.evaluate.canonical import barred
from pgolf.evaluate.sliding import SlidingEvaluator
from pgolf.model.gpt import GPT
from pgolf.runtime import Runtime
from pgolf.tokens.sentencepiece_model import Pieces
from pgolf.tokens.tokenizer import train

RUNTIME = Runtime(torch.device("cpu"), torch.float32, world_rank=0, world_size=1, threads=1, compile=False)
SETTINGS = EvaluateConfig(seq_len=32, stride=8)


@pytest.mark.parametrize("make", texts.EXACT)
def test_nothing_that_comes_is_barred_and_what_is_barred_is_cut_otherwise(make) -> None:
    tokenizer = make()
    table = barred(tokenizer, RUNTIME.device).numpy()
    for tokens in tokenizer.encode([*texts.english(), *texts.ODD_BYTES, b"!!!!!!! ....."]):
        assert not table[tokens[:-1], tokens[1:]].any()
    assert table.sum() > 50
    for first, second in np.argwhere(table):
        pieces = tokenizer.pieces[first] + tokenizer.pieces[second]
        assert tokenizer.sp.encode(pieces.decode()) != [first, second]


def test_cuts_of_equal_score_may_both_come() -> None:
    documents = [b"a!!! b!!!!! !!\n"] * 60 + texts.english()
    tokenizer = train(documents, TokenizerConfig(vocab_size=330, model_type="unigram"))
    one, two, three = (tokenizer.sp.piece_to_id(piece) for piece in ("!", "!!", "!!!"))
    assert tokenizer.sp.encode("!!!!!") == [two, three]
    table = barred(tokenizer, RUNTIME.device).numpy()
    assert not table[two, three]
    assert not table[three, two]
    assert table[one, one]


def test_a_piece_that_is_worse_than_its_parts_never_comes() -> None:
    proto, piece = bytearray(texts.unigram().proto), "\u2581that".encode()
    at = proto.index(bytes([len(piece)]) + piece + b"\x15") + len(piece) + 2  # its score, field 2 of the piece
    proto[at : at + 4] = struct.pack("<f", -1000.0)
    tokenizer = Pieces(bytes(proto))
    token = tokenizer.sp.piece_to_id(piece.decode())
    assert tokenizer.sp.encode(" that") != [token]
    assert barred(tokenizer, RUNTIME.device)[:, token].all()


def test_the_freed_probability_goes_to_the_others_in_proportion() -> None:
    tokenizer = texts.plain()
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=330, dim=16, num_layers=1, num_heads=2, num_kv_heads=1)).eval()
    tokens = tokenizer.encode(texts.english())[0][:60]
    positions = [1, 40, 59]
    before = SlidingEvaluator(model, SETTINGS, RUNTIME).score(tokens, positions)
    model.barred = barred(tokenizer, RUNTIME.device)
    after = SlidingEvaluator(model, SETTINGS, RUNTIME).score(tokens, positions)
    for position in positions:
        free = ~model.barred[int(tokens[position - 1])].numpy()
        left = np.exp(before.log_probs[position])[free].sum()
        np.testing.assert_allclose(
            after.log_probs[position][free], before.log_probs[position][free] - np.log(left), atol=1e-5
        )
        assert after.nll[position - 1] == pytest.approx(before.nll[position - 1] + np.log(left), abs=1e-5)
        assert np.exp(after.log_probs[position]).sum() == pytest.approx(1)
    assert (after.nll < before.nll + 1e-6).all()


def test_a_tokenizer_that_changes_its_pieces_is_refused() -> None:
    with pytest.raises(PgolfError, match=r"evaluate\.canonical = false"):
        barred(texts.lossy(), RUNTIME.device)
