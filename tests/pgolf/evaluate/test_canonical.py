"""Ruling out what the tokenizer never writes: exact, normalized, and a gain."""

import dataclasses
import struct
from collections.abc import Sequence

import numpy as np
import pytest
import texts
import torch

from pgolf.compress import predictors
from pgolf.config.evaluate import EvaluateConfig
from pgolf.config.model import ModelConfig
from pgolf.config.tokenizer import TokenizerConfig
from pgolf.config.ttt import TttConfig
from pgolf.errors import PgolfError
from pgolf.evaluate.canonical import barred
from pgolf.evaluate.canonical_words import ALIKE
from pgolf.evaluate.sliding import SlidingEvaluator
from pgolf.evaluate.ttt.methods import TttEvaluator
from pgolf.model.gpt import GPT
from pgolf.runtime import Runtime
from pgolf.tokens.sentencepiece_model import Pieces
from pgolf.tokens.tokenizer import train

RUNTIME = Runtime(torch.device("cpu"), torch.float32, world_rank=0, world_size=1, threads=1, compile=False)
SETTINGS = EvaluateConfig(seq_len=32, stride=8)
WORDS = [
    b" ".join(a + b + c for c in (b"ed", b"ing", b"er", b"s"))
    for a in (b"walk", b"talk", b"th", b"re")
    for b in (b"", b"in", b"the", b"al")
] * 30


def barred_after(tokenizer: Pieces, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    """(n, vocab_size) what cannot come after each of the tokens."""
    table = barred(tokenizer, RUNTIME.device)
    padded = np.concatenate([np.full(table.reach - 1, tokenizer.bos_id), tokens]).astype(np.int64)
    return table(torch.from_numpy(np.lib.stride_tricks.sliding_window_view(padded, table.reach).copy())).numpy()


@pytest.mark.parametrize("make", texts.EXACT)
def test_nothing_that_comes_is_barred(make) -> None:
    tokenizer = make()
    for tokens in tokenizer.encode([*texts.english(), *texts.ODD_BYTES, b"!!!!!!! ....."]):
        found = barred_after(tokenizer, tokens)[:-1]
        assert not found[np.arange(len(found)), tokens[1:]].any()


@pytest.mark.parametrize("make", texts.EXACT)
def test_what_is_barred_is_cut_otherwise(make) -> None:
    tokenizer = make()
    pieces, sp = tokenizer.pieces, tokenizer.sp
    known = [token for token, piece in enumerate(pieces) if piece and not sp.is_byte(token)]
    table = barred(tokenizer, RUNTIME.device)
    before = torch.full((len(known), table.reach), tokenizer.bos_id)
    before[:, -1] = torch.tensor(known)
    found = np.argwhere(table(before).numpy())
    assert len(found) > 50
    for row, second in found:
        first = known[row]
        assert sp.encode((pieces[first] + pieces[second]).decode()) != [first, second]


def test_all_that_cannot_follow_a_word_is_barred() -> None:
    tokenizer = train([text.lower() for text in WORDS], TokenizerConfig(vocab_size=300, model_type="unigram"))
    sp, scores, pieces = tokenizer.sp, tokenizer.scores, tokenizer.pieces
    text = {token: piece.decode() for token, piece in enumerate(pieces) if piece and not sp.is_byte(token)}
    several = 0
    for word in {tuple(sp.encode(word)) for word in sorted({word for document in WORDS for word in document.split()})}:
        for length in range(1, len(word) + 1):
            before = word[:length]
            so_far = "".join(text[token] for token in before)
            row = barred_after(tokenizer, before)[-1]
            for token, other in text.items():
                better = scores[sp.encode(so_far + other)].sum() > scores[[*before, token]].sum() + ALIKE
                assert row[token] == better, (so_far, other)
                several += better and length > 1
    assert several > 20


def test_cuts_of_equal_score_may_both_come() -> None:
    documents = [b"a!!! b!!!!! !!\n"] * 60 + texts.english()
    tokenizer = train(documents, TokenizerConfig(vocab_size=330, model_type="unigram"))
    one, two, three = (tokenizer.sp.piece_to_id(piece) for piece in ("!", "!!", "!!!"))
    assert tokenizer.sp.encode("!!!!!") == [two, three]
    assert not barred_after(tokenizer, [two])[0, three]
    assert not barred_after(tokenizer, [three])[0, two]
    assert barred_after(tokenizer, [one])[0, one]


def test_a_piece_that_is_worse_than_its_parts_never_comes() -> None:
    proto, piece = bytearray(texts.unigram().proto), "\u2581that".encode()
    at = proto.index(bytes([len(piece)]) + piece + b"\x15") + len(piece) + 2  # its score, field 2 of the piece
    proto[at : at + 4] = struct.pack("<f", -1000.0)
    tokenizer = Pieces(bytes(proto))
    token = tokenizer.sp.piece_to_id(piece.decode())
    assert tokenizer.sp.encode(" that") != [token]
    assert barred_after(tokenizer, range(tokenizer.vocab_size))[:, token].all()


@pytest.mark.parametrize("make", [texts.plain, texts.unigram])
def test_the_freed_probability_goes_to_the_others_in_proportion(make) -> None:
    tokenizer = make()
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=330, dim=16, num_layers=1, num_heads=2, num_kv_heads=1)).eval()
    tokens = tokenizer.encode(texts.english())[0][:60]
    positions = [1, 40, 59]
    before = SlidingEvaluator(model, SETTINGS, RUNTIME).score(tokens, positions)
    model.barred = barred(tokenizer, RUNTIME.device)
    after = SlidingEvaluator(model, SETTINGS, RUNTIME).score(tokens, positions)
    for position in positions:
        free = ~barred_after(tokenizer, tokens[:position])[-1]
        left = np.exp(before.log_probs[position])[free].sum()
        np.testing.assert_allclose(
            after.log_probs[position][free], before.log_probs[position][free] - np.log(left), atol=1e-5
        )
        assert after.nll[position - 1] == pytest.approx(before.nll[position - 1] + np.log(left), abs=1e-5)
        assert np.exp(after.log_probs[position]).sum() == pytest.approx(1)
    assert (after.nll < before.nll + 1e-6).all()


