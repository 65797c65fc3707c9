"""Score a packaged model: its container, its tokenizer and a text, without stage directories around them.

The packaged script and `pgolf verify` share it, so that both measure the same as the evaluation stages.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pgolf.codec import container
from pgolf.config import EvaluateConfig, ModelConfig, TttConfig
from pgolf.errors import PgolfError
from pgolf.evaluate import canonical, tilt
from pgolf.evaluate.bpb import Score
from pgolf.evaluate.evaluator import OnProgress
from pgolf.evaluate.sliding import SlidingEvaluator
from pgolf.evaluate.ttt.methods import TttEvaluator
from pgolf.model.gpt import GPT
from pgolf.runtime import Runtime
from pgolf.tokens.byte_counts import ByteTable
from pgolf.tokens.encode import encode_documents
from pgolf.tokens.sentencepiece_model import Pieces
from pgolf.tokens.shards import TokenStream
from pgolf.tokens.tokenizer import Tokenizer

VAL = "fineweb_val_*.bin"
VAL_BYTES = "*val_bytes_*.bin"  # both names: see `pgolf.store.kinds`


@dataclass(frozen=True, eq=False)
class Text:
    tokens: np.ndarray  # (n,) uint16
    token_bytes: np.ndarray  # (n,) int64, original UTF-8 bytes of each


def load_model(data: bytes, config: ModelConfig, runtime: Runtime) -> GPT:
    """The model in the container `data`. Raises PgolfError when the container is damaged or holds another model."""
    weights = container.decode(data).state_dict()
    # Before anything of the configuration's size is allocated: it may be a stranger's.
    width = config.embed_dim or config.dim
    described = config.vocab_size * width + config.num_layers * config.dim * config.dim * config.mlp_ratio
    held = sum(tensor.numel() for tensor in weights.values())
    if described > held or tuple(weights.get("tok_emb.weight", torch.empty(0)).shape) != (config.vocab_size, width):
        raise PgolfError("the model in the container is not the one that the configuration describes")
    model = GPT(config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise PgolfError("the model in the container is not the one that the configuration describes") from error
    model.compute_dtype = runtime.dtype
    return model.to(runtime.device).eval()


def read_shards(path: Path, tokenizer: Pieces) -> Text | None:
    """The val shards in a folder, with bytes from their sidecar or else from the tokenizer; None without shards.

    Raises PgolfError when there is nothing to score in them.
    """
    sidecar = sorted(path.glob(VAL_BYTES))
    shards = [file for file in sorted(path.glob(VAL)) if file not in sidecar]
    if not shards:
        return None
    tokens = TokenStream.open(shards)[:]
    counts = TokenStream.open(sidecar)[:] if sidecar else ByteTable.from_tokenizer(tokenizer).count(tokens)
    if len(tokens) < 2 or len(counts) != len(tokens):
        raise PgolfError(f"{path} holds {len(tokens)} tokens and {len(counts)} byte counts; a score needs at least 2")
    return Text(tokens, counts.astype(np.int64))


def read_text(path: Path, tokenizer: Tokenizer, threads: int, documents: Callable[[Path], Iterable[bytes]]) -> Text:
    """A folder of val shards (with or without a byte sidecar), or the documents that `documents` reads from the path.

    Raises PgolfError when there is nothing to score in it.
    """
    if path.is_dir() and (found := read_shards(path, tokenizer)) is not None:
        return found
    batches = list(encode_documents(tokenizer, documents(path), with_bytes=True, threads=threads))
    if not batches:
        raise PgolfError(f"{path} holds no documents")
    tokens = np.concatenate([batch.tokens for batch in batches])
    counts = np.concatenate([batch.token_bytes for batch in batches if batch.token_bytes is not None])
    if len(tokens) < 2:
        raise PgolfError(f"{path} holds {len(tokens)} tokens; a score needs at least 2")
    return Text(tokens, counts.astype(np.int64))


def score(
    model: GPT,
    tokenizer: Pieces,
    text: Text,
    evaluate: EvaluateConfig,
    ttt: TttConfig | None,
    runtime: Runtime,
    on_progress: OnProgress | None = None,
) -> Score:
    """Sliding-window score, or with `ttt` the score with test-time training, without a time limit."""
    model.barred = canonical.barred(tokenizer, runtime.device) if evaluate.canonical else None
    evaluator = (
        SlidingEvaluator(model, evaluate, runtime, on_progress)
        if ttt is None
        else TttEvaluator(model, evaluate, replace(ttt, seconds=0.0), runtime, on_progress)
    )
    trace = (tilt.over(evaluator, evaluate) if evaluate.tilt_boost else evaluator).score(text.tokens)
    return Score.from_nll(trace.nll, text.token_bytes[1:])
