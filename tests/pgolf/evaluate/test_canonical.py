"""Ruling out what the tokenizer never writes: exact, normalized, and a gain."""

import numpy as np
import pytest
import texts
import torch

from pgolf.config.evaluate import EvaluateConfig
from pgolf.config.model import ModelConfig
from pgolf.errors import PgolfError
from pgolf.evaluate.canonical import barred
from pgolf.evaluate.sliding import SlidingEvaluator
from pgolf.model.gpt import GPT
from pgolf.runtime import Runtime

RUNTIME = Runtime(torch.device("cpu"), torch.float32, world_rank=0, world_size=1, threads=1, compile=False)
SETTINGS = EvaluateConfig(seq_len=32, stride=8)


@pytest.mark.parametrize("make", texts.EXACT)
def test_nothing_that_comes_is_barred_and_what_is_barred_is_cut_otherwise(make) -> None:
    tokenizer = make()
    table = barred(tokenizer, RUNTIME.device).numpy()
    for tokens in tokenizer.encode([*texts.english(), *texts.ODD_BYTES]):
        assert not table[tokens[:-1], tokens[1:]].any()
    assert table.sum() > 50
    for first, second in np.argwhere(table):
        pieces = tokenizer.pieces[first] + tokenizer.pieces[second]
        assert tokenizer.sp.encode(pieces.decode()) != [first, second]


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
