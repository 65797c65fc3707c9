"""Tokenizers trained here give every document back, byte for byte; others are known for what they lose."""

import numpy as np
import pytest
import texts
from hypothesis import given

from pgolf.config import TokenizerConfig
from pgolf.errors import PgolfError
from pgolf.tokens.tokenizer import Tokenizer, train


@pytest.mark.parametrize("make", texts.EXACT)
@given(document=texts.odd_documents)
def test_any_document_comes_back(make, document):
    tokenizer = make()
    (tokens,) = tokenizer.encode([document])
    assert tokens.dtype == np.uint16
    assert tokens[0] == tokenizer.bos_id == 1
    assert tokenizer.decode(tokens) == document


@pytest.mark.parametrize("make", texts.EXACT)
def test_odd_documents_come_back_from_one_batch(make):
    tokenizer = make()
    for document, tokens in zip(texts.ODD_BYTES, tokenizer.encode(texts.ODD_BYTES), strict=True):
        assert tokenizer.decode(tokens) == document
    assert tokenizer.lossless


def test_ordinary_text_is_encoded_as_sentencepiece_does():
    tokenizer = texts.plain()
    documents = texts.english(20)
    for document, tokens in zip(documents, tokenizer.encode(documents), strict=True):
        assert tokens[1:].tolist() == tokenizer.sp.encode(document.decode())


def test_special_ids_are_the_challenges():
    sp = texts.plain().sp
    assert (sp.pad_id(), sp.bos_id(), sp.eos_id(), sp.unk_id()) == (0, 1, 2, 3)


def test_training_is_deterministic():
    assert train(texts.english(), TokenizerConfig(vocab_size=330)).proto == texts.plain().proto
    again = train(texts.english(), TokenizerConfig(vocab_size=330, model_type="unigram", caseops=True))
    assert again.proto == texts.unigram().proto


def test_a_unigram_model_cuts_by_the_sum_of_scores():
    assert texts.plain().scores is None
    tokenizer = texts.unigram()
    for text in texts.english(20):
        (tokens,) = tokenizer.encode([text])
        whole = tokenizer.transform(text).decode()
        other = tokenizer.sp.nbest_encode(whole, nbest_size=2)[1]
        assert tokenizer.scores[tokens[1:]].sum() > tokenizer.scores[other].sum() - 1e-3


def test_spaces_are_exact_where_the_train_text_has_none():
    tokenizer = train([b"abcabcab"] * 20, TokenizerConfig(vocab_size=266))
    (tokens,) = tokenizer.encode([b"a b "])
    assert len(tokens) == 5
    assert tokenizer.decode(tokens) == b"a b "


def test_whitespace_pieces_shorten_indentation():
    document = b"\n        b"
    assert len(texts.whitespace().encode([document])[0]) < len(texts.plain().encode([document])[0])


def test_caseops_is_read_from_the_model():
    assert texts.plain().caseops is None
    assert texts.caseops().caseops.name == "leading"
    assert texts.reserved_caseops().caseops.name == "challenge"


def test_lossy_models_are_named():
    assert not texts.lossy().lossless
    assert not texts.without_space_piece().lossless
    assert texts.lossy().dummy_prefix == b" "


def test_a_dummy_prefix_is_not_text():
    tokenizer = texts.lossy()
    (tokens,) = tokenizer.encode([b"the that was"])
    assert tokenizer.decode(tokens) == b"the that was"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TokenizerConfig(vocab_size=9000), "too large for the corpus"),
        (TokenizerConfig(vocab_size=100), "too small"),
        (TokenizerConfig(vocab_size=9000, model_type="unigram"), "too large for the corpus"),
        (TokenizerConfig(vocab_size=100, model_type="unigram"), "too small"),
    ],
)
def test_a_vocabulary_that_does_not_fit(config, message):
    with pytest.raises(PgolfError, match=message) as caught:
        train(texts.english(), config)
    assert "\n" not in str(caught.value)


def test_a_foreign_file(tmp_path):
    path = tmp_path / "x.model"
    path.write_bytes(b"not a model")
    with pytest.raises(PgolfError, match=r"x\.model is not a SentencePiece model"):
        Tokenizer.open(path)
    with pytest.raises(PgolfError, match="cannot read the tokenizer"):
        Tokenizer.open(tmp_path / "missing.model")
