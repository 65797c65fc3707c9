"""Settings of the optimizers and their schedules.

Three groups of parameters: `matrix` (the blocks' weight matrices, by Muon), `embed` (embeddings and output heads) and
`scalar` (gains, scales, gates), both by AdamW. The defaults are those of the published record of 2026-04-27, except
where a field names another source.
"""

from dataclasses import dataclass

from pgolf.errors import PgolfError

NEWTON_SCHULZ = ("polar-express", "fixed")
DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class OptimConfig:
    matrix_lr: float = 0.026
    """Muon's learning rate; the update is an orthogonal matrix times max(1, rows/columns)^0.5."""
    momentum: float = 0.97
    """Muon's momentum."""
    nesterov: bool = True
    """Look ahead by one step of momentum."""
    momentum_start: float = 0.92
    """Momentum of the first step of the momentum warmup."""
    momentum_warmup: int = 1500
    """Iterations over which the momentum rises from `momentum_start`, linearly; 0: none."""
    newton_schulz: str = "polar-express"
    """Coefficients of the orthogonalization: `polar-express` (arXiv 2505.16932) or `fixed` (the original Muon's)."""
    newton_schulz_steps: int = 5
    """Steps of the orthogonalization; `polar-express` has one table of coefficients each for 3, 4 and 5."""
    newton_schulz_dtype: str = "auto"
    """Type of the orthogonalization: `float32`, `bfloat16`, or `auto`: bfloat16 on a GPU."""
    row_equalize: bool = True
    """Scale the rows of the momentum to equal length before the orthogonalization (MuonEq-R, arXiv 2603.28254)."""
    neuron_beta: float = 0.0
    """Decay of the second moment per output neuron (NorMuon, arXiv 2510.05491: 0.95); 0: off."""
    matrix_decay: float = 0.095
    """Decoupled weight decay of the matrices, times the learning rate."""
    cautious_decay: bool = False
    """Decay a weight only where the update shrinks it too (arXiv 2510.12402)."""
    decay_end: float = 1.0
    """Final factor of the weight decay; the factor moves there linearly from 1, starting at `decay_from`."""
    decay_from: float = 0.7
    """Fraction of training from which the weight decay moves towards `decay_end`."""
    embed_lr: float = 0.03
    """AdamW's learning rate of embeddings and output heads."""
    embed_betas: tuple[float, ...] = (0.9, 0.95)
    """AdamW's two decays for the embeddings."""
    embed_decay: float = 0.085
    """Decoupled weight decay of the embeddings, times the learning rate."""
    shared_lr: float = 0.0
    """Learning rate, over `embed_lr`, of the components that rows of like pieces share; 0: they share none."""
    shared_spelling: bool = True
    """With `shared_lr`: pieces are alike by their first and last letter, length, and a space before them."""
    shared_neighbours: int = 64
    """With `shared_lr`: coordinates by which pieces with like neighbours in the train text are alike; 0: none."""
    scalar_lr: float = 0.02
    """AdamW's learning rate of all other parameters."""
    scalar_betas: tuple[float, ...] = (0.9, 0.95)
    """AdamW's two decays for the scalars."""
    scalar_decay: float = 0.0
    """Decoupled weight decay of the scalars, times the learning rate."""
    adam_epsilon: float = 1e-8
    """Added to the root of AdamW's second moment."""
    warmup: int = 0
    """Iterations over which all learning rates rise from zero; the records have none."""
    warmdown: float = 0.75
    """Last fraction of training over which the learning rates fall linearly towards 0, not below their floors."""
    warmdown_iterations: int = 0
    """Warmdown in iterations (the seed: 3500), in place of `warmdown`; in a shorter run it has begun before the first
    step; 0: off."""
    lr_floor: float = 0.0
    """The learning rate never falls below this share of the plateau's: the warmdown is max(linear, floor)."""
    embed_warmdown: float | None = None
    """Warmdown of the embeddings; unset: same as `warmdown`."""
    embed_floor: float | None = None
    """Floor of the embeddings; unset: same as `lr_floor`."""
    scalar_warmdown: float | None = None
    """Warmdown of the scalars; unset: same as `warmdown`."""
    scalar_floor: float | None = None
    """Floor of the scalars; unset: same as `lr_floor`."""
    batch_lr_power: float = 0.5
    """With a batch schedule: learning rates are scaled by (batch / train.batch_tokens) to this power."""
    grad_clip: float = 0.0
    """Largest global norm of the gradient over all processes; 0: no clipping."""

    def __post_init__(self) -> None:
        if self.newton_schulz not in NEWTON_SCHULZ:
            raise PgolfError(f"optim.newton_schulz is {self.newton_schulz!r}; choose {' or '.join(NEWTON_SCHULZ)}")
        if self.newton_schulz_dtype not in DTYPES:
            raise PgolfError(f"optim.newton_schulz_dtype is {self.newton_schulz_dtype!r}; choose {', '.join(DTYPES)}")
        if self.newton_schulz_steps < 1 or (
            self.newton_schulz == "polar-express" and self.newton_schulz_steps not in (3, 4, 5)
        ):
            raise PgolfError(
                f"optim.newton_schulz_steps is {self.newton_schulz_steps}; polar-express has tables for 3, 4 and 5 "
                "steps, fixed takes any number from 1"
            )
        for name in ("embed_betas", "scalar_betas"):
            betas = getattr(self, name)
            if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
                raise PgolfError(f"optim.{name} must be two numbers in [0, 1), got {list(betas)}")
        if min(self.shared_lr, self.shared_neighbours) < 0:
            raise PgolfError("optim.shared_lr and optim.shared_neighbours must be 0 (off) or more")
        if self.shared_lr and not (self.shared_spelling or self.shared_neighbours):
            raise PgolfError("optim.shared_lr needs optim.shared_spelling or optim.shared_neighbours")
        for name in ("momentum", "momentum_start", "neuron_beta"):
            if not 0 <= getattr(self, name) < 1:
                raise PgolfError(f"optim.{name} is {getattr(self, name)}; it must be from 0 up to below 1")
        for name in ("warmdown", "lr_floor", "embed_warmdown", "embed_floor", "scalar_warmdown", "scalar_floor"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise PgolfError(f"optim.{name} is {value}; it must be from 0 to 1")
