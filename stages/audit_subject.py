"""What the audit runs: an evaluator by its settings, and what may be claimed of it."""

from dataclasses import replace

import numpy as np

from pgolf.config import Config
from pgolf.errors import PgolfError
from pgolf.evaluate.audit import Claims
from pgolf.evaluate.audit.subject import ISOLATES_CONTEXT, ISOLATES_NOTHING
from pgolf.evaluate.evaluator import Evaluator
from pgolf.model.gpt import GPT
from pgolf.runtime import Runtime
from pgolf.tokenizer import Tokenizer

SLIDING, TTT = "sliding", "ttt"
EVALUATORS = (SLIDING, TTT)
_SPACE, _WORD, _DIGIT, _PUNCTUATION, _BYTE = range(5)


def resolve(config: Config, evaluate_seq_len: int) -> Config:
    """The configuration with the context's length filled in and the clock's cap lifted: an evaluation that stops
    learning by the clock would not repeat itself, and the audit's streams are short."""
    seq_len = config.evaluate.seq_len or evaluate_seq_len
    evaluate = replace(config.evaluate, seq_len=seq_len, stride=min(config.evaluate.stride, seq_len))
    return replace(config, evaluate=evaluate, ttt=replace(config.ttt, seconds=0.0))


def evaluator(name: str, model: GPT, config: Config, runtime: Runtime) -> Evaluator:
    """The evaluator called `name`, with `config.evaluate` and `config.ttt`."""
    if name == SLIDING:
        from pgolf.evaluate.sliding import SlidingEvaluator

        return SlidingEvaluator(model, config.evaluate, runtime)
    if name == TTT:
        from pgolf.evaluate.ttt import TttEvaluator

        return TttEvaluator(model, config.evaluate, config.ttt, runtime)
    raise PgolfError(f"--evaluator {name!r}: choose {' or '.join(EVALUATORS)}")


def claims(name: str, config: Config) -> Claims:
    """What its settings say of an evaluator."""
    periods = (config.evaluate.stride, config.evaluate.seq_len)
    return Claims(
        documents=ISOLATES_CONTEXT if config.evaluate.reset_at_documents else ISOLATES_NOTHING,
        periods=(*periods, config.ttt.chunk_tokens) if name == TTT else periods,
        adapts=name == TTT,
    )


def wanted_tokens(name: str, config: Config) -> int:
    """Tokens of the audited stream when none are asked for: several windows, and several chunks to learn from."""
    return max(4096, 2 * config.evaluate.seq_len) if name == SLIDING else max(4096, 3 * config.ttt.chunk_tokens + 1)


def classes(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """Kind of each piece, (vocab_size,) int: word start, word middle, digit, punctuation, byte; -1 for no text."""
    found = np.full(vocab_size, -1)
    for token, piece in enumerate(tokenizer.pieces[:vocab_size]):
        if not piece:
            continue
        body = piece.decode("utf-8", "replace")
        if tokenizer.sp.is_byte(token):
            found[token] = _BYTE
        elif body.startswith(" "):
            found[token] = _SPACE
        elif body[0].isdigit():
            found[token] = _DIGIT
        else:
            found[token] = _WORD if body[0].isalpha() else _PUNCTUATION
    return found
