"""Two gloo ranks score what one process does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pgolf.config.evaluate import EvaluateConfig
from pgolf.config.model import ModelConfig
from pgolf.config.ttt import TttConfig
from pgolf.errors import PgolfError
from pgolf.evaluate import tilt
from pgolf.evaluate.evaluator import Evaluator
from pgolf.evaluate.sliding import SlidingEvaluator
from pgolf.evaluate.ttt.methods import TttEvaluator
from pgolf.model.gpt import GPT
from pgolf.runtime import Runtime

SETTINGS = EvaluateConfig(seq_len=32, stride=8, batch_windows=4)
LORA = {"method": "lora", "lora_rank": 2, "lora_lr": 0.02, "lora_documents": 3}
TTT = {
    "sliding": None,
    "lora": TttConfig(**LORA),
    "phased": TttConfig(**LORA | {"method": "phased", "phases": 3, "lr": 5e-3, "optimizer": "sgd"}),  # type: ignore[arg-type]
    "phased by adam": TttConfig(**LORA | {"method": "phased", "phases": 3, "lr": 3e-2, "epochs": 2}),  # type: ignore[arg-type]
}
TILTED = replace(SETTINGS, tilt_boost=2.0, tilt_order=2, tilt_threshold=0.5)


def evaluator(name: str, rank: int, world_size: int, settings: EvaluateConfig = SETTINGS) -> Evaluator:
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=64, dim=16, num_layers=1, num_heads=2, num_kv_heads=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    runtime = Runtime(torch.device("cpu"), torch.float32, rank, world_size, threads=1, compile=False)
    ttt = TTT[name]
    if ttt is None:
        return tilt.over(SlidingEvaluator(model, settings, runtime), settings)
    return tilt.over(TttEvaluator(model, settings, ttt, runtime, on_estimate=lambda estimate: None), settings)


def stream() -> np.ndarray:
    tokens = np.random.default_rng(0).integers(2, 64, 300).astype(np.uint16)
    tokens[[0, 40, 41, 90, 150, 151, 230]] = 1
    return tokens


def found(name: str, rank: int, world_size: int) -> np.ndarray:
    traces = [evaluator(name, rank, world_size, settings).score(stream(), [5, 299]) for settings in (SETTINGS, TILTED)]
    assert traces[1].facts["tilt"]["hinted"] > 5  # type: ignore[index]
    return np.concatenate(
        [part for trace in traces for part in (trace.nll, trace.log_probs[5], trace.log_probs[299], trace.order)]
    )


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    for name in TTT:
        np.save(f"{folder}/{name}-{rank}.npy", found(name, rank, 2))
    dist.barrier()  # gloo aborts a process whose peer is gone while it still sends
    dist.destroy_process_group()


def test_two_ranks_score_what_one_does(tmp_path: Path) -> None:
    mp.spawn(rank_main, (str(tmp_path),), nprocs=2)
    for name in TTT:
        for rank in (0, 1):
            np.testing.assert_allclose(np.load(tmp_path / f"{name}-{rank}.npy"), found(name, 0, 1), atol=1e-6)


def test_methods_along_one_stream_are_refused() -> None:
    runtime = Runtime(torch.device("cpu"), torch.float32, 0, 2, threads=1, compile=False)
    model = GPT(ModelConfig(vocab_size=64, dim=16, num_layers=1, num_heads=2, num_kv_heads=1))
    with pytest.raises(PgolfError, match="sgd needs one process; lora or phased share documents"):
        TttEvaluator(model, SETTINGS, TttConfig(), runtime).score(stream())
