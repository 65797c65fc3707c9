r"""Score lost against bytes: this project, the records' pipeline, the seed's, and NNCodec, on the same checkpoints.

    python benchmarks/quantize/quantization.py artifacts/mini/ema-finalize [MORE_STAGES...] [--nncodec PYTHON] \
        [--tokens 65536]

Every method sees the same calibration tokens and, where it uses them, the same plain Hessians. The records': GPTQ, one
step per row at k standard deviations (12.85 for int6 matrices, 20 for the int8 embedding, scaled together for other
rates), no clipping, symbols as bytes, float16 row scales, byte shuffle, brotli 11, no header. The seed's: nearest at
2.5 deviations, zlib 9, other widths for other rates. Lost score: KL divergence per token and rise in bits per byte on
val tokens in disjoint windows, both against the float model. Writes quantization.json and quantization.png beside it.
"""

import argparse
import json
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import brotli
import matplotlib
import numpy as np
import torch
from torch import Tensor

from pgolf import runtime as runtimes
from pgolf.codec import container
from pgolf.config import Config, QuantizeConfig
from pgolf.model.fast_paths import paths_by_rule
from pgolf.model.raced_pairs import Shape
from pgolf.progress import Silent
from pgolf.quant import allocate, gptq, hessian, pipeline, rtn, step_search, waterfill
from pgolf.quant.allocate import Matrices, Plan
from pgolf.quant.calibrated_model import CalibratedModel
from pgolf.quant.controls import choose_steps, control_tensors, float_weights, split
from pgolf.quant.divergence import Divergence
from pgolf.quant.hessian import Calibration
from pgolf.quantized.tensors import QuantizedModel
from pgolf.saved import models, tokens
from pgolf.store import stage_directory
from stages.quantize import train_shards

HERE = Path(__file__).parent
BITS = (2.0, 2.5, 3.0, 3.6, 4.4)


@dataclass(frozen=True)
class OurSettings:
    """Settings of this project's own curves, named as in `quantize`."""

    distill_steps: int = 400
    distill_lr: float = 0.0
    distill_shares: tuple[float, ...] = QuantizeConfig().distill_shares
    rate_weight: float = QuantizeConfig().rate_weight


AS_MINI = OurSettings()


@dataclass(frozen=True, eq=False)
class Case:
    """One checkpoint and everything measured on it."""

    name: str
    source: CalibratedModel
    trained: Mapping[str, Tensor]
    """The model's weights as training left them; `weights` may have the embedding in another basis."""
    plain: Mapping[str, Calibration]  # of `trained`, without gradients, on the same tokens
    judging: Divergence  # val tokens, for the result
    bytes_per_token: float

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return self.source.weights

    @property
    def roles(self) -> Mapping[str, str]:
        return self.source.roles

    @property
    def controls(self) -> dict[str, Tensor]:
        return self.source.controls

    @property
    def trained_controls(self) -> dict[str, Tensor]:
        return control_tensors(self.trained, self.roles)

    @cached_property
    def float_loss(self) -> float:
        return losses(self, {})

    @property
    def size(self) -> int:
        return sum(self.weights[name].numel() for name in self.roles)

    def array(self, name: str) -> np.ndarray:
        return self.trained[name].double().numpy()


@dataclass(frozen=True)
class Point:
    bytes: int
    kl: float
    bits_per_byte_lost: float


def judge(case: Case, size: int, weights: Mapping[str, Tensor]) -> Point:
    """The point of these weights, shown as soon as it is known: one can take half an hour."""
    loss = losses(case, weights) - case.float_loss
    point = Point(size, case.judging.of(weights), loss / np.log(2) / case.bytes_per_token)
    print(
        f"    {size:>12,} bytes {8 * size / case.size:6.3f} bits/weight  KL {point.kl:.6f}  "
        f"BPB {point.bits_per_byte_lost:+.5f}",
        flush=True,
    )
    return point


@torch.no_grad()
def losses(case: Case, weights: Mapping[str, Tensor]) -> float:
    """Mean nats per token of the judging tokens, with these weights in place of the float ones."""
    model = case.judging.model
    original = {name: model.state_dict()[name].clone() for name in weights}
    model.load_state_dict({**model.state_dict(), **weights})
    total = 0.0
    for batch in case.judging.batches:
        total += float(model.token_losses(batch[:, :-1], batch[:, 1:]).sum(dtype=torch.float64))
    model.load_state_dict({**model.state_dict(), **original})
    return total / sum(batch[:, 1:].numel() for batch in case.judging.batches)


