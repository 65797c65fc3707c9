"""The held-out slice: where it is cut, and what it scores."""

import math

import numpy as np
import pytest
import torch

from pgolf import config as configs
from pgolf.config import Config
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.runtime import Runtime
from pgolf.tokens.shards import TokenStream
from pgolf.training.holdout import Holdout

RUNTIME = Runtime(torch.device("cpu"), torch.float32, 0, 1, 1, compile=False)


def small(tokens: int) -> Config:
    sizes = ("model.vocab_size=16", "model.dim=8", "model.num_layers=1", "model.num_heads=1", "model.num_kv_heads=1")
    return configs.load(None, None, [*sizes, f"train.holdout_tokens={tokens}"])


def stream(length: int, *documents: int) -> TokenStream:
    tokens = np.full(length, 9, np.uint16)
    tokens[list(documents)] = 1
    return TokenStream([tokens], "train")


def test_the_slice_begins_with_a_document() -> None:
    holdout = Holdout.of(stream(1000, 0, 300, 975, 990), small(40))
    assert (len(holdout.training), len(holdout)) == (975, 25)
    assert holdout.tokens[0:1].tolist() == [1]


def test_it_is_a_twentieth_at_most_and_may_be_nothing() -> None:
    assert len(Holdout.of(stream(1000), small(400))) == 50
    nothing = Holdout.of(stream(1000), small(0))
    assert (len(nothing.training), len(nothing)) == (1000, 0)
    with pytest.raises(PgolfError, match="nothing to choose by"):
        nothing.require()


def test_holding_out_everything_is_refused() -> None:
    with pytest.raises(PgolfError, match="leaves none to train on"):
        Holdout.recorded(stream(1000), 999)


def test_the_loss_is_the_mean_over_disjoint_windows() -> None:
    config = small(0)
    torch.manual_seed(0)
    model = GPT(config.model).train()
    tokens = np.random.default_rng(0).integers(3, 16, 75).astype(np.uint16)
    holdout = Holdout.recorded(TokenStream([np.concatenate([tokens, tokens])], "train"), 75)
    found = holdout.loss(model, 32, RUNTIME)
    assert model.training
    row = torch.from_numpy(tokens.astype("int64"))
    model.eval()
    with torch.no_grad():
        parts = [model.logits(model.hidden(row[None, at : at + 32]))[0] for at in (0, 32)]
    z = torch.cat(parts)  # (64, 16); the last 10 targets fill no window
    assert found == pytest.approx(float(torch.nn.functional.cross_entropy(z, row[1:65])), abs=1e-6)
    assert holdout.holdout_metrics(found) == {"holdout_nats_per_token": found}
    assert holdout.holdout_metrics(math.nan) == {}
