"""Sliding windows against the plain evaluator: one window after another, all logits, nothing shared."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from pgolf import config as configs
from pgolf.config.evaluate import EvaluateConfig
from pgolf.config.model import ModelConfig
from pgolf.errors import CheckFailed, PgolfError
from pgolf.evaluate import sliding, windows
from pgolf.evaluate.bpb import Score
from pgolf.evaluate.sliding import SlidingEvaluator
from pgolf.model import paths
from pgolf.model.gpt import GPT
from pgolf.runtime import Runtime

RUNTIME = Runtime(torch.device("cpu"), torch.float32, world_rank=0, world_size=1, threads=1, compile=False)
BOS = 1


LOOK_BACK = {"smear_gate": True, "canon_taps": 3, "copy_orders": (1, 2), "copy_depth": 2, "copy_input": True}

RAISED = LOOK_BACK | {"copy_logits": True, "copy_token": True, "document_counts": True}


@pytest.fixture(scope="module", params=[{}, LOOK_BACK, RAISED], ids=["plain", "parts that look back", "raised logits"])
def model(request: pytest.FixtureRequest) -> GPT:
    torch.manual_seed(0)
    made = GPT(ModelConfig(vocab_size=64, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, **request.param))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made.eval()


def stream(length: int, seed: int = 0) -> np.ndarray:
    """Random tokens with documents of odd lengths."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 64, length).astype(np.uint16)
    tokens[rng.random(length) < 0.05] = BOS
    tokens[0] = BOS
    return tokens


@torch.no_grad()
def plain(model: GPT, tokens: np.ndarray, seq_len: int, stride: int) -> np.ndarray:
    """The challenge's own loop, one window at a time, without its rescoring of the tail."""
    nll = np.full(len(tokens) - 1, np.nan)
    ids = torch.from_numpy(tokens.astype(np.int64))
    start = 0
    while True:
        stop = min(start + seq_len, len(tokens) - 1)
        logits = model.logits(model.hidden(ids[None, start:stop]))[0]
        losses = torch.nn.functional.cross_entropy(logits, ids[start + 1 : stop + 1], reduction="none").numpy()
        fresh = np.isnan(nll[start:stop])
        nll[start:stop][fresh] = losses[fresh]
        if stop == len(tokens) - 1:
            return nll
        start += stride


@pytest.mark.parametrize("length", [2, 3, 31, 32, 33, 34, 40, 41, 63, 64, 65, 129])
@pytest.mark.parametrize("stride", [1, 8, 32])
def test_equals_the_plain_evaluator(model: GPT, length: int, stride: int) -> None:
    tokens = stream(length)
    settings = EvaluateConfig(seq_len=32, stride=stride, batch_windows=5)
    trace = SlidingEvaluator(model, settings, RUNTIME).score(tokens)
    np.testing.assert_allclose(trace.nll, plain(model, tokens, 32, stride), atol=1e-5)


