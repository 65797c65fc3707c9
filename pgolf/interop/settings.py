"""The configuration of a model from its weights: settings inferred from shapes, and settings given or assumed."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pgolf.config import ModelConfig
from pgolf.errors import PgolfError
from pgolf.model.depth_recurrence import layer_order
from pgolf.model.gpt import GPT

# Parts that exist exactly when a tensor does.
_PARTS = {
    "x0_mix": "blocks.0.resid_mix",
    "skips": "skips.weights",
    "smear_gate": "smear.weight",
    "value_x0": "blocks.0.attn.value_x0",
    "input_map": "input_map.weight",
    "head_map": "head_map.weight",
    "copy_token": "copy_heads.on_token",
    "document_counts": "counts.gate",
    "logit_bias": "logit_bias",
    "backout": "backout",
    "asymmetric_softcap": "softcap_shift",
}
# Fields that do not follow from any tensor, in the order of ModelConfig.
_UNTOLD = (
    "mlp_slope", "rope_dims", "rope_base", "logit_softcap", "norm_scale", "xsa_from", "parallel_from", "loop_first",
    "loop_last", "loop_passes", "eval_loop_passes", "layer_windows", "document_attention", "key_offset",
    "head_gate_factor", "value_embed_layers", "copy_logits"
)  # fmt: skip


VALUES = {"head_gate_factor": "0.5 in record 1.0611 (#1855), 1.0 in #1787 and #1851"}
"""What published scripts set, for fields where they differ."""


def sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of ModelConfig that follow from a state dict under pgolf's names.

    Raises PgolfError when a name is missing that they all have.
    """
    try:
        vocab_size, width = weights["tok_emb.weight"].shape
        dim = weights["emb_proj.weight"].shape[0] if "emb_proj.weight" in weights else width
        num_heads = weights["blocks.0.attn.q_gain"].numel()
        kv_rows = weights["blocks.0.attn.c_k.weight"].shape[0]
        hidden = weights["blocks.0.mlp.fc.weight"].shape[0]
        told: dict[str, Any] = {
            "bigram_rows": 0,
            "head_gate": "none",
            "canon_taps": 0,
            "value_embed_dim": ModelConfig.value_embed_dim,
        }
        if "bigram.table.weight" in weights:
            told["bigram_rows"], told["bigram_dim"] = weights["bigram.table.weight"].shape
        if "value_emb.table.weight" in weights:
            told["value_embed_dim"] = weights["value_emb.table.weight"].shape[1]
        if "blocks.0.attn_canon.taps" in weights:
            told["canon_taps"] = weights["blocks.0.attn_canon.taps"].shape[0]
        if not any(name.startswith("copy_heads.") for name in weights):
            told["copy_orders"] = ()
        if "blocks.0.attn.gate.weight" in weights:
            told["head_gate"] = "dense" if weights["blocks.0.attn.gate.weight"].shape[1] == dim else "sparse"
    except KeyError as error:
        raise PgolfError(
            f"it has no tensor {error} and matches neither the challenge's baseline nor the seed"
        ) from error
    except (ValueError, IndexError) as error:
        raise PgolfError("its matrices have not two dimensions each") from error
    if not vocab_size * dim * num_heads * kv_rows * hidden:
        raise PgolfError("it holds empty tensors")
    layers = {int(found[1]) for name in weights if (found := re.match(r"blocks\.(\d{1,6})\.", name))}
    if layers != set(range(len(layers))):
        raise PgolfError(f"it has tensors of {len(layers)} layers, the last called blocks.{max(layers)}")
    told |= {part: (name in weights) for part, name in _PARTS.items()}
    return told | {
        "vocab_size": vocab_size,
        "dim": dim,
        "num_layers": len(layers),
        "num_heads": num_heads,
        "num_kv_heads": max(1, kv_rows * num_heads // dim),
        "mlp_ratio": hidden / dim,
        "embed_dim": width if "emb_proj.weight" in weights else 0,
        "tied_head": "lm_head.weight" not in weights,
        "skip_gates": "skips.gates" in weights or "skips.weights" not in weights,
        "parallel_lanes": 2 if "lanes.keep" in weights else 1,
    }


def fit(
    weights: Mapping[str, Tensor], told: Mapping[str, Any], base: ModelConfig
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """`base` updated with `told` (the result of `sizes`), and the weights in that model's layout.

    Raises PgolfError where they do not fit together, naming the setting or the tensor.
    """
    told, weights = dict(told), dict(weights)
    if "lanes.keep" in weights and weights["lanes.keep"].ndim:
        told["parallel_from"] = _first_in_lanes(weights, told["num_layers"], base)
        for name in ("lanes.keep", "lanes.write"):
            if name in weights and len(weights[name]) == told["num_layers"]:
                weights[name] = weights[name][told["parallel_from"] :]
    told["value_embed_layers"] = ()
    if "value_emb.scales" in weights:
        count = weights["value_emb.scales"].numel()
        last = tuple(range(max(0, told["num_layers"] - count), told["num_layers"]))  # the records': the last ones
        told["value_embed_layers"] = base.value_embed_layers or last
    config = dataclasses.replace(base, **told)
    _check(weights, config)
    return config, weights


def untold(config: ModelConfig) -> dict[str, Any]:
    """The fields that affect this model but do not follow from any tensor, with their values."""
    moot: set[str] = set()
    if config.loop_passes == 1 and config.eval_loop_passes <= 1:
        moot |= {"loop_first", "loop_last", "eval_loop_passes"}
    if config.head_gate != "sparse":
        moot.add("head_gate_factor")
    if not config.value_embed_layers:
        moot.add("value_embed_layers")
    return {name: getattr(config, name) for name in _UNTOLD if name not in moot}


def _first_in_lanes(weights: Mapping[str, Tensor], layers: int, base: ModelConfig) -> int:
    """The first layer that runs in two lanes.

    The records keep lane weights for every layer; those of layers that never ran in lanes still have their start, so
    each is one number throughout and all such layers are alike.
    """
    keep, write = weights["lanes.keep"], weights.get("lanes.write", weights["lanes.keep"])
    if len(keep) != layers or base.parallel_from >= 0:
        return base.parallel_from if len(keep) == layers else layers - len(keep)
    untrained = 0
    if len(write) == layers and all(len(part[0].unique()) == 1 for part in (keep, write)):
        alike = [all(torch.equal(part[0], part[layer]) for part in (keep, write)) for layer in range(layers)]
        untrained = alike.index(False) if False in alike else 0
    if not untrained:
        raise PgolfError(
            "the model runs layers in two lanes, and the first of them is not recorded: set model.parallel_from"
        )
    return untrained


def _check(weights: Mapping[str, Tensor], config: ModelConfig) -> None:
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in GPT(config).state_dict().items()}
    if missing := sorted(set(expected) - set(weights)):
        raise PgolfError(f"it lacks {missing[0]} and {len(missing) - 1} more: set the model it was trained with")
    if unknown := sorted(set(weights) - set(expected)):
        raise PgolfError(f"it holds an unexpected tensor {unknown[0]}: set the model it was trained with")
    pairs = expected.get("skips.weights", (0,))[0]
    found = len(weights["skips.weights"]) if config.skips and weights["skips.weights"].ndim else pairs
    if found != pairs:
        run = len(layer_order(config, max(config.loop_passes, config.eval_loop_passes)))
        raise PgolfError(
            f"it has {found} skips, so its model runs {2 * found} or {2 * found + 1} blocks; its {config.num_layers} "
            f"layers with these settings run {run}: set model.loop_first, model.loop_last and model.loop_passes"
        )
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise PgolfError(f"{name} is {tuple(weights[name].shape)}, expected shape {shape}")
