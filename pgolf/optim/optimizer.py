"""Muon and AdamW together, with their schedules: one object that training steps."""

import torch
from torch import Tensor

from pgolf.config.optim import OptimConfig
from pgolf.optim.adam import FlatAdam
from pgolf.optim.flat import FlatParameters
from pgolf.optim.muon import Muon
from pgolf.optim.schedule import decay_factor, lr_factor, momentum_at
from pgolf.optim.shared_components import SharedComponents

EMBEDDING = "tok_emb.weight"  # of the model, whose rows are tokens


class Optimizer:
    """Steps the three groups of flat parameters."""

    def __init__(
        self,
        flat: FlatParameters,
        config: OptimConfig,
        world_rank: int = 0,
        world_size: int = 1,
        likeness: Tensor | None = None,
    ) -> None:
        """likeness: (vocab_size, n) by which rows of the embedding share components; None: nothing is shared."""
        self._flat, self._config = flat, config
        self._muon = Muon(flat, config, world_rank, world_size)
        self._embed = FlatAdam(flat, "embed", config.embed_betas, config.adam_epsilon)
        self._scalar = FlatAdam(flat, "scalar", config.scalar_betas, config.adam_epsilon)
        self._shared = None
        if likeness is not None:
            given = likeness, config.shared_lr, config.embed_betas, config.adam_epsilon
            self._shared = SharedComponents(flat, EMBEDDING, *given)

    def state(self) -> dict[str, Tensor]:
        """All tensors that a checkpoint must hold, by name."""
        shared = {} if self._shared is None else self._shared.state()
        return self._muon.state() | self._embed.state() | self._scalar.state() | shared

    @torch.no_grad()
    def step(self, iteration: int, fraction: float, lr_scale: float = 1.0, planned: int = 0) -> float:
        """One update of everything from the gradients in the flat buffer, already summed over ranks.

        iteration: steps done before this one; fraction: of training done (see `schedule`); lr_scale: over all groups;
        planned: iterations of a run without a clock. Returns the learning rate of the matrices.
        """
        config = self._config
        decay = decay_factor(config, fraction)

        def lr(group: str, base: float) -> float:
            return base * lr_scale * lr_factor(config, group, fraction, iteration, planned)

        rate = lr("matrix", config.matrix_lr)
        self._muon.step(rate, momentum_at(config, iteration), config.matrix_decay * decay)
        self._embed.step(lr("embed", config.embed_lr), config.embed_decay * decay)
        if self._shared is not None:
            self._shared.step(lr("embed", config.embed_lr))
        self._scalar.step(lr("scalar", config.scalar_lr), config.scalar_decay * decay)
        return rate

    @torch.no_grad()
    def clip(self) -> Tensor:
        """Scale the gradient down to the configured global norm, if any. Returns the norm before, a 0-d tensor."""
        norm = torch.linalg.vector_norm(self._flat.grad)
        if self._config.grad_clip:
            self._flat.grad.mul_((self._config.grad_clip / (norm + 1e-6)).clamp(max=1.0))
        return norm
