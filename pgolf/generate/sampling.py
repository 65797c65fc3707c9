"""Continue a text with a model: several continuations side by side, handed out as they grow.

Keys and values of earlier tokens are kept, so a token costs one position. A context never grows beyond the training
length: at that length the older half of the context is dropped. A continuation ends where the model begins another
document. Each row has its own random generator, so a row does not depend on the number of rows.
"""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.model.key_value_cache import KeyValueCache
from pgolf.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sampling:
    tokens: int = 200
    """New tokens of each continuation at most."""
    temperature: float = 0.8
    """Divides the logits: below 1 likely tokens become likelier; 0: always the likeliest token."""
    top_p: float = 0.95
    """Draw from the smallest set of tokens whose probabilities reach this sum (Holtzman et al. 2020); 1: from all."""
    seed: int = 0
    """The same seed gives the same text on the same machine."""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise PgolfError(f"tokens is {self.tokens}; it must be at least 1")
        if not 0 <= self.temperature <= 100:
            raise PgolfError(f"temperature is {self.temperature:g}; it must lie between 0 and 100")
        if not 0 < self.top_p <= 1:
            raise PgolfError(f"top_p is {self.top_p:g}; it must be above 0 and at most 1")
        if self.seed < 0:
            raise PgolfError(f"seed is {self.seed}; it must not be negative")


def draw(logits: np.ndarray, settings: Sampling, uniform: float) -> int:
    """The token that a uniform number in [0, 1) selects from (vocab_size,) logits."""
    if settings.temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / settings.temperature
    order = np.argsort(-scaled, kind="stable")
    reached = np.cumsum(np.exp(scaled[order] - scaled[order[0]]))
    # The token that crosses the threshold belongs to the set.
    kept = reached[: int(np.searchsorted(reached, settings.top_p * reached[-1])) + 1]
    return int(order[np.searchsorted(kept, uniform * kept[-1], side="right").clip(max=len(kept) - 1)])


@torch.no_grad()
def generate(
    model: GPT, tokenizer: Tokenizer, prompt: str, settings: Sampling, context: int, rows: int = 1
) -> Iterator[tuple[int, str]]:
    """Continue `prompt`, which begins a document, `rows` times at once.

    context: tokens that the model looks back over at most, its training length.
    Yields (row, new text) as the continuations grow, whole characters at a time; the prompt is not repeated. Raises
    PgolfError for a prompt that is not UTF-8 and for less than one row.
    """
    if rows < 1:
        raise PgolfError(f"{rows} continuations were asked for; at least 1 is needed")
    try:
        known = tokenizer.encode([prompt.encode("utf-8")])[0]
    except UnicodeEncodeError as error:
        raise PgolfError(f"the prompt is not valid UTF-8 text ({error.reason})") from error
    device, vocabulary = next(model.parameters()).device, len(tokenizer.pieces)
    length = max(2, context)
    window = np.tile(known[-length:].astype(np.int64), (rows, 1))  # (R, T)
    cache = KeyValueCache(length)
    writers = [_Writer(tokenizer, known) for _ in range(rows)]
    randoms = [np.random.default_rng([settings.seed, row]) for row in range(rows)]
    running = list(range(rows))
    model.eval()
    for _ in range(settings.tokens):
        if window.shape[1] > length:
            window = window[:, -(length // 2) :]
            cache.start()
        inputs = torch.from_numpy(np.ascontiguousarray(window)).to(device)
        logits = model.logits(model.hidden(inputs, 1, cache)[:, 0])[:, :vocabulary].float().cpu().numpy()
        drawn = np.array([draw(logits[i], settings, randoms[row].random()) for i, row in enumerate(running)])
        for row, token in zip(running, drawn.tolist(), strict=True):
            if token != tokenizer.bos_id and (text := writers[row].add(token)):
                yield row, text
        lives = drawn != tokenizer.bos_id
        window = np.concatenate([window, drawn[:, None]], axis=1)[lives]
        running = [row for row, alive in zip(running, lives, strict=True) if alive]
        if not running:
            break
        if not lives.all():
            cache.keep(torch.from_numpy(lives).to(device))
    for row, writer in enumerate(writers):
        if text := writer.rest():
            yield row, text


class _Writer:
    """The text of one continuation, given out in valid UTF-8. One more token never changes the text before it."""

    def __init__(self, tokenizer: Tokenizer, prompt: np.ndarray) -> None:
        self._tokenizer, self._tokens = tokenizer, prompt.tolist()
        self._given = len(self._whole())
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def _whole(self) -> bytes:
        return self._tokenizer.decode(np.array(self._tokens, np.uint16), drop_stray=True)

    def add(self, token: int) -> str:
        self._tokens.append(token)
        return self._decoder.decode(self._fresh())

    def rest(self) -> str:
        return self._decoder.decode(self._fresh(), final=True)

    def _fresh(self) -> bytes:
        whole = self._whole()
        fresh, self._given = whole[self._given :], max(self._given, len(whole))
        return fresh