@pytest.mark.parametrize("length", [2, 32, 33, 100])
def test_distributions_belong_to_the_scores(model: GPT, length: int) -> None:
    tokens = stream(length)
    positions = sorted({1, length // 2 or 1, length - 1})
    trace = SlidingEvaluator(model, EvaluateConfig(seq_len=32, stride=8), RUNTIME).score(tokens, positions)
    assert sorted(trace.log_probs) == positions
    for position in positions:
        vector = trace.log_probs[position]
        assert np.exp(vector).sum() == pytest.approx(1.0, abs=1e-9)
        assert -vector[tokens[position]] == pytest.approx(trace.nll[position - 1], abs=1e-5)


def test_documents_scored_apart_equal_documents_scored_alone(model: GPT) -> None:
    tokens = stream(150, seed=3)
    settings = EvaluateConfig(seq_len=32, stride=8, reset_at_documents=True, batch_windows=4)
    together = SlidingEvaluator(model, settings, RUNTIME).score(tokens).nll
    starts = np.flatnonzero(tokens[:-1] == BOS)
    apart = [
        plain(model, tokens[start : end + 1], 32, 8)
        for start, end in zip(starts, [*starts[1:], len(tokens) - 1], strict=True)
    ]
    np.testing.assert_allclose(together, np.concatenate(apart), atol=1e-5)


@pytest.mark.parametrize(("length", "seq_len", "stride"), [(2, 8, 3), (500, 64, 7), (65, 64, 64), (1000, 16, 16)])
def test_every_target_is_scored_once_with_enough_context(length: int, seq_len: int, stride: int) -> None:
    counts = np.zeros(length - 1, dtype=np.int64)
    for window in windows.plan(np.zeros(length, dtype=np.uint16), seq_len, stride):
        for target in range(window.stop - window.scored + 1, window.stop + 1):
            context = target - window.start
            assert min(target, seq_len - stride) <= context <= seq_len
            counts[target - 1] += 1
    windows.check_coverage(counts)


def test_coverage_names_the_first_token_scored_twice() -> None:
    with pytest.raises(CheckFailed, match="the first is token 3, scored 2 times"):
        windows.check_coverage(np.array([1, 1, 2, 0]))


def test_a_stream_of_one_token_has_nothing_to_predict(model: GPT) -> None:
    with pytest.raises(PgolfError, match="nothing to predict"):
        SlidingEvaluator(model, EvaluateConfig(seq_len=64), RUNTIME).score(np.array([BOS], dtype=np.uint16))


def test_score_arithmetic() -> None:
    score = Score.from_nll(np.array([np.log(2.0), np.log(2.0) * 3]), np.array([1, 3]))
    assert score.bits_per_byte == pytest.approx(1.0)
    assert score.nats_per_token == pytest.approx(2 * np.log(2.0))
    assert (score.tokens_scored, score.bytes_scored) == (2, 4)


@pytest.mark.parametrize(("nll", "token_bytes"), [([1.0], [1, 2]), ([np.nan, 1.0], [1, 1]), ([1.0, 1.0], [0, 0])])
def test_scores_that_cannot_be_added_up(nll: list[float], token_bytes: list[int]) -> None:
    with pytest.raises(CheckFailed):
        Score.from_nll(np.array(nll), np.array(token_bytes))


@torch.no_grad()
def test_banded_equals_one_pass_with_a_banded_mask(model: GPT) -> None:
    tokens = stream(700, seed=5)
    if model.counts is not None:
        with pytest.raises(PgolfError, match=r"document_counts reaches beyond the band; set evaluate\.context"):
            SlidingEvaluator(model, EvaluateConfig(seq_len=8, stride=8, context="banded"), RUNTIME).score(tokens)
        return
    trace = SlidingEvaluator(model, EvaluateConfig(seq_len=8, stride=8, context="banded"), RUNTIME).score(tokens)
    ids = torch.from_numpy(tokens.astype(np.int64))
    model.set_window(8)
    expected = model.token_losses(ids[None, :-1], ids[None, 1:])[0].numpy()
    model.set_window(0)
    # Rotary angles are float32: at position 700 they are off by some 1e-5, differently in the pass and in its blocks.
    np.testing.assert_allclose(trace.nll, expected, atol=1e-5 if model.copy_heads is None else 5e-5)


@torch.no_grad()
def test_a_band_as_long_as_the_text_is_full_attention(model: GPT) -> None:
    if model.counts is not None:
        return  # refused: the test before
    tokens = stream(60, seed=6)
    settings = EvaluateConfig(seq_len=64, stride=64, context="banded", reset_at_documents=True)
    full = EvaluateConfig(seq_len=64, stride=64, reset_at_documents=True)
    banded = SlidingEvaluator(model, settings, RUNTIME).score(tokens).nll
    np.testing.assert_allclose(banded, SlidingEvaluator(model, full, RUNTIME).score(tokens).nll, atol=1e-5)


def test_a_gpu_compiles_one_shape_and_nothing_more_at_the_last_partial_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs counted with a backend that compiles nothing, on the CPU as if it were a GPU."""
    torch._dynamo.reset()
    counter, compile_plainly = CompileCounter(), torch.compile
    monkeypatch.setattr(
        paths.torch, "compile", lambda function, dynamic=None: compile_plainly(function, backend=counter)
    )
    as_gpu = replace(RUNTIME, device=torch.device("cuda"), compile=True)
    torch.manual_seed(0)
    small = ["model.num_layers=6", "model.parallel_from=4", "model.loop_first=2", "model.loop_last=3"]
    small += ["model.vocab_size=64", "model.dim=32", "model.num_heads=2", "model.num_kv_heads=1", "model.rope_dims=8"]
    model = GPT(configs.load("record", None, small).model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    settings = EvaluateConfig(seq_len=32, stride=8, batch_windows=4)
    tokens = (
        np.random.default_rng(0).integers(2, 64, 32 + 10 * 8 + 4).astype(np.uint16)
    )  # 2.5 batches, the last 3 tokens
    plain = SlidingEvaluator(model, settings, RUNTIME).score(tokens).nll
    monkeypatch.setattr(sliding, "scoring_graph", lambda model, _, shape: paths.scoring_graph(model, as_gpu, shape))
    graphs = []
    on_progress = lambda done, nats: graphs.append(counter.frame_count)  # noqa: E731
    compiled = SlidingEvaluator(model, settings, RUNTIME, on_progress).score(tokens).nll
    np.testing.assert_allclose(compiled, plain, atol=1e-5)
    # Embedding, end, blocks without and with a skip, lanes, and lanes of which the last positions alone are computed.
    assert graphs == [6] * 4  # three batches, and the first window, which scores all its targets
    assert model.compiled is None