def test_user_defined_pieces_that_others_can_spell_are_refused() -> None:
    sentences = [document.decode() for document in texts.english()]
    settings = {
        "model_type": "unigram",
        "vocab_size": 320,
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
    }
    with pytest.raises(PgolfError, match="user-defined"):
        barred(texts.raw(sentences, user_defined_symbols=["the", "he"], **settings), RUNTIME.device)


@pytest.mark.parametrize("make", [texts.plain, texts.unigram])
@pytest.mark.parametrize("reset", [False, True])
def test_token_by_token_as_in_windows(make, reset) -> None:
    tokenizer, model = make(), _model(make())
    tokens = np.concatenate(tokenizer.encode(texts.english(4)))[:90]
    settings = dataclasses.replace(SETTINGS, seq_len=16, stride=16, reset_at_documents=reset)
    whole = SlidingEvaluator(model, settings, RUNTIME).score(tokens).nll
    stream = predictors.Stream(model, settings, int(tokens[0]), len(tokens))
    for expected, token in zip(whole, tokens[1:], strict=True):
        assert -np.log(stream.predict()[0, token]) == pytest.approx(expected, abs=1e-4)
        stream.reveal(np.array([token]))
    (alone,) = tokenizer.encode(texts.english(1))
    settings = dataclasses.replace(settings, reset_at_documents=True)
    whole = SlidingEvaluator(model, settings, RUNTIME).score(alone).nll
    documents = predictors.Documents(model, 2, 16, 16)
    for expected, token in zip(whole, alone[1:], strict=True):
        assert -np.log(documents.predict()[1, token]) == pytest.approx(expected, abs=1e-4)
        documents.reveal(np.array([token, token]))


@pytest.mark.parametrize("method", ["lora", "phased", "in-place", "sgd"])
@pytest.mark.parametrize("make", [texts.plain, texts.unigram])
def test_methods_that_do_not_learn_score_as_windows_do(make, method) -> None:
    tokenizer, model = make(), _model(make())
    (tokens,) = tokenizer.encode(texts.english(1))
    settings = dataclasses.replace(SETTINGS, reset_at_documents=True)
    ttt = TttConfig(
        method=method, epochs=0, lr=0.0, lora_lr=0.0, in_place_lr=0.0, chunk_tokens=8, output_lr=(), output_stream_lr=()
    )
    expected = SlidingEvaluator(model, settings, RUNTIME).score(tokens).nll
    found = TttEvaluator(model, settings, ttt, RUNTIME).score(tokens).nll
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_wrong_number_of_tokens_before_is_refused() -> None:
    model = _model(texts.unigram())
    with pytest.raises(ValueError, match="does not go with"):
        model.logits(torch.zeros(2, 16), torch.zeros(2, 1, dtype=torch.int64))


def _model(tokenizer: Pieces) -> GPT:
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=330, dim=16, num_layers=1, num_heads=2, num_kv_heads=1)).eval()
    model.barred = barred(tokenizer, RUNTIME.device)
    return model


def test_a_tokenizer_that_changes_its_pieces_is_refused() -> None:
    with pytest.raises(PgolfError, match=r"evaluate\.canonical = false"):
        barred(texts.lossy(), RUNTIME.device)
