"""Quantization noise in training: the last part of the steps takes its gradients at weights that are disturbed as
quantization will disturb them; the optimizer moves the undisturbed ones.

The noise is the error of an ideal quantizer at `train.noise_bits` bits per weight: in the eigenbases of both Fisher
factors of a matrix (see `quant.hessian`) an element of variance s and curvature k gets the variance
D (1 - D / s), D = min(level / k, s), with one level for all matrices (reverse water-filling). Rounding with error
feedback leaves errors of that covariance. The mean loss over the noise contains the loss of rounding, so training
lowers both. Each draw serves two steps, the second time with the opposite sign, which cancels its first-order effect
on the gradient in the momentum. Fisher factors are collected where the noise begins and again after every `REFRESH`
of training.
Source: additive noise in place of rounding, DiffQ, arXiv 2104.09987; the variance is `quant.waterfill`'s theory.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pgolf.config import Config
from pgolf.model.gpt import GPT
from pgolf.optim.flat import FlatParameters
from pgolf.quant import calibration_data, hessian
from pgolf.quant.hessian import Calibration
from pgolf.tokens.shards import TokenStream

REFRESH = 0.1
TOKENS = 16_384  # train tokens that the Fisher factors are collected from: as many as the quantizer's sensitivities

_Spectrum = tuple[Tensor, Tensor, Tensor, Tensor]


class WeightNoise:
    """Disturbs the quantized matrices in the flat weights of a model."""

    def __init__(self, model: GPT, flat: FlatParameters, stream: TokenStream, config: Config, rank: int = 0) -> None:
        """rank: every process draws noise of its own."""
        self._model, self._flat, self._stream, self._config, self._rank = model, flat, stream, config, rank
        self._generator = torch.Generator(flat.data.device)
        self._refreshed = torch.full((), -1.0, device=flat.data.device)
        self._deviation = torch.zeros_like(flat.data)  # of the noise, in the eigenbases
        self._bases: dict[str, tuple[Tensor, Tensor]] = {}
        by_muon = {name for bank in flat.banks for name in bank.names}
        for name in model.matrix_roles():
            rows, columns = flat.shapes[name]
            rows = rows if name in by_muon else 0  # the Fisher factor of an embedding's rows is diagonal
            left, right = (torch.zeros(size, size, device=flat.data.device) for size in (rows, columns))
            self._bases[name] = left, right

    def state(self) -> dict[str, Tensor]:
        """All tensors that a checkpoint must hold, by name."""
        state = {"noise.refreshed": self._refreshed, "noise.deviation": self._deviation}
        for name, (left, right) in self._bases.items():
            state |= {f"noise.left.{name}": left, f"noise.right.{name}": right}
        return state

    @contextmanager
    def applied(self, iteration: int, fraction: float) -> Iterator[None]:
        """Inside the block the matrices are disturbed, once `fraction` of training has reached `train.noise_from`."""
        train = self._config.train
        if fraction < train.noise_from:
            yield
            return
        period = (fraction - train.noise_from) // REFRESH
        if period > self._refreshed:
            self._refresh()
            self._refreshed.fill_(period)
        before = self._flat.data.clone()
        scale = (1 - fraction) / (1 - train.noise_from) if train.noise_anneal else 1.0
        self._disturb(iteration, scale)
        try:
            yield
        finally:
            self._flat.data.copy_(before)

    def _disturb(self, iteration: int, scale: float) -> None:
        pair, sign = iteration // 2, 1 - 2 * (iteration % 2)
        self._generator.manual_seed((self._config.seed * 1_000_003 + pair) * 1_009 + self._rank)
        for name, (left, right) in self._bases.items():
            deviation = self._flat.view(self._deviation, name)
            noise = torch.randn(deviation.shape, generator=self._generator, device=deviation.device)
            noise = noise.mul_(deviation) @ right.T
            self._flat.view(self._flat.data, name).add_(left @ noise if len(left) else noise, alpha=scale * sign)

    def _refresh(self) -> None:
        """Collect Fisher factors of the present weights and set the deviations."""
        _, length = self._config.train.sizes_at(self._config.train.noise_from)
        tokens = max(TOKENS, length)
        drawn = calibration_data.batches(self._stream, tokens, length, choosing=False, seed=self._config.seed)
        batches = [batch.to(self._flat.data.device) for batch in drawn]
        found = hessian.calibrate(self._model, batches, True, self._config.seed)
        self._model.train()
        weights = self._flat.named(self._flat.data)
        spectra = {name: spectrum(weights[name], found[name], self._config.quantize.damping) for name in self._bases}
        deviations = water_fill([(s, k) for s, k, _, _ in spectra.values()], self._config.train.noise_bits)
        for (name, (_, _, left, right)), deviation in zip(spectra.items(), deviations, strict=True):
            self._flat.view(self._deviation, name).copy_(deviation)
            for basis, made in zip(self._bases[name], (left, right), strict=True):
                basis.copy_(made)


def spectrum(weight: Tensor, found: Calibration, damping: float) -> _Spectrum:
    """Variance and curvature (rows, columns) of a matrix (rows, columns) in the eigenbases of its Fisher factors, and
    these bases, (rows, rows) or (0, 0) where that factor is diagonal, and (columns, columns). float64 on the CPU."""
    outer, inner = torch.from_numpy(found.output), torch.from_numpy(found.curvature)
    inner = inner + damping * inner.diagonal().mean() * torch.eye(len(inner))
    right_values, right = torch.linalg.eigh(inner)
    rotated = weight.double().cpu() @ right
    left_values, left = outer, torch.zeros(0, 0, dtype=torch.float64)
    if outer.ndim == 2:
        outer = outer + damping * outer.diagonal().mean() * torch.eye(len(outer))
        left_values, left = torch.linalg.eigh(outer)
        rotated = left.T @ rotated
    rows = rotated.square().mean(1, keepdim=True) + 1e-12  # of a row's weights ...
    columns = (rotated.square() / rows).mean(0)  # ... times this, mean 1: the variance of an element
    return rows * columns + 1e-12, torch.outer(left_values.clamp(min=1e-30), right_values), left, right


def water_fill(parts: list[tuple[Tensor, Tensor]], bits: float) -> list[Tensor]:
    """Deviation (rows, columns) of the noise of every (variance, curvature), at `bits` bits per weight over all."""
    ratios = torch.cat([torch.log2(variance * curvature).flatten() for variance, curvature in parts])
    low, high = float(ratios.min()) - 2 * bits, float(ratios.max())  # log2 of the level
    for _ in range(50):
        level = (low + high) / 2
        low, high = (level, high) if float((ratios - level).clamp(min=0).mean()) / 2 > bits else (low, level)
    found = []
    for variance, curvature in parts:
        distortion = torch.minimum(2.0**high / curvature, variance)
        found.append((distortion * (1 - distortion / variance)).sqrt())
    return found
