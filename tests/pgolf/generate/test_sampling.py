"""The text that a model writes."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from texts import english

from pgolf.config import ModelConfig, TokenizerConfig
from pgolf.errors import PgolfError
from pgolf.generate.sampling import Sampling, _Writer, draw, generate
from pgolf.model.gpt import GPT
from pgolf.tokens.tokenizer import train


@pytest.fixture(scope="module")
def tokenizer():
    return train(english(), TokenizerConfig(vocab_size=330, caseops=True))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = GPT(ModelConfig(vocab_size=330, dim=16, num_layers=2, num_heads=2, num_kv_heads=1)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)  # at initialization every token is as likely as the next
    return network


def plainly(model, tokenizer, prompt, tokens, context):
    """Greedy continuation without a cache, the window begun anew as `generate` does."""
    window = tokenizer.encode([prompt.encode()])[0].tolist()[-context:]
    found = []
    for _ in range(tokens):
        if len(window) > context:
            window = window[-(context // 2) :]
        with torch.no_grad():
            logits = model.logits(model.hidden(torch.tensor([window]))[:, -1])[0]
        token = int(logits.argmax())
        if token == tokenizer.bos_id:
            break
        window.append(token)
        found.append(token)
    return found


def test_cached_keys_give_the_text_of_a_forward_over_the_whole_window(model, tokenizer):
    expected = plainly(model, tokenizer, "the Of", 40, 16)
    assert len(expected) > 20
    text = "".join(text for _, text in generate(model, tokenizer, "the Of", Sampling(40, temperature=0), 16))
    known = tokenizer.encode([b"the Of"])[0].tolist()
    whole = tokenizer.decode(np.array(known + expected, np.uint16), drop_stray=True)
    assert text == whole.removeprefix(b"the Of").decode("utf-8", "replace")


def test_a_row_does_not_depend_on_how_many_there_are(model, tokenizer):
    def texts(rows):
        found = [""] * rows
        for row, text in generate(model, tokenizer, "On", Sampling(12, seed=3), 32, rows):
            found[row] += text
        return found

    three = texts(3)
    assert three[:1] == texts(1)
    assert len(set(three)) == 3


def test_draws_follow_the_distribution():
    logits = np.log(np.array([0.1, 0.5, 0.15, 0.25]))
    uniform = np.random.default_rng(0).random(4000)
    counts = np.bincount([draw(logits, Sampling(temperature=1.0, top_p=1.0), u) for u in uniform], minlength=4)
    assert np.abs(counts / 4000 - [0.1, 0.5, 0.15, 0.25]).max() < 0.02
    # The likeliest two hold 0.75; the one that crosses 0.7 belongs to them.
    kept = np.bincount([draw(logits, Sampling(temperature=1.0, top_p=0.7), u) for u in uniform], minlength=4)
    assert kept.tolist()[0::2] == [0, 0]
    assert abs(kept[1] / 4000 - 2 / 3) < 0.03
    assert {draw(logits, Sampling(temperature=0), u) for u in uniform[:9]} == {1}
    assert draw(logits, Sampling(temperature=1.0, top_p=1.0), np.nextafter(1.0, 0)) == 0


@pytest.mark.parametrize(
    ("field", "value"), [("tokens", 0), ("temperature", -1), ("temperature", math.nan), ("top_p", 0), ("seed", -1)]
)
def test_settings_without_sense_are_refused_by_name(field, value):
    with pytest.raises(PgolfError, match=f"{field} is {value}"):
        Sampling(**{field: value})


def test_characters_and_case_come_whole(tokenizer):
    text = "The NASA \U0001f44d iPhone é"
    known, tokens = tokenizer.encode([b"on "])[0], tokenizer.encode([text.encode()])[0][1:].tolist()
    writer = _Writer(tokenizer, known)
    parts = [writer.add(token) for token in tokens] + [writer.rest()]
    assert "".join(parts) == text
    # A case operator in a wrong place is left out; half a character at the end shows as one.
    stray = [tokenizer.sp.piece_to_id(tokenizer.operators[3]), *tokenizer.byte_tokens[[0xF0, 0x9F]].tolist()]
    writer = _Writer(tokenizer, known)
    assert "".join([*map(writer.add, stray), writer.rest()]) == "\ufffd"


def test_importing_pgolf_is_cheap():
    code = "import sys, pgolf; assert 'torch' not in sys.modules; print(pgolf.load.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.stdout == "pgolf.saved.front\n", done.stderr
