"""Bundle the packaged program: one `train_gpt.py` from `pgolf.program.main`, with a run's settings as JSON in it."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from pgolf.bundle import Bundle, BundleError, bundle, unpack
from pgolf.config import Config, from_dict
from pgolf.errors import PgolfError
from pgolf.evaluate.ttt import methods

ENTRY = "pgolf.program.main"
PACKAGES = ("pgolf",)
SETTINGS = "settings.json"
"""Name of the settings among the script's files."""
# Checks of settings: those in the script passed them when the run was made. They are 3% of its bytes.
_CHECKS = ("__post_init__",)
# Modules that only some settings use. One that is missing here costs a few hundred bytes.
_OPTIONAL: Mapping[str, Callable[[Config], bool]] = {
    "pgolf.model.banded_attention": lambda config: (
        config.evaluate.context == "banded" or any(config.model.layer_windows)
    ),
    "pgolf.model.bigram": lambda config: config.model.bigram_rows > 0,
    "pgolf.model.kernels.cache": lambda config: False,  # the program keeps no compiled kernels
    "pgolf.model.kernels.bfloat16": lambda config: False,  # it trains in float32
    "pgolf.model.kernels.bfloat16_attention": lambda config: False,
    "pgolf.model.kernels.tiles": lambda config: False,
    "pgolf.model.kernels.copies": lambda config: False,
    "pgolf.model.kernels.residual": lambda config: False,
    "pgolf.model.kernels.divergence": lambda config: False,
    "pgolf.model.kernels.mlp": lambda config: False,
    "pgolf.model.kernels.heads": lambda config: False,
    "pgolf.model.kernels.whole_loss": lambda config: False,
    "pgolf.model.canon": lambda config: config.model.canon_taps > 0,
    "pgolf.model.copy_heads": lambda config: bool(config.model.copy_orders),
    "pgolf.model.document_counts": lambda config: config.model.document_counts,
    "pgolf.model.head_gate": lambda config: config.model.head_gate != "none",
    "pgolf.model.lanes": lambda config: config.model.parallel_lanes > 1,
    "pgolf.model.multi_token_prediction": lambda config: bool(config.model.future_weights),
    "pgolf.model.skips": lambda config: config.model.skips,
    "pgolf.model.smear": lambda config: config.model.smear_gate,
    "pgolf.model.value_embedding": lambda config: bool(config.model.value_embed_layers),
    "pgolf.optim.shared_components": lambda config: config.optim.shared_lr > 0,
    "pgolf.tokens.cooccurrence": lambda config: config.optim.shared_lr > 0 and config.optim.shared_neighbours > 0,
    "pgolf.tokens.spelling": lambda config: config.optim.shared_lr > 0 and config.optim.shared_spelling,
    "pgolf.training.likeness": lambda config: config.optim.shared_lr > 0,
    "pgolf.training.reserve": lambda config: config.train.reserve_seconds > 0,
    "pgolf.quant.hessian_ranks": lambda config: config.train.reserve_seconds > 0,
    "pgolf.quant.single_matrix": lambda config: config.quantize.method not in ("trellis", "waterfill"),
    "pgolf.quant.rtn": lambda config: config.quantize.method in ("rtn", "sdclip"),
    "pgolf.quant.progressive_rounding": lambda config: config.quantize.distill_steps > 0,
    "pgolf.quant.gptq": lambda config: config.quantize.method not in ("trellis", "waterfill"),
    "pgolf.codec.baseline": lambda config: config.package.coder != "range",
    "pgolf.evaluate.distributions": lambda config: config.evaluate.tilt_boost > 0,
    "pgolf.evaluate.tilt": lambda config: config.evaluate.tilt_boost > 0,
    "pgolf.evaluate.canonical": lambda config: config.evaluate.canonical,
    "pgolf.evaluate.banded": lambda config: config.evaluate.context == "banded",
    "pgolf.evaluate.ttt.rows": lambda config: (
        config.evaluate.reset_at_documents or config.ttt.chunk_tokens > config.evaluate.stride
    ),
    "pgolf.evaluate.ttt.time_cap": lambda config: False,  # the program has no clock: its score is any machine's
    "pgolf.evaluate.ttt.context_mixing": lambda config: config.ttt.mixing_lr > 0,
    "pgolf.evaluate.ttt.token_tree": lambda config: config.ttt.mixing_lr > 0,
    "pgolf.evaluate.ttt.fast_output": lambda config: bool(config.ttt.output_lr or config.ttt.output_stream_lr),
}
_TITLE = "Made by pgolf package. python train_gpt.py --help; python train_gpt.py source DIR writes the code out."


def build(config: Mapping[str, Any], on_module: Callable[[int, int], None] = lambda done, total: None) -> Bundle:
    """The script of a run. config: its settings that are not the defaults, by section.

    Takes about 3 s of processor time; 1 s when the same process builds another.
    """
    try:
        settings = from_dict(config)
        unused = [module for module, used in _OPTIONAL.items() if not used(settings)]
        unused += methods.modules_without(settings.ttt)
        return bundle(ENTRY, PACKAGES, {SETTINGS: dumps(config)}, _TITLE, _CHECKS, unused, on_module)
    except BundleError as error:
        raise PgolfError(f"cannot make the script: {error}") from error


def dumps(config: Mapping[str, Any]) -> str:
    """The settings as the script holds them, ASCII and not compressed."""
    return json.dumps({"config": config}, separators=(",", ":"))


def read(script: bytes) -> tuple[dict[str, str], dict[str, Any]]:
    """The modules in a script by path, and its settings. Raises PgolfError for any other file; nothing is run."""
    try:
        files = unpack(script)
        return files, json.loads(files.pop(SETTINGS))["config"]
    except (BundleError, KeyError, TypeError, ValueError) as error:
        raise PgolfError(f"{error}; pgolf package makes the script") from error
