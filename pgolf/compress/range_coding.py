"""Range coding of tokens with the distributions of a predictor.

`constriction` turns each distribution into 24-bit integers (every token keeps at least 2^-24, so any text can be
coded) and does the arithmetic. Tokens of texts that run side by side follow one another in one stream, step by step.
"""

from collections.abc import Callable, Sequence

import constriction
import numpy as np

from pgolf.compress.predictors import Predictor
from pgolf.errors import PgolfError

_FAMILY = constriction.stream.model.Categorical(perfect=False)
OnStep = Callable[[int], None]
"""Called with the number of tokens coded in a step."""


def encode(predictor: Predictor, texts: Sequence[np.ndarray], on_step: OnStep) -> bytes:
    """Code each text after its first token, the end token included.

    texts: (n,) ids each, in the predictor's order.
    """
    coder = constriction.stream.queue.RangeEncoder()
    running = [text[1:] for text in texts]
    step = 0
    while predictor.rows:
        distributions = predictor.predict()
        tokens = np.array([text[step] for text in running], dtype=np.int32)
        coder.encode(tokens, _FAMILY, distributions)
        step += 1
        running = [text for text in running if len(text) > step]
        predictor.reveal(tokens)
        if predictor.rows != len(running):
            raise PgolfError("a document holds BOS in its middle; encode each document alone")
        on_step(len(tokens))
    return coder.get_compressed().astype("<u4").tobytes()


def decode(predictor: Predictor, code: bytes, first: int, rows: int, on_step: OnStep) -> list[np.ndarray]:
    """The texts that `encode` was given, with the same predictor from its beginning.

    first: token that every text begins with. Raises PgolfError for code of a wrong length.
    """
    coder = _decoder(code)
    texts = [[first] for _ in range(rows)]
    running = list(texts)
    while predictor.rows:
        tokens = np.asarray(coder.decode(_FAMILY, predictor.predict()), dtype=np.int64)
        for text, token in zip(running, tokens.tolist(), strict=True):
            text.append(token)
        ending = predictor.rows
        predictor.reveal(tokens)
        if predictor.rows < ending:
            running = [text for text in running if text[-1] != first]
        on_step(len(tokens))
    return [np.array(text, dtype=np.uint16) for text in texts]


def encode_stream(predictor: Predictor, tokens: np.ndarray, on_step: OnStep) -> bytes:
    """Code the next tokens (n,) of the one text of a predictor, which goes on from where it is."""
    coder = constriction.stream.queue.RangeEncoder()
    for token in tokens.astype(np.int32)[:, None]:
        coder.encode(token, _FAMILY, predictor.predict())
        predictor.reveal(token)
        on_step(1)
    return coder.get_compressed().astype("<u4").tobytes()


def decode_stream(
    predictor: Predictor, code: bytes, on_step: OnStep, ended: Callable[[int], bool] = lambda token: False
) -> np.ndarray:
    """The tokens (n,) uint16 that `encode_stream` was given, until the predictor ends or `ended` is true of one."""
    coder, tokens = _decoder(code), []
    while predictor.rows:
        token = np.asarray(coder.decode(_FAMILY, predictor.predict()), dtype=np.int64)
        tokens.append(int(token[0]))
        predictor.reveal(token)
        on_step(1)
        if ended(tokens[-1]):
            break
    return np.array(tokens, dtype=np.uint16)


def _decoder(code: bytes) -> constriction.stream.queue.RangeDecoder:
    if len(code) % 4:
        raise PgolfError("the file is damaged: the code of a block is not a whole number of 32-bit words")
    return constriction.stream.queue.RangeDecoder(np.frombuffer(code, dtype="<u4").astype(np.uint32))
