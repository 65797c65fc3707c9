"""A score as a file: the scored tokens, coded with the distributions of the claimed evaluation.

Whoever holds the model decodes the file and gets the tokens back. An evaluator that looked at what it scores could
write a short file, but nobody could read it. The length of its code is the score: bits over bytes of text, to the
coder's rounding (64 bits in all, and 2^-24 of probability per token of the vocabulary).
"""

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import pgolf
from pgolf import config as configs
from pgolf.compress import range_coding, text_file
from pgolf.compress.predictors import LearningStream, Stream
from pgolf.compress.texts import machine, model_hash, one_thread
from pgolf.config import EvaluateConfig, TttConfig
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.progress import Reporter

TOLERANCE = 0.001
"""Relative difference between coded and claimed bits that the coder's rounding explains many times over."""
_MAX_TOKENS = 1 << 31


@dataclass(frozen=True)
class Evaluation:
    """The claimed evaluation: windows with `seq_len` filled in, and how it learns, or None."""

    evaluate: EvaluateConfig
    ttt: TttConfig | None

    def predictor(self, model: GPT, first: int, count: int) -> Stream:
        """Raises PgolfError for an evaluation that cannot be followed token by token."""
        if self.evaluate.context != "windowed":
            raise PgolfError("only windowed contexts can be followed token by token; banded ones cannot yet")
        if self.evaluate.tilt_boost:
            raise PgolfError("a proof codes with the model alone; score with evaluate.tilt_boost = 0 and prove that")
        if self.ttt is None:
            return Stream(model, self.evaluate, first, count)
        return LearningStream(model, self.evaluate, self.ttt, first, count)


def encode(model: GPT, evaluation: Evaluation, tokens: np.ndarray, reporter: Reporter) -> tuple[bytes, int]:
    """The file for a stream of tokens (N,), documents beginning with BOS, and the bytes of its code."""
    predictor = evaluation.predictor(model, int(tokens[0]), len(tokens))
    with one_thread(), reporter.progress("encode", total=len(tokens)) as bar:
        code = range_coding.encode_stream(predictor, tokens[1:], _counter(bar))
    header = {
        "format": 1,
        "kind": "proof",
        "pgolf": pgolf.__version__,
        "model": model_hash(model),
        "evaluate": asdict(evaluation.evaluate),
        "ttt": None if evaluation.ttt is None else asdict(evaluation.ttt),
        "first": int(tokens[0]),
        "tokens": len(tokens),
        "tokens_sha256": digest(tokens),
        "machine": machine(next(model.parameters()).device),
    }
    block = text_file.block_of([tokens.astype("<u2").tobytes()], code)
    return text_file.write(header, [block]), len(code)


def decode(data: bytes, name: str, model: GPT, reporter: Reporter) -> np.ndarray:
    """The tokens (N,) uint16 of a proof, from the model alone; name: of the file, for messages.

    Raises PgolfError when the file is damaged, of another model, or decodes to other tokens than it declares.
    """
    header, blocks = text_file.read(data, name)
    if header.get("kind") != "proof" or len(blocks) != 1:
        raise PgolfError(f"{name} holds a text, not a proof; pgolf decompress reads it")
    if header.get("model") != model_hash(model):
        raise PgolfError(f"{name} was made with another model; name the package it was made with")
    evaluation, first, count = _evaluation(header, name)
    predictor = evaluation.predictor(model, first, count)
    with one_thread(), reporter.progress("decode", total=count) as bar:
        try:
            tokens = range_coding.decode_stream(predictor, blocks[0].code, _counter(bar))
        except AssertionError:  # no symbol has this code
            tokens = np.zeros(0, np.uint16)
    tokens = np.append(np.uint16(first), tokens)
    if digest(tokens) != header.get("tokens_sha256"):
        raise PgolfError(
            f"{name} decodes to other tokens than it declares: it was not written by this evaluation of this model, or "
            "on a machine that computes other bits"
        )
    return tokens


def digest(tokens: np.ndarray) -> str:
    return hashlib.sha256(tokens.astype("<u2").tobytes()).hexdigest()


def bits_per_byte(code_bytes: int, text_bytes: int) -> float:
    return 8 * code_bytes / text_bytes if text_bytes else math.nan


def agrees(coded: float, claimed: float, code_bytes: int) -> bool:
    """True if two scores in bits per byte agree to TOLERANCE, with an allowance for the last words of a short code."""
    return abs(coded - claimed) <= claimed * (TOLERANCE + 16 / max(code_bytes, 1))


def _counter(bar: Any) -> range_coding.OnStep:
    done = 0

    def step(tokens: int) -> None:
        nonlocal done
        done += tokens
        bar.update(done)

    return step


def _evaluation(header: dict[str, Any], name: str) -> tuple[Evaluation, int, int]:
    try:
        settings = configs.from_dict({"evaluate": header["evaluate"], "ttt": header["ttt"] or {}})
        first, count = int(header["first"]), int(header["tokens"])
    except (KeyError, TypeError, ValueError) as error:
        raise PgolfError(f"{name} has a header that this version does not know ({error})") from error
    if not (1 < count < _MAX_TOKENS and 0 <= first < 1 << 16):
        raise PgolfError(f"{name} declares {count:,} tokens: it is damaged")
    return Evaluation(settings.evaluate, settings.ttt if header["ttt"] is not None else None), first, count
