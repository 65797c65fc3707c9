"""One training run as an object: everything that changes from step to step, and the step."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pgolf.config import Config
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.optim.average import Averages
from pgolf.optim.flat import FlatParameters, parameter_groups
from pgolf.optim.optimizer import Optimizer
from pgolf.runtime import Runtime
from pgolf.tokens.loader import Loader
from pgolf.tokens.shards import TokenStream
from pgolf.training.nonfinite import NotFinite, StepResult, Watch


class Trainer:
    """Model, optimizer, averages and position in the data. Under several ranks all hold the same state."""

    def __init__(
        self, model: GPT, loader: Loader, config: Config, runtime: Runtime, likeness: Tensor | None = None
    ) -> None:
        """likeness: as in `Optimizer`."""
        self.model, self._loader, self._config, self._runtime = model, loader, config, runtime
        self.flat = FlatParameters(model, parameter_groups(model, model.matrix_roles()))
        self.optimizer = Optimizer(self.flat, config.optim, runtime.world_rank, runtime.world_size, likeness)
        self.averages = Averages(self.flat.data, config.average)
        self.iteration = 0
        self.tokens = 0
        self.learning_rate = 0.0
        """Of the matrices, in the last step."""
        self.flops = 0.0
        """Operations of all steps so far, by `flops_per_token`."""
        self.flops_per_token: Callable[[GPT, int], float] | None = None
        """Counts the operations of a step of the model on a sequence length, per token; None: nothing is counted."""
        self._known_flops: dict[tuple[int, int], float] = {}  # by executed blocks and sequence length
        self._watch = Watch(self.flat.data)
        self._batches: dict[int, tuple[Tensor, Tensor, float]] = {}  # of the steps whose loss is not known yet
        for fraction in config.train.breakpoints():
            loader.check(*config.train.sizes_at(fraction))

    @property
    def parameters(self) -> int:
        return sum(shape.numel() for shape in self.flat.shapes.values())

    @property
    def stream(self) -> TokenStream:
        """The tokens trained on."""
        return self._loader.stream

    def weights(self, flat: Tensor | None = None) -> dict[str, Tensor]:
        """The last weights, or those of an average's flat buffer: copies in host memory, float32, by parameter name."""
        named = self.flat.named(self.flat.data if flat is None else flat)
        return {name: tensor.detach().float().cpu().clone() for name, tensor in named.items()}

    def step(self, fraction: float) -> list[StepResult]:
        """One optimizer step. Returns the losses that have become known, of this step or of earlier ones.

        Raises NotFinite when one is not finite.
        """
        batch_tokens, seq_len = self._config.train.sizes_at(fraction)
        tokens, targets = self._to_device(self._loader.batch(self.iteration, batch_tokens, seq_len, self.tokens))
        self._loader.prefetch(self.iteration + 1, batch_tokens, seq_len, self.tokens + batch_tokens)
        self._batches[self.iteration] = tokens, targets, fraction
        self._gradient(tokens, targets, fraction)
        known = self._watch.push(self.iteration, self.flat.loss, self.optimizer.clip())
        self._update(fraction, batch_tokens)
        self.iteration += 1
        self.tokens += batch_tokens
        if self.flops_per_token is not None:
            kind = len(self.model.layer_order()), seq_len
            if kind not in self._known_flops:
                self._known_flops[kind] = self.flops_per_token(self.model, seq_len)
            self.flops += batch_tokens * self._known_flops[kind]
        self._forget(known)
        return known

    def drain(self) -> list[StepResult]:
        """Wait until the losses of all steps are known. Raises as `step` does."""
        known = self._watch.drain()
        self._forget(known)
        return known

    @property
    def in_flight(self) -> int:
        """Steps launched on a GPU that it may not have finished yet."""
        return self._watch.in_flight

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Restore weights, optimizer state, averages and random numbers when the block ends, in whatever way."""
        numbers = torch.get_rng_state()
        device_numbers = torch.cuda.get_rng_state(self.flat.data.device) if self.flat.data.is_cuda else None
        before = {name: tensor.clone() for name, tensor in self._tensors().items()}
        try:
            yield
        finally:
            for name, tensor in self._tensors().items():
                tensor.copy_(before[name])
            self.flat.zero_grad()
            torch.set_rng_state(numbers)
            if device_numbers is not None:
                torch.cuda.set_rng_state(device_numbers, self.flat.data.device)
                torch.cuda.synchronize()

    def warm_up(self, fraction: float, alone: bool = False) -> None:
        """One step on random tokens as training will run it at `fraction`, so that it is compiled and allocated.

        alone: forward and backward pass only, without any communication: what may fail on one rank and not on another.
        """
        batch_tokens, seq_len = self._config.train.sizes_at(fraction)
        rows = batch_tokens // seq_len // self._runtime.world_size
        tokens = torch.randint(self._config.model.vocab_size, (rows, seq_len), device=self.flat.data.device)
        self._gradient(tokens, tokens, fraction, alone)
        if not alone:
            self.optimizer.clip()
            self.optimizer.step(self.iteration, fraction)

    def synchronize(self) -> None:
        """Give every rank the state of rank 0. Ranks with different numbers of CPU threads initialize differently."""
        if self._runtime.world_size > 1:
            for tensor in self._tensors().values():
                dist.broadcast(tensor, 0)

    @property
    def is_main(self) -> bool:
        return self._runtime.is_main

    def check_ranks(self) -> None:
        """Raises PgolfError when the ranks do not hold the same weights."""
        if not self._runtime.same(self.flat.data):
            raise PgolfError(
                f"the processes hold different weights after step {self.iteration}; the last checkpoint is kept, run "
                "the same command to continue from it"
            )

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """A copy in host memory of everything a resumed run needs: tensors and plain values."""
        tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._tensors().items()}
        tensors["random"] = torch.get_rng_state()
        if self.flat.data.is_cuda:
            tensors["random.device"] = torch.cuda.get_rng_state(self.flat.data.device)
        values = {
            "iteration": self.iteration,
            "tokens": self.tokens,
            "flops": self.flops,
            "ema_steps": self.averages.ema_steps,
            "tail_steps": self.averages.tail_steps,
        }
        return tensors, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Restore a snapshot. Raises PgolfError when a tensor is missing."""
        own = self._tensors()
        if set(own) - set(tensors):
            raise PgolfError(f"the checkpoint lacks {min(set(own) - set(tensors))}; start over with --force")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        torch.set_rng_state(tensors["random"])
        if self.flat.data.is_cuda and "random.device" in tensors:
            torch.cuda.set_rng_state(tensors["random.device"], self.flat.data.device)
        self.iteration, self.tokens = values["iteration"], values["tokens"]
        self.flops = values["flops"]
        self.averages.ema_steps, self.averages.tail_steps = values["ema_steps"], values["tail_steps"]

    def _tensors(self) -> dict[str, Tensor]:
        return {"weights": self.flat.data} | self.optimizer.state() | self.averages.state()

    def _gradient(self, tokens: Tensor, targets: Tensor, fraction: float, alone: bool = False) -> None:
        """Fill the flat gradient and loss with the mean over the global batch; alone: with this rank's share of it.
        tokens: (rows, seq_len)."""
        self.model.set_progress(fraction)
        self.flat.zero_grad()
        rows = len(tokens)
        for part, wanted in self._passes(tokens, targets):
            loss = self.model.loss(part, wanted) * (len(part) / (rows * self._runtime.world_size))
            loss.backward()
            self.flat.loss.add_(loss.detach())
        if self._runtime.world_size > 1 and not alone:
            dist.all_reduce(self.flat.grad_and_loss)

    def _passes(self, tokens: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The rows of a batch as they go through the model, `train.micro_tokens` at a time."""
        rows, seq_len = tokens.shape
        micro_tokens = self._config.train.micro_tokens
        at_once = max(1, micro_tokens // seq_len) if micro_tokens else rows
        return list(zip(tokens.split(at_once), targets.split(at_once), strict=True))

    def _update(self, fraction: float, batch_tokens: int) -> None:
        relative = batch_tokens / self._config.train.batch_tokens
        train = self._config.train
        self.learning_rate = self.optimizer.step(
            self.iteration,
            fraction,
            relative**self._config.optim.batch_lr_power,
            planned=0 if train.seconds else train.iterations,
        )
        self.averages.update(fraction)

    def _to_device(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if not self.flat.data.is_cuda:
            return batch
        tokens, targets = (part.pin_memory().to(self.flat.data.device, non_blocking=True) for part in batch)
        return tokens, targets

    def _forget(self, known: list[StepResult]) -> None:
        for result in known:
            del self._batches[result.iteration]

    def go_over_again(self, error: NotFinite) -> list[tuple[Tensor, Tensor]]:
        """Put the model back to the weights and settings of the step that failed; returns that step's passes."""
        tokens, targets, fraction = self._batches[error.iteration]
        self.flat.data.copy_(error.weights)
        self.model.set_progress(fraction)
        return self._passes(tokens, targets)
