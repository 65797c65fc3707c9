"""Who a run's techniques come from: the `attribution` of a submission and the credits in its README.

Papers and pull requests are those that the modules of the techniques name; pull requests are the challenge's.
"""

from collections.abc import Callable

from pgolf.config import Config

_Used = Callable[[Config], bool]
_ALWAYS: tuple[tuple[str, str, _Used], ...] = (
    ("muon", "Keller Jordan (github.com/KellerJordan/Muon)", lambda c: True),
    ("polar_express", "arXiv 2505.16932", lambda c: c.optim.newton_schulz == "polar-express"),
    ("muoneq_r", "arXiv 2603.28254", lambda c: c.optim.row_equalize),
    ("normuon", "arXiv 2510.05491", lambda c: c.optim.neuron_beta > 0),
    ("cautious_weight_decay", "arXiv 2510.12402", lambda c: c.optim.cautious_decay),
    ("rotary_embeddings", "arXiv 2104.09864", lambda c: True),
    ("squared_relu", "arXiv 2109.08668", lambda c: True),
    ("caseops", "@romeerp (PR #1729)", lambda c: c.tokenizer.caseops),
    ("unet_skips", "PR #1089", lambda c: c.model.skips),
    ("parallel_lanes", "PR #1204, #1530", lambda c: c.model.parallel_lanes > 1),
    ("exclusive_self_attention", "arXiv 2603.09078", lambda c: c.model.xsa_from >= 0),
    ("sparse_head_gate", "arXiv 2505.06708, @nprime06 (PR #1787)", lambda c: c.model.head_gate == "sparse"),
    ("dense_head_gate", "arXiv 2505.06708, @dexhunter (PR #1736)", lambda c: c.model.head_gate == "dense"),
    ("smear_gate", "NanoGPT speedrun, @MarioPaerle (PR #1667)", lambda c: c.model.smear_gate),
    ("smear_gate_at_documents", "@aquariouseworkman (PR #1851)", lambda c: c.model.smear_gate),
    ("bigram_hash", "PR #1218", lambda c: c.model.bigram_rows > 0),
    ("canon_layers", "arXiv 2512.17351", lambda c: c.model.canon_taps > 0),
    ("copy_heads", "arXiv 2401.12973", lambda c: bool(c.model.copy_orders)),
    ("copied_logits", "arXiv 1704.04368", lambda c: c.model.copy_logits),
    ("document_counts", "Kuhn and De Mori 1990", lambda c: c.model.document_counts),
    ("asymmetric_softcap", "PR #1923", lambda c: c.model.asymmetric_softcap),
    ("ngram_tilt", "PR #1514, #2135", lambda c: c.evaluate.tilt_boost > 0),
    ("gptq", "arXiv 2210.17323, @clarkkev (PR #1394)", lambda c: c.quantize.method == "gptq"),
    ("waterfilling", "arXiv 2603.04956, 2505.22988", lambda c: c.quantize.method in ("waterfill", "trellis")),
    ("trellis", "dependent quantization, ISO/IEC 15938-17", lambda c: c.quantize.method == "trellis"),
)
_LEARNING: tuple[tuple[str, str, _Used], ...] = (
    ("dynamic_evaluation", "arXiv 1709.07432", lambda c: c.ttt.method == "sgd"),
    ("score_first_ttt", "@abaybektursun (PR #549)", lambda c: True),
    ("lora_per_document", "PR #1530", lambda c: c.ttt.method in ("lora", "phased")),
    ("phased_ttt", "PR #1610, #1626", lambda c: c.ttt.method == "phased"),
    ("in_place_ttt", "arXiv 2604.06169", lambda c: c.ttt.method == "in-place"),
)


def of(config: Config, learns: bool) -> dict[str, str]:
    """Source by technique, of those that the settings use. learns: the score was made with test-time training."""
    rows = _ALWAYS + (_LEARNING if learns else ())
    return {name: source for name, source, used in rows if used(config)}
