r"""Every part of the model on and off: same seed, same data, same seconds, scored on the held-out slice of train.

    pgolf tokenize TRAIN... --run ablation --preset mini
    python benchmarks/training/ablation.py artifacts/ablation/tokenize --preset mini --seconds 60 [--parts xsa \
        smear ...]

Each row flips one part against the preset: a part that the preset has is taken out, one that it lacks is put in. The
score is the lowest held-out loss of the last weights and the averages, in nats per token and relative to the preset's
own row (negative: the flipped model is better). `--iterations` compares equal steps instead of equal seconds;
`--cpu-time` counts the seconds in processor time, for a machine that others use too (with `--threads 1`: the time is
summed over threads). Rows go to `ablation.json` beside this file as they come, and rows already there are not run
again.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pgolf import config as configs
from pgolf import runtime as runtimes
from pgolf.config import Config, ModelConfig
from pgolf.errors import PgolfError
from pgolf.progress import Silent
from pgolf.saved.tokens import open_split
from pgolf.store import stage_directory
from pgolf.tokens.loader import Loader
from pgolf.training.fit import Hooks, fit
from pgolf.training.holdout import Holdout
from pgolf.training.prepare import prepare
from pgolf.training.select_checkpoint import select_average
from stages.train import byte_table, pieces_of


def parts(model: ModelConfig) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """By name: the settings of the part when on, and when off."""
    last, head_dim = model.num_layers - 1, model.dim // model.num_heads
    middle = max(1, model.num_layers // 2)
    quarter = max(2, head_dim // 4)
    return {
        "x0 mix": ({"x0_mix": True}, {"x0_mix": False}),
        "leaky relu squared": ({"mlp_slope": 0.5}, {"mlp_slope": 0.0}),
        "norm scale": ({"norm_scale": True}, {"norm_scale": False}),
        "partial rotary": ({"rope_dims": quarter}, {"rope_dims": 0, "key_offset": False}),
        "half rotary": ({"rope_dims": 2 * quarter}, {"rope_dims": 0, "key_offset": False}),
        "key offset": (
            {"rope_dims": model.rope_dims or 2 * quarter, "key_offset": True},
            {"key_offset": False},
        ),
        "xsa": ({"xsa_from": 0}, {"xsa_from": -1}),
        "skips": ({"skips": True}, {"skips": False}),
        "smear gate": ({"smear_gate": True}, {"smear_gate": False}),
        "short convolution": ({"canon_taps": 3}, {"canon_taps": 0}),
        "copy heads": ({"copy_orders": (1, 2, 3)}, {"copy_orders": (), "copy_input": False}),
        "copy heads, four candidates": (
            {"copy_orders": (1, 2, 3), "copy_depth": 4, "copy_input": True},
            {"copy_depth": 1, "copy_input": False},
        ),
        "copied logits": (
            {"copy_orders": (1, 2, 3), "copy_logits": True, "copy_token": True},
            {"copy_logits": False, "copy_token": False},
        ),
        "document counts": ({"document_counts": True}, {"document_counts": False}),
        "input map": ({"input_map": True}, {"input_map": False}),
        "head map": ({"head_map": True}, {"head_map": False}),
        "sparse head gate": ({"head_gate": "sparse"}, {"head_gate": "none"}),
        "dense head gate": ({"head_gate": "dense"}, {"head_gate": "none"}),
        "value x0": ({"value_x0": True}, {"value_x0": False}),
        "value embedding": ({"value_embed_layers": (last,), "value_embed_dim": 32}, {"value_embed_layers": ()}),
        "bigram": ({"bigram_rows": 2048, "bigram_dim": 16}, {"bigram_rows": 0}),
        "factored embedding": ({"embed_dim": model.dim // 2}, {"embed_dim": 0}),
        "untied head": ({"tied_head": False}, {"tied_head": True}),
        "logit bias": ({"logit_bias": True}, {"logit_bias": False}),
        "backout": ({"backout": True}, {"backout": False}),
        "softcap 15": ({"logit_softcap": 15.0}, {"logit_softcap": 30.0}),
        "no softcap": ({"logit_softcap": 0.0}, {"logit_softcap": 30.0}),
        "multi-token loss": ({"future_weights": (0.5, 0.25), "future_until": 0.4}, {"future_weights": ()}),
        "document attention": ({"document_attention": True}, {"document_attention": False}),
        "short windows": (
            {"layer_windows": tuple(64 if layer % 2 == 0 else 0 for layer in range(model.num_layers))},
            {"layer_windows": ()},
        ),
        "parallel residual": ({"parallel_from": middle}, {"parallel_from": -1, "parallel_lanes": 1}),
        "two lanes": ({"parallel_from": last, "parallel_lanes": 2}, {"parallel_from": -1, "parallel_lanes": 1}),
        "loop": (
            {"loop_first": 1, "loop_last": max(1, last - 1), "loop_passes": 2, "loop_from": 0.35},
            {"loop_passes": 1},
        ),
        "qk gain 2": ({"qk_gain": 2.0}, {"qk_gain": 5.25}),
    }


def flipped(model: ModelConfig, on: dict[str, Any], off: dict[str, Any]) -> tuple[ModelConfig, str]:
    """The model with the part turned over, and which way it went."""
    has = all(getattr(model, name) == value for name, value in on.items())
    return dataclasses.replace(model, **(off if has else on)), "off" if has else "on"


def run(
    config: Config, tokens: stage_directory.Stage, runtime: runtimes.Runtime, clock: Callable[[], float]
) -> dict[str, Any]:
    """Train under `config`, timed by `clock`, and score the result."""
    holdout = Holdout.of(open_split(tokens, "train"), config)
    config = dataclasses.replace(config, average=dataclasses.replace(config.average, interpolate=()))
    with Loader(holdout.training, config.seed) as loader:
        made = fit(config, loader, holdout, runtime, Silent(), Hooks(prepare), clock, pieces_of(tokens))
    choice = select_average(made.trainer, holdout, config, runtime, Silent())
    best = choice.losses[choice.name]
    return {
        "nats_per_token": best,
        "bits_per_byte": holdout.holdout_metrics(best, byte_table(tokens))["holdout_bits_per_byte"],
        "last": choice.losses["last"],
        "best": choice.name,
        **{key: made.run_metrics()[key] for key in ("parameters", "iterations", "tokens_per_second")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", type=Path, help="a tokenize stage directory")
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--set", dest="assignments", action="append", default=[], help="section.key=value")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--iterations", type=int, default=0, help="equal steps instead of equal seconds")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of processor time, not of the wall clock")
    parser.add_argument("--parts", nargs="*", help="names of rows; all when left out")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("ablation.json"))
    options = parser.parse_args()
    runtime = runtimes.choose("auto", threads=options.threads)
    tokens = stage_directory.open_stage(options.tokens, ("tokenize",))
    base = configs.load(options.preset, None, options.assignments)
    pieces = tokens.manifest.details.get("vocab_size", 0)
    if pieces > base.model.vocab_size:
        parser.error(f"the tokenizer has {pieces} pieces: add --set model.vocab_size={pieces}")
    budget = {"iterations": options.iterations, "seconds": 0.0} if options.iterations else {"seconds": options.seconds}
    base = dataclasses.replace(base, train=dataclasses.replace(base.train, **budget))
    known = parts(base.model)
    unknown = set(options.parts or ()) - set(known)
    if unknown:
        parser.error(f"no part named {min(unknown)!r}; parts: {', '.join(known)}")
    models = {"preset": (base.model, "")}
    for name, (on, off) in known.items():
        if options.parts and name not in options.parts:
            continue
        try:
            models[name] = flipped(base.model, on, off)
        except PgolfError as error:
            print(f"{name:20} does not fit this preset: {error}")
    rows: dict[str, dict[str, Any]] = json.loads(options.out.read_text()) if options.out.exists() else {}
    amount = f"{options.iterations} steps" if options.iterations else f"{options.seconds:g} s"
    amount += " of processor time" if options.cpu_time else ""
    clock = time.process_time if options.cpu_time else time.perf_counter
    for seed in options.seeds:
        title = f"{options.preset} {' '.join(options.assignments)} {amount} seed {seed}".replace("  ", " ")
        table = rows.setdefault(title, {})
        for name, (model, way) in models.items():
            if name not in table:
                config = dataclasses.replace(base, model=model, seed=seed)
                table[name] = run(config, tokens, runtime, clock) | {"way": way}
                options.out.write_text(json.dumps(rows, indent=1) + "\n")
            row, own = table[name], table["preset"]["nats_per_token"]
            print(
                f"{name:20} {way:3} {row['nats_per_token']:.4f} {row['nats_per_token'] - own:+.4f}  "
                f"{row['iterations']:6} steps {row['tokens_per_second']:8,.0f} tokens/s {row['parameters']:9,} weights",
                flush=True,
            )


if __name__ == "__main__":
    main()