def decoded(matrices: Matrices, controls: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return QuantizedModel(matrices, controls).state_dict()


def plan_of(case: Case, bits: float = 3.0, states: int = 8) -> Plan:
    """Steps for all matrices, their shares measured at so many bits per weight, as `quantize` measures them."""
    settings = case.source.config.quantize
    rounding = waterfill.Rounding(states=states, rate_weight=settings.rate_weight, resolution=settings.resolution)
    plan = Plan(case.source.problems, rounding, case.source.threads)
    allocate.measure(plan, case.source.divergence, plan.log2_c_for_bits(bits, list(plan.problems)))
    return plan


def ours(case: Case, rates: Sequence[float], states: int = 8, trained: bool = False) -> list[Point]:
    """Trellis, waterfilled, Fisher weights, measured allocation; the real container. rates: bits per weight, without
    side information; trained: with training between shares and control tensors rounded; with 64 states as `mini` ships
    it."""
    points = []
    for bits in rates:
        plan = plan_of(case, bits, states)
        log2_c = plan.log2_c_for_bits(bits, list(plan.problems))
        plan.refit(plan.round(log2_c))
        matrices, controls = plan.round(log2_c), case.controls
        if trained:
            plan.last_log2_c = log2_c
            distance = Divergence(case.source.model, case.source.batches(step_search.CONTROL_TOKENS, choosing=True))
            steps = choose_steps(distance, case.weights, matrices)
            matrices, floats, _ = step_search.distill(case.source, plan)
            coded, controls = split(floats, steps)
            matrices = matrices | coded
        size = len(container.encode(QuantizedModel(matrices, controls)))
        points.append(judge(case, size, decoded(matrices, controls)))
    return points


def packed(matrices: Matrices, controls: Mapping[str, Tensor], compress: Callable[[bytes], bytes]) -> int:
    """Bytes as the records write them: integers, float16 scales and controls with their two bytes apart; no header."""
    halves = [np.exp2(m.row_scale / m.resolution).astype(np.float16).tobytes() for m in matrices.values()]
    halves += [tensor.to(torch.float16).numpy().tobytes() for tensor in controls.values()]
    scales = b"".join(halves)
    integers = b"".join(m.symbols.astype(np.int8).tobytes() for m in matrices.values())
    return len(compress(integers + scales[::2] + scales[1::2]))


def records(case: Case) -> list[Point]:
    points = []
    for factor in 2.0 ** np.arange(-1.8, 1.3, 0.6):
        matrices = {}
        for name, role in case.roles.items():
            sigmas, bits = (20.0, 8) if role == "embed" else (12.85, 6)
            plain = case.plain[name].curvature
            matrices[name] = gptq.quantize(case.array(name), plain, role, bits, sigmas * factor, 0.01)
        size = packed(matrices, case.trained_controls, lambda data: brotli.compress(data, quality=11, lgwin=24))
        points.append(judge(case, size, decoded(matrices, case.trained_controls)))
    return sorted(points, key=lambda point: point.bytes)


def seed(case: Case) -> list[Point]:
    points = []
    for bits in (2, 3, 4, 5, 6):
        matrices = {
            name: rtn.quantize(case.array(name), role, bits + (2 if role == "embed" else 0), 2.5)
            for name, role in case.roles.items()
        }
        size = packed(matrices, case.trained_controls, lambda data: zlib.compress(data, 9))
        points.append(judge(case, size, decoded(matrices, case.trained_controls)))
    return points


def nncodec(case: Case, python: str) -> list[Point]:
    """NNCodec with dependent quantization, over its quantization parameter; run by another Python."""
    points = []
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(source, **{name: tensor.numpy() for name, tensor in case.trained.items()})
        for parameter in (-28, -24, -20, -16, -12, -8):
            command = [
                python,
                str(HERE.parent / "codec" / "nncodec_model.py"),
                str(source),
                str(target),
                str(parameter),
            ]
            size = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
            given = {
                name: torch.from_numpy(value).view_as(case.trained[name]) for name, value in np.load(target).items()
            }
            points.append(judge(case, size, given))
    return sorted(points, key=lambda point: point.bytes)


def prepare(path: Path, count: int, calibration_tokens: int, threads: int, own: OurSettings = AS_MINI) -> Case:
    stage, runtime = stage_directory.open_stage(path), runtimes.choose("auto", threads)
    model = models.load_model(stage, runtime)
    length = int(stage.manifest.config["train"]["seq_len"])
    paths_by_rule(model, runtime, Shape(8, length, True, runtime.threads), scoring=True)  # as in the stage
    tokenized = stage.ancestor("tokenize")
    train = tokens.TokenStream.open(train_shards(tokenized))
    settings = QuantizeConfig(
        calibration_tokens=calibration_tokens,
        sensitivity_tokens=min(16_384, count),
        **vars(own),
    )
    source = pipeline.calibrate(model, Config(quantize=settings), train, length, runtime, Silent())
    val = tokens.open_split(tokenized, "val")
    rows = min(len(val), count) // length
    judging = torch.from_numpy(val[: rows * length].astype(np.int64)).view(rows, length)
    batches = [batch.to(runtime.device) for batch in judging.split(max(1, 8192 // length))]
    return Case(
        name=f"{path.parent.name}/{path.name}",
        source=source,
        trained=float_weights(model),
        plain=hessian.calibrate(model, source.batches(calibration_tokens), gradients=False),
        judging=Divergence(model, batches),
        bytes_per_token=float(np.mean(tokens.token_bytes(tokenized))),
    )


def advantage(mine: Sequence[Point], theirs: Sequence[Point], value: Callable[[Point], float]) -> tuple[float, float]:
    """(bytes at equal loss, loss at equal bytes), mine over theirs, geometric means over their points within my range.

    Both curves are straight lines between points in log loss against bytes.
    """
    bytes_ = np.array([point.bytes for point in mine], dtype=np.float64)
    logs = np.log([max(value(point), 1e-9) for point in mine])
    size_ratios, loss_ratios = [], []
    for point in theirs:
        log_loss = np.log(max(value(point), 1e-9))
        if logs.min() <= log_loss <= logs.max():
            size_ratios.append(np.log(np.interp(-log_loss, -logs, bytes_) / point.bytes))
        if bytes_.min() <= point.bytes <= bytes_.max():
            loss_ratios.append(np.interp(point.bytes, bytes_, logs) - log_loss)
    mean = lambda values: float(np.exp(np.mean(values))) if values else float("nan")  # noqa: E731
    return mean(size_ratios), mean(loss_ratios)


def draw(results: Mapping[str, Mapping[str, list[Point]]], target: Path) -> None:
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(6 * len(results), 4.5), squeeze=False)
    for axis, (name, curves) in zip(axes[0], results.items(), strict=True):
        for label, points in curves.items():
            axis.plot([p.bytes / 1000 for p in points], [p.kl for p in points], "o-", label=label)
        axis.set(title=name, xlabel="kilobytes", ylabel="KL to the float model, nats per token", yscale="log")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", type=Path)
    parser.add_argument("--tokens", type=int, default=65_536, help="val tokens to judge on")
    parser.add_argument("--calibration-tokens", type=int, default=65_536)
    parser.add_argument("--threads", type=int, default=0, help="0: every core")
    parser.add_argument("--bits", nargs="+", type=float, default=BITS, help="rates of this project's curves")
    parser.add_argument(
        "--distill-steps", type=int, default=AS_MINI.distill_steps, help="as the setting; preset `mini` has 400"
    )
    parser.add_argument("--distill-lr", type=float, default=0.0, help="as the setting; 0: in proportion to the steps")
    parser.add_argument(
        "--distill-shares", nargs="+", type=float, default=AS_MINI.distill_shares, help="as the setting"
    )
    parser.add_argument("--rate-weight", type=float, default=AS_MINI.rate_weight, help="as the setting")
    parser.add_argument("--nncodec", help="a Python that has NNCodec")
    parser.add_argument("--only", nargs="+", help="curves to make, by how they begin; the output's others are kept")
    parser.add_argument("--output", type=Path, default=HERE.parent / "results" / "quantization")
    arguments = parser.parse_args()
    table = arguments.output.with_suffix(".json")
    known = json.loads(table.read_text()) if arguments.only and table.exists() else {}
    results = {n: {k: [Point(**p) for p in points] for k, points in curves.items()} for n, curves in known.items()}
    for path in arguments.stages:
        case = prepare(
            path,
            arguments.tokens,
            arguments.calibration_tokens,
            arguments.threads,
            OurSettings(
                arguments.distill_steps, arguments.distill_lr, tuple(arguments.distill_shares), arguments.rate_weight
            ),
        )
        print(f"{case.name}: {case.size:,} weights in matrices", flush=True)
        curves = results.setdefault(case.name, {})
        work: dict[str, Callable[[], list[Point]]] = {
            "ours (trellis)": lambda: ours(case, arguments.bits),  # noqa: B023
            "ours without the trellis": lambda: ours(case, arguments.bits, states=0),  # noqa: B023
            "ours, trained in between": lambda: ours(case, arguments.bits, states=64, trained=True),  # noqa: B023
            "records (GPTQ, brotli)": lambda: records(case),  # noqa: B023
            "seed (nearest, zlib)": lambda: seed(case),  # noqa: B023
        }
        if arguments.nncodec:
            work["NNCodec"] = lambda: nncodec(case, arguments.nncodec)  # noqa: B023
        for label, run in work.items():
            if arguments.only and not any(label.startswith(prefix) for prefix in arguments.only):
                continue
            started = time.monotonic()
            print(f"  {label}", flush=True)
            curves[label] = run()
            print(f"  {time.monotonic() - started:.0f} s", flush=True)
            plain = {n: {k: [vars(p) for p in points] for k, points in done.items()} for n, done in results.items()}
            table.write_text(json.dumps(plain, indent=1) + "\n")
        for mine in [label for label in curves if label in ("ours (trellis)", "ours, trained in between")]:
            for label, points in curves.items():
                if label != mine:
                    for what, value in (("KL", lambda p: p.kl), ("BPB lost", lambda p: p.bits_per_byte_lost)):
                        size, loss = advantage(curves[mine], points, value)
                        print(f"  {mine} against {label}, by {what}: {size:.3f} of the bytes, {loss:.3f} of the loss")
    draw(results, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
