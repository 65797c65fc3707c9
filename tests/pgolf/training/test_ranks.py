"""Two gloo ranks: whatever happens on one of them, both end with the same weights, or both say that they do not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gloo_rank import config, hessians, run

from pgolf.runtime import Runtime

ALONE = Runtime(torch.device("cpu"), torch.float32, 0, 1, 1, compile=False)
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "gloo_rank.py")]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(folder)},
        )
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=200) for process in started]
    assert all(process.returncode == 0 for process in started), outputs
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.mark.parametrize(("attempt", "path"), [(0, "plain"), (1, "plain"), (2, "compiled")])
def test_a_compiler_that_fails_on_one_rank_is_used_on_none(ranks: list[dict], attempt: int, path: str) -> None:
    ours, theirs = (rank["attempts"][attempt] for rank in ranks)
    assert ours == theirs
    assert ours["path"] == path
    assert ours["same"]
    # The failure changed nothing: the weights are those of a run without one.
    assert ours["sum"] == pytest.approx(ranks[0]["attempts"][2]["sum"], rel=1e-9)


def test_two_ranks_make_in_the_reserve_what_one_does(ranks: list[dict]) -> None:
    made = run(config(), ALONE)
    assert made.reserved is not None
    assert ranks[0]["attempts"][0]["losses"] == pytest.approx(dict(made.reserved.choice.losses), abs=1e-5)
    alone = hessians(made)
    assert ranks[0]["attempts"][0]["hessians"] == pytest.approx(alone["hessians"], rel=1e-3)
    assert ranks[0]["attempts"][0]["calibration_tokens"] == alone["calibration_tokens"] == 512
    assert len(alone["hessians"]) > 6
    assert len(made.reserved.choice.losses) == 3  # last, one moving average, a blend


def test_the_first_weights_are_rank_zeros(ranks: list[dict]) -> None:
    assert ranks[0]["unequal"] == ranks[1]["unequal"] == pytest.approx(ranks[0]["attempts"][0]["sum"], rel=1e-9)


def test_weights_that_drift_apart_are_noticed_at_the_next_checkpoint(ranks: list[dict]) -> None:
    for rank in ranks:
        assert "hold different weights after step 2" in rank["error"]


RANK = """
import torch.distributed as dist
from pgolf import runtime
join = dist.init_process_group
dist.init_process_group = lambda *arguments, **named: (print('up', flush=True), join(*arguments, **named))
runtime.choose('cpu', 1)
"""
LAUNCHER = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); time.sleep(600)"


def test_a_rank_ends_with_its_launcher(tmp_path: Path) -> None:
    """Also while it waits in C++ for a rank that never comes. Its end closes the pipe that both wrote to."""
    group = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TORCHELASTIC_RUN_ID": "x", **group}
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, RANK], stdout=subprocess.PIPE, env=env, cwd=tmp_path)
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b"up\n"
    launcher.kill()
    rest, _ = launcher.communicate(timeout=30)  # raises TimeoutExpired while the rank lives
    assert rest == b""
