"""Muon on banks of same-shaped matrices: momentum, row equalization, orthogonalization, decay.

Unusual here: everything before and after the orthogonalization is one vector operation over all matrices at once,
banks whose shapes are each other's transposes share one batched iteration, and under several ranks each orthogonalizes
a share of every bank, an all-gather handing the results round. Momentum is kept whole on every rank: it costs little,
and a checkpoint needs no gathering.
Sources: github.com/KellerJordan/Muon; MuonEq-R arXiv 2603.28254; NorMuon arXiv 2510.05491; cautious weight decay
arXiv 2510.12402.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from pgolf.config.optim import OptimConfig
from pgolf.optim.flat import Bank, FlatParameters
from pgolf.optim.newton_schulz import choose_dtype, coefficients, orthogonalize

# torch 2.13 gave it another name and warns at the old one.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Muon:
    """Updates the `matrix` group of flat parameters. State: `momentum` and, with NorMuon, one moment per neuron."""

    def __init__(self, flat: FlatParameters, config: OptimConfig, world_rank: int = 0, world_size: int = 1) -> None:
        self._config, self._world_rank, self._world_size = config, world_rank, world_size
        self._rows = coefficients(config.newton_schulz, config.newton_schulz_steps)
        self._dtype = choose_dtype(config.newton_schulz_dtype, flat.data.device)
        self._flat = flat
        self._data, self._grad = flat.span(flat.data, "matrix"), flat.span(flat.grad, "matrix")
        self.momentum = torch.zeros_like(self._data)
        self._update = torch.zeros_like(self._data)
        self._sets: dict[tuple[int, int], list[Bank]] = {}  # by (short side, long side)
        for bank in flat.banks:
            self._sets.setdefault((min(bank.shape), max(bank.shape)), []).append(bank)
        self.moments = [
            torch.zeros(len(bank.names), bank.shape[0], 1, device=self._data.device)
            for bank in flat.banks
            if config.neuron_beta
        ]

    def state(self) -> dict[str, Tensor]:
        """State for checkpoints, by name: the tensors themselves, to copy from or into."""
        return {"muon.momentum": self.momentum} | {
            f"muon.moment.{index}": moment for index, moment in enumerate(self.moments)
        }

    @torch.no_grad()
    def step(self, lr: float, momentum: float, decay: float) -> None:
        """One update from the gradients in the flat buffer. `decay` is multiplied by `lr`."""
        if not self._flat.banks:
            return
        config, update = self._config, self._update
        self.momentum.mul_(momentum).add_(self._grad)
        if config.nesterov:
            torch.add(self._grad, self.momentum, alpha=momentum, out=update)
        else:
            update.copy_(self.momentum)
        if config.row_equalize:
            for bank in self._flat.banks:
                view = bank.view(update)  # (k, rows, columns)
                view.div_(torch.linalg.vector_norm(view, dim=-1, keepdim=True).clamp_(min=1e-7))
        for banks in self._sets.values():
            self._orthogonalize(banks)
        if config.neuron_beta:
            for bank, moment in zip(self._flat.banks, self.moments, strict=True):
                _normalize_neurons(bank.view(update), moment, config.neuron_beta)
        for bank in self._flat.banks:
            scale = max(1.0, bank.shape[0] / bank.shape[1]) ** 0.5
            if scale != 1:
                bank.view(update).mul_(scale)
        if config.cautious_decay and decay:
            self._data.sub_(self._data * (update * self._data > 0), alpha=lr * decay)
        elif decay:
            self._data.mul_(1 - lr * decay)
        self._data.add_(update, alpha=-lr)

    def _orthogonalize(self, banks: list[Bank]) -> None:
        """Replace the banks' updates in place. All have one shape, up to transposition."""
        views = [bank.view(self._update) for bank in banks]
        flipped = [view.mT if view.shape[1] > view.shape[2] else view for view in views]  # each (k, short, long)
        stack = flipped[0] if len(flipped) == 1 else torch.cat(flipped)
        total = len(stack)
        if self._world_size > 1:
            share = -(-total // self._world_size)
            mine = stack[self._world_rank * share : (self._world_rank + 1) * share]
            result = stack.new_zeros(share, *stack.shape[1:], dtype=self._dtype)
            if len(mine):
                result[: len(mine)] = self._iterate(mine)
            stack = result.new_empty(self._world_size * share, *stack.shape[1:])
            _all_gather(stack, result)
        else:
            stack = self._iterate(stack)
        at = 0
        for target in flipped:
            target.copy_(stack[at : at + len(target)])
            at += len(target)

    def _iterate(self, stack: Tensor) -> Tensor:
        return orthogonalize(stack.to(self._dtype).contiguous(), self._rows)


def _normalize_neurons(update: Tensor, moment: Tensor, beta: float) -> None:
    """NorMuon in place: each row over the root of its running mean square, the matrix's norm kept.

    update: (k, rows, columns), orthogonalized; moment: (k, rows, 1). As the speedrun does it, without bias correction.
    """
    before = torch.linalg.vector_norm(update, dim=(-2, -1), keepdim=True)
    moment.lerp_(update.square().mean(dim=-1, keepdim=True), 1 - beta)
    update.div_(moment.sqrt().add_(1e-10))
    update.mul_(before / torch.linalg.vector_norm(update, dim=(-2, -1), keepdim=True).add_(1e-10))
