"""Parameter names of the challenge's scripts, and the tensors that they lay out otherwise, as pgolf's model has them.

Each name is of the records' scripts in openai/parameter-golf: the baseline's (2026-03-17), value embeddings (03-22),
banks of matrices (03-23), lanes (04-10, PR #1530), smear gate (PR #1667), output gates (PR #1736, PR #1787).
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from pgolf.errors import PgolfError

_PREFIXES = ("_orig_mod.", "module.")  # of torch.compile and DistributedDataParallel
_RENAMED = {
    "skip_weights": "skips.weights",
    "skip_gates": "skips.gates",
    "parallel_resid_lambdas": "lanes.keep",
    "parallel_post_lambdas": "lanes.write",
    "smear_gate.weight": "smear.weight",
    "smear_lambda": "smear.strength",
    "ve_shared.embed.weight": "value_emb.table.weight",
    "ve_shared.proj.weight": "value_emb.proj.weight",
}
# The parts that one bank stacks, each with a matrix per layer.
_BANKS = {
    "qo_bank": ("attn.c_q", "attn.proj"),
    "kv_bank": ("attn.c_k", "attn.c_v"),
    "mlp_up_bank": ("mlp.fc",),
    "mlp_down_bank": ("mlp.proj",),
}
# Parts of published scripts that pgolf's model does not have, by a pattern of their names.
_LACKING = {
    r"smear\.gate": "a SmearGate that blends in the token before, a gate per dimension (records 2026-03-19 to 03-31)",
    r"bigram\.(embed|scale)\b": "hashed bigrams that look across a document's start (records 2026-03-19 to 03-31)",
    r"lane_merge": "a learned merge of the two lanes (records 2026-04-04 and 04-08)",
    r"\.attn_gate_proj\.": "an output gate of twice a sigmoid (record 2026-04-16)",
    r"dtg_gate|vr_lambda": "gates on early exits or on value residuals (options of records 2026-03-22 to 03-29)",
    r"mtp_heads": "separate heads for later tokens (an option of records 2026-03-20 to 03-25)",
    r"lora|adapter": "adapters on the matrices",
    r"canon_": "the short convolutions of record 2026-03-31",
}


def as_ours(weights: Mapping[str, Tensor], path: object) -> dict[str, Tensor]:
    """float32 tensors under pgolf's names; `lanes.*` may have a row for every layer, see `settings.fit`.

    path: the file, for errors. Raises PgolfError, naming parts that pgolf's model does not have.
    """
    plain = _plain(weights, path)
    lacking = [what for pattern, what in _LACKING.items() if any(re.search(pattern, name) for name in plain)]
    if lacking:
        raise PgolfError(f"{path} has parts that pgolf's model does not: {'; '.join(lacking)}")
    found: dict[str, Tensor] = {}
    for name, tensor in plain.items():
        if name.startswith(("ve_shared.scale", "ve_layer_scales.")):
            continue
        ours = re.sub(r"\.attn_gate_w$", ".gate.weight", _RENAMED.get(name, name))
        made = _layers(name, tensor, path) if name in _BANKS else {ours: tensor}
        if twice := found.keys() & made:
            raise PgolfError(f"{path} holds {min(twice)} twice, under two names")
        found |= made
    for name, shape in (("smear.weight", (-1,)), ("smear.strength", ())):
        if name in found and (shape or found[name].numel() == 1):
            found[name] = found[name].reshape(shape)
    if "value_emb.table.weight" in found and "value_emb.scales" not in found:
        found |= _value_embedding(plain, found, path)
    return found


def _plain(weights: Mapping[str, Tensor], path: object) -> dict[str, Tensor]:
    """float32 tensors by name, without the prefixes of wrappers."""
    plain: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        name = str(name)
        while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
            name = name.removeprefix(prefix)
        if name in plain:
            raise PgolfError(f"{path} holds {name} twice, under two prefixes")
        if tensor.is_floating_point():
            plain[name] = tensor.detach().float().contiguous()
            if not plain[name].isfinite().all():
                raise PgolfError(f"{path}: {name} holds numbers that are not finite: the training had diverged")
    return plain


def _layers(name: str, bank: Tensor, path: object) -> dict[str, Tensor]:
    """The matrices of a bank (parts x layers, out, in), each under the name of its layer."""
    parts = _BANKS[name]
    if bank.ndim != 3 or bank.shape[0] % len(parts):
        raise PgolfError(f"{path}: {name} is {tuple(bank.shape)}, expected {len(parts)} matrices for every layer")
    layers = bank.shape[0] // len(parts)
    return {
        f"blocks.{layer}.{part}.weight": bank[index * layers + layer]
        for index, part in enumerate(parts)
        for layer in range(layers)
    }


def _value_embedding(plain: Mapping[str, Tensor], found: Mapping[str, Tensor], path: object) -> dict[str, Tensor]:
    """The scale of the table times that of each layer in one vector, and the projection that equal widths leave out."""
    names = sorted((name for name in plain if name.startswith("ve_layer_scales.")), key=lambda name: (len(name), name))
    if "ve_shared.scale" not in plain or not names or any(plain[name].numel() != 1 for name in names):
        raise PgolfError(f"{path} lacks ve_shared.scale, or one number for each ve_layer_scales")
    scales = torch.stack([plain[name].reshape(()) for name in names]) * plain["ve_shared.scale"].reshape(())
    made = {"value_emb.scales": scales}
    if "value_emb.proj.weight" not in found:
        made["value_emb.proj.weight"] = torch.eye(found["value_emb.table.weight"].shape[-1])
    return made
