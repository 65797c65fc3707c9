"""Evaluators for the audit: construction from settings, and the claims that the settings imply."""

import secrets
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pgolf.audit import AuditSettings, BlackBox, Claims, Subject, audit
from pgolf.audit.subject import FLOOR_BF16, FLOOR_FP32, ISOLATES_ALL, ISOLATES_CONTEXT, ISOLATES_NOTHING
from pgolf.config import Config
from pgolf.errors import PgolfError
from pgolf.evaluate import tilt
from pgolf.evaluate.evaluator import Evaluator
from pgolf.evaluate.mixture import MixtureEvaluator
from pgolf.evaluate.sliding import SlidingEvaluator
from pgolf.evaluate.ttt import methods
from pgolf.evaluate.ttt.methods import TttEvaluator
from pgolf.model.gpt import GPT
from pgolf.runtime import Runtime
from pgolf.tokens.sentencepiece_model import Pieces
from pgolf.tokens.shards import TokenStream

SLIDING, TTT = "sliding", "ttt"
EVALUATORS = (SLIDING, TTT)
_STRETCHES = 3  # of the text, besides its beginning, that are probed
_FEW = 5  # documents that the audited stream should hold the beginnings of
_SPACE, _WORD, _DIGIT, _PUNCTUATION, _BYTE = range(5)


def resolve(config: Config, evaluate_seq_len: int) -> Config:
    """The configuration with the context's length filled in and the clock's cap lifted: an evaluation that stops
    learning by the clock would not repeat itself, and the audit's streams are short."""
    seq_len = config.evaluate.seq_len or evaluate_seq_len
    evaluate = replace(config.evaluate, seq_len=seq_len, stride=min(config.evaluate.stride, seq_len))
    return replace(config, evaluate=evaluate, ttt=replace(config.ttt, seconds=0.0))


def evaluator(name: str, model: GPT, config: Config, runtime: Runtime) -> Evaluator:
    """The evaluator called `name`, with `config.evaluate` and `config.ttt`; with the tilt and the mixture over it where
    they are on."""
    tilted = tilt.over(_base_evaluator(name, model, config, runtime), config.evaluate)
    if not config.evaluate.mixture:
        return tilted
    return MixtureEvaluator(tilted, model.config.vocab_size, model.config.bos_id)


def _base_evaluator(name: str, model: GPT, config: Config, runtime: Runtime) -> SlidingEvaluator | TttEvaluator:
    if name == SLIDING:
        return SlidingEvaluator(model, config.evaluate, runtime)
    if name == TTT:
        return TttEvaluator(model, config.evaluate, config.ttt, runtime)
    raise PgolfError(f"--evaluator {name!r}: choose {' or '.join(EVALUATORS)}")


def plain(name: str, model: GPT, config: Config, runtime: Runtime) -> Evaluator:
    """The baseline of an evaluator that adapts: sliding windows with the same contexts and without the tilt."""
    method = methods.of(config.ttt)
    evaluate = replace(config.evaluate, tilt_boost=0.0)
    if name == TTT and not method.takes_context:
        evaluate = replace(evaluate, context="windowed")
    if name == TTT and method.per_document:
        evaluate = replace(evaluate, reset_at_documents=True)
    return evaluator(SLIDING, model, replace(config, evaluate=evaluate), runtime)


def claims(name: str, config: Config) -> Claims:
    """The claims that an evaluator's settings imply."""
    resets = config.evaluate.reset_at_documents
    periods = (config.evaluate.stride, config.evaluate.seq_len)
    counts = config.evaluate.mixture or config.evaluate.tilt_boost > 0  # they go on from document to document
    if name == SLIDING:
        return Claims(documents=ISOLATES_CONTEXT if resets else ISOLATES_NOTHING, periods=periods, adapts=counts)
    method = methods.of(config.ttt)
    isolated = ISOLATES_CONTEXT if resets or method.per_document else ISOLATES_NOTHING
    documents = ISOLATES_ALL if method.forgets and not counts else isolated
    chunks = [pair[1] for pair in config.ttt.lora_chunks]
    return Claims(documents=documents, periods=(*periods, config.ttt.chunk_tokens, *chunks), adapts=True)


def black_box(
    name: str,
    model: GPT,
    config: Config,
    tokens: np.ndarray,
    tokenizer: Pieces,
    runtime: Runtime,
    settings: AuditSettings,
    on_run: Callable[[int], None] | None = None,
    whole: TokenStream | np.ndarray | None = None,
) -> tuple[BlackBox, list[Subject]]:
    """Audit the evaluator called `name` on the stream `tokens`; returns the findings and the audited subjects.

    whole: the text that `tokens` is the beginning of; probes then also go to stretches drawn from all of it.
    """
    seed = secrets.randbits(63) if settings.seed is None else settings.seed
    settings = replace(settings, seed=seed)
    runs = 0

    def count(_: int) -> None:
        nonlocal runs
        runs += 1
        if on_run is not None:
            on_run(runs)

    one = Subject(
        evaluator(name, model, config, runtime),
        tokens.astype(np.int64),
        vocab_size=model.config.vocab_size,
        bos_id=model.config.bos_id,
        claims=claims(name, config),
        plain=plain(name, model, config, runtime) if name == TTT or config.evaluate.tilt_boost else None,
        floor=FLOOR_FP32 if runtime.device.type == "cpu" else FLOOR_BF16,
        classes=classes(tokenizer, model.config.vocab_size),
        make=lambda: evaluator(name, model, config, runtime),
        on_run=count,
    )
    drawn = (
        [] if whole is None else stretches(whole, len(tokens), one.bos_id, name, config, np.random.default_rng(seed))
    )
    elsewhere = [replace(one, tokens=part.astype(np.int64)) for part in drawn]
    return audit(one, settings, elsewhere), [one, *elsewhere]


def stretches(
    whole: TokenStream | np.ndarray, count: int, bos_id: int, name: str, config: Config, generator: np.random.Generator
) -> list[np.ndarray]:
    """Stretches of the text drawn from all of it, each beginning with a document and about half as long as `count`.

    Half, so that twice the probes take the same time; long enough for several strides, or to learn from a chunk. None
    where the audited beginning is the whole text.
    """
    needed = (
        config.evaluate.seq_len + 4 * config.evaluate.stride if name == SLIDING else 2 * config.ttt.chunk_tokens + 1
    )
    length = min(count, max(count // 2, needed))
    if len(whole) < count + length:
        return []
    found = []
    for place in generator.integers(len(whole) - length + 1, size=_STRETCHES):
        begins = np.flatnonzero(np.asarray(whole[int(place) : int(place) + length]) == bos_id)
        start = min(int(place) + int(begins[0]) if len(begins) else int(place), len(whole) - length)
        found.append(np.asarray(whole[start : start + length]))
    return found


def audited_tokens(stream: TokenStream | np.ndarray, bos_id: int, name: str, config: Config) -> int:
    """Tokens to audit on when none are asked for: enough to learn from, and the first few documents."""
    wanted = wanted_tokens(name, config)
    starts = np.flatnonzero(np.asarray(stream[0 : min(4 * wanted, len(stream))]) == bos_id)
    return min(len(stream), max(wanted, int(starts[:_FEW][-1])) if len(starts) else wanted)


def wanted_tokens(name: str, config: Config) -> int:
    """Tokens of the audited stream when none are asked for: several windows, and several chunks to learn from."""
    return max(4096, 2 * config.evaluate.seq_len) if name == SLIDING else max(4096, 3 * config.ttt.chunk_tokens + 1)


def classes(tokenizer: Pieces, vocab_size: int) -> np.ndarray:
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
