"""Two gloo ranks score what one process does."""

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pgolf.config.evaluate import EvaluateConfig
from pgolf.config.model import ModelConfig
from pgolf.evaluate.sliding import SlidingEvaluator
from pgolf.model.gpt import GPT
from pgolf.runtime import Runtime


def evaluator(rank: int, world_size: int) -> SlidingEvaluator:
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=64, dim=16, num_layers=1, num_heads=2, num_kv_heads=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    runtime = Runtime(torch.device("cpu"), torch.float32, rank, world_size, threads=1, compile=False)
    return SlidingEvaluator(model, EvaluateConfig(seq_len=32, stride=8, batch_windows=4), runtime)


def stream() -> np.ndarray:
    return np.random.default_rng(0).integers(2, 64, 300).astype(np.uint16)


def rank_main(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    trace = evaluator(rank, 2).score(stream(), [5, 299])
    np.save(f"{folder}/{rank}.npy", np.concatenate([trace.nll, trace.log_probs[5], trace.log_probs[299]]))
    dist.destroy_process_group()


def test_two_ranks_score_what_one_does(tmp_path: Path) -> None:
    mp.spawn(rank_main, (str(tmp_path),), nprocs=2)
    trace = evaluator(0, 1).score(stream(), [5, 299])
    expected = np.concatenate([trace.nll, trace.log_probs[5], trace.log_probs[299]])
    for rank in (0, 1):
        np.testing.assert_allclose(np.load(tmp_path / f"{rank}.npy"), expected, atol=1e-6)
