"""Gain and cost of each method of test-time training, compared with sliding windows.

    python benchmarks/evaluate/ttt.py --from artifacts/mini/quantize                 # on val, for the record
    python benchmarks/evaluate/ttt.py --from artifacts/mini/quantize --held-out      # on held-out train text, to choose

`--tokens N` takes the first N tokens. Gains are in bits per byte; the model is left as it was between rows.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from pgolf import runtime as runtimes
from pgolf.config import EvaluateConfig, TttConfig
from pgolf.evaluate.bpb import Score
from pgolf.evaluate.mixture import MixtureEvaluator
from pgolf.evaluate.sliding import SlidingEvaluator
from pgolf.evaluate.ttt.methods import TttEvaluator
from pgolf.saved import tokens as token_stages
from pgolf.saved.models import evaluate_settings
from pgolf.store import stage_directory
from pgolf.tokens.byte_counts import ByteTable
from stages.views import evaluation

RECORDS = {"chunk_tokens": 4096, "epochs": 3, "optimizer": "sgd", "lr": 0.005, "decay": 0.0, "schedule": "cosine"}
METHODS = {
    "sgd as the records do (chunks of 4,096, 3 epochs)": TttConfig(**RECORDS, output_lr=(), output_stream_lr=()),  # type: ignore[arg-type]
    "sgd, weights only (dynamic evaluation)": TttConfig(lr=6e-4, output_lr=(), output_stream_lr=()),
    "fast output weights only": TttConfig(epochs=0),
    "sgd and fast output weights (default)": TttConfig(),
    "sgd, fast output weights and context mixing": TttConfig(mixing_lr=0.005),
    "lora": TttConfig(method="lora"),
    "in-place": TttConfig(method="in-place"),
    "phased": TttConfig(method="phased"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, default=Path("artifacts/mini/quantize"))
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--tokens", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], help="methods whose name begins so")
    arguments = parser.parse_args()
    source = stage_directory.open_stage(arguments.source)
    runtime = runtimes.choose("cpu", arguments.threads)
    tokens, counts = _text(source, arguments.held_out)
    end = arguments.tokens or len(tokens)
    tokens, counts = tokens[:end], counts[1:end]
    settings = evaluate_settings(EvaluateConfig(), source)
    model = evaluation.model_of(source, runtime, settings, learns=True)
    begun = time.perf_counter()
    fixed = SlidingEvaluator(model, settings, runtime).score(tokens)
    base = Score.from_nll(fixed.nll, counts).bits_per_byte
    print(f"{len(tokens)} tokens; sliding: {base:.4f} BPB in {time.perf_counter() - begun:.1f} s", flush=True)
    mixture = MixtureEvaluator(None, model.config.vocab_size, model.config.bos_id)
    if not arguments.only:
        begun = time.perf_counter()
        mixed = Score.from_nll(mixture.mix(tokens, fixed).nll, counts).bits_per_byte
        print(f"sliding, online mixture: {mixed:.4f}, gain {base - mixed:+.4f}, {time.perf_counter() - begun:.1f} s")
    for name, ttt in METHODS.items():
        if arguments.only and not name.startswith(tuple(arguments.only)):
            continue
        begun = time.perf_counter()
        trace = TttEvaluator(model, settings, ttt, runtime).score(tokens)
        seconds = time.perf_counter() - begun
        score = Score.from_nll(trace.nll, counts).bits_per_byte
        print(f"{name}: {score:.4f}, gain {base - score:+.4f}, {seconds:.1f} s  {trace.facts}", flush=True)
        if ttt == TttConfig():
            mixed = Score.from_nll(mixture.mix(tokens, trace).nll, counts).bits_per_byte
            print(f"  and the online mixture: {mixed:.4f}, gain {base - mixed:+.4f}", flush=True)


def _text(source: stage_directory.Stage, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and their bytes: the run's val, or the held-out slice."""
    if not held_out:
        text = evaluation.load_text(source, evaluation.VAL)
        return text.tokens, text.token_bytes
    tokenized = source.ancestor("tokenize")
    tokens = token_stages.holdout_of(source).tokens[:]
    return tokens, ByteTable.from_tokenizer(token_stages.tokenizer_of(tokenized)).count(tokens)


if __name__ == "__main__":
    main()
