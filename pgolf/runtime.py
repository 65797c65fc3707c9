"""Device, dtype, threads and ranks: chosen once by the command and passed to everything that computes.

Under torchrun every rank gets its own device; a single process is rank 0 of 1.
"""

import os
import platform
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pgolf.errors import PgolfError

RANK_TIMEOUT = timedelta(minutes=30)
"""After which a process that waits for another gives up, on every backend. Rank 0 works alone for minutes while the
others wait (choosing an average, writing a checkpoint), which NCCL's own 10 minutes can be too short for."""


@dataclass(frozen=True)
class Runtime:
    device: torch.device
    dtype: torch.dtype
    """Of activations: float32 on CPU, bfloat16 on GPU. Weights and optimizer state stay float32."""
    world_rank: int
    world_size: int
    threads: int
    compile: bool
    """Allow fast paths (C kernels, torch.compile); the result is the same without them."""
    cache: Path | None = None
    """Folder for compiled kernels and measured times; None: nothing is kept between runs."""

    @property
    def is_main(self) -> bool:
        return self.world_rank == 0

    def shutdown(self) -> None:
        """Destroy the process group at the end of the program."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.world_size > 1:
            dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def agree(self, worked: bool) -> bool:
        """True if `worked` is true on every process. Collective: every process must call it."""
        if self.world_size == 1:
            return worked
        return bool(self._reduced(torch.tensor(int(worked), device=self.device), dist.ReduceOp.MIN))

    def same(self, tensor: torch.Tensor) -> bool:
        """True if every process holds the same bits in a float32 tensor, compared by the sum of bit patterns."""
        if self.world_size == 1:
            return True
        total = tensor.detach().view(torch.int32).sum(dtype=torch.int64)
        return self._reduced(total, dist.ReduceOp.MIN) == self._reduced(total, dist.ReduceOp.MAX)

    def _reduced(self, value: torch.Tensor, how: Any) -> int:
        value = value.clone()
        dist.all_reduce(value, how)
        return int(value)

    def __str__(self) -> str:
        """Device, dtype and processes as text: `2 processes, each on cpu (1 thread, float32)`."""
        if self.device.type == "cuda":
            what = f"{torch.cuda.get_device_name(self.device)} (cuda, {self._dtype_name})"
        else:
            what = f"cpu ({self.threads} thread{'s' * (self.threads > 1)}, {self._dtype_name})"
        return what if self.world_size == 1 else f"{self.world_size} processes, each on {what}"

    @property
    def _dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def describe(self) -> dict[str, Any]:
        """The `environment` of a manifest."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.processor()
        return {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "platform": platform.platform(),
            "device": self.device.type,
            "device_name": name or platform.machine(),
            "dtype": self._dtype_name,
            "threads": self.threads,
            "world_size": self.world_size,
            "compile": self.compile,
        }


def choose(device: str = "auto", threads: int = 0, compile: bool = True, cache: Path | None = None) -> Runtime:
    """Pick the device (`auto`, `cpu` or `cuda`), set the thread count once, and join torchrun's group if there is one.

    `threads` 0 means every core this process may use. Raises PgolfError for `cuda` without a usable GPU, for more
    processes than GPUs, and for a GPU without bfloat16.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise PgolfError(f"--device {device!r}: choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise PgolfError("--device cuda: torch finds no usable GPU here; leave it out to run on the CPU")
    use_cuda = device != "cpu" and torch.cuda.is_available()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))  # torchrun's own interface
    world_rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if use_cuda:
        _check_gpu(local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    count = threads or max(1, _usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(count)
    where = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(where)
        torch.set_float32_matmul_precision("high")
    if world_size > 1 and not dist.is_initialized():
        if "TORCHELASTIC_RUN_ID" in os.environ:
            _end_with_launcher()
        backend, device_id = ("nccl", where) if use_cuda else ("gloo", None)
        dist.init_process_group(backend, device_id=device_id, timeout=RANK_TIMEOUT)
    return Runtime(
        device=where,
        dtype=torch.bfloat16 if use_cuda else torch.float32,
        world_rank=world_rank,
        world_size=world_size,
        threads=count,
        compile=compile,
        cache=cache,
    )


def _end_with_launcher() -> None:
    """End this process when torchrun's agent, its parent, is killed. It would wait for the others in a collective for
    minutes, holding its GPU; nothing is lost, since files are replaced whole."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(130)

    threading.Thread(target=watch, name="launcher", daemon=True).start()


def _check_gpu(local_rank: int, processes: int) -> None:
    count = torch.cuda.device_count()
    if max(local_rank + 1, processes) > count:
        raise PgolfError(
            f"{processes} processes on this machine need a GPU each, and torch finds {count}; start it with "
            f"--nproc {count}, or run on the CPU with --device cpu"
        )
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(local_rank)
        raise PgolfError(f"{name} cannot compute in bfloat16, which pgolf needs of a GPU; use --device cpu")


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1
