"""Text that breaks byte accounting, and small tokenizers of every kind to try it on."""

import functools
import io
import random

import sentencepiece as spm
from hypothesis import strategies as st

from pgolf.config import TokenizerConfig
from pgolf.tokens.tokenizer import Tokenizer, train

ODD = [
    "",
    " ",
    " a",
    "a ",
    "a  b",
    "   ",
    "\ta\r\nb\n\n\n",
    "a\0b",
    "ﬁ½²ß İ",
    "e\u0301 e\u0301e\u0301",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44d",
    "\u4e2d\u6587 \u65e5\u672c\u8a9e",
    "\ufeffx\ufffd\u200b\u00a0\u3000",
    "\u2581x a\u2581b \u2581\u2581 ",
    "\ue001\ue002the\ue004\ue011 \ue014\ue011T",
    "The NASA iPhone McDonald A aB I'm OK. éTé",
    "0123456789 3.14",
    "<s> </s> <unk> <pad> <0x41>",
    "\u0e01\u0e33\u0915\u094d\u0937",
]
ODD_BYTES = [text.encode() for text in ODD] + [
    b"a\xffb",
    b"\xe2\x96",
    b"\xed\xa0\x80 surrogate",
    b"caf\xe9 \x80\x80 \xe2\x96\x81\xff",
    b" " * 70_000,
    b"a" + b" " * 70_000,
    b"x" * 70_000,
]

odd_documents = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.text(
        st.sampled_from(list(" abcTHE\n\t\u2581\ue001\ue002\ue003\ue004\ue011\ue012\ue013\ue014é½ﬁ")), max_size=40
    ).map(str.encode),
    st.lists(st.sampled_from(ODD_BYTES[:-3]), max_size=4).map(b"".join),
)


def english(documents: int = 200) -> list[bytes]:
    """Sentences of common words, the same every time."""
    words = "the of and a to in is you that it he was for on are as with his they I at be This Have OR One"
    vocabulary = words.split()
    chosen = random.Random(0)
    return [
        (" ".join(chosen.choice(vocabulary) for _ in range(chosen.randrange(5, 60))) + ".\n").encode()
        for _ in range(documents)
    ]


@functools.cache
def plain() -> Tokenizer:
    return train(english(), TokenizerConfig(vocab_size=330))


@functools.cache
def caseops() -> Tokenizer:
    return train(english(), TokenizerConfig(vocab_size=330, caseops=True))


@functools.cache
def unigram() -> Tokenizer:
    return train(english(), TokenizerConfig(vocab_size=330, model_type="unigram", caseops=True))


@functools.cache
def whitespace() -> Tokenizer:
    documents = [b"if a:\n        b\n        c\n    d  e\n"] * 50 + english()
    return train(documents, TokenizerConfig(vocab_size=340, whitespace_pieces=True))


@functools.cache
def without_space_piece() -> Tokenizer:
    """As users made them: the train text had no space, so a space is the three bytes of U+2581."""
    return raw(["abcabcab"] * 20, vocab_size=268, add_dummy_prefix=False, remove_extra_whitespaces=False)


@functools.cache
def lossy() -> Tokenizer:
    """SentencePiece's own defaults: NFKC, collapsed spaces, a dummy prefix, no byte fallback."""
    sentences = [document.decode().strip() for document in english()]
    return raw(sentences, vocab_size=80, byte_fallback=False, normalization_rule_name="nmt_nfkc")


@functools.cache
def reserved_caseops() -> Tokenizer:
    """The challenge's CaseOps dialect on a normalizing model."""
    return raw(
        [document.decode().lower() for document in english()],
        vocab_size=320,
        normalization_rule_name="nmt_nfkc",
        add_dummy_prefix=False,
        user_defined_symbols=["\ue001", "\ue002", "\ue003", "\ue004"],
    )


def raw(sentences: list[str], **settings: object) -> Tokenizer:
    model = io.BytesIO()
    defaults = {"byte_fallback": True, "normalization_rule_name": "identity", "model_type": "bpe", "minloglevel": 3}
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        **(defaults | settings),
    )
    return Tokenizer(model.getvalue(), "test tokenizer")


EXACT = [plain, caseops, unigram, whitespace]
EVERY = [*EXACT, without_space_piece, lossy, reserved_caseops]
