"""CaseOps is a bijection on bytes, and its operators have no bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from texts import odd_documents

from pgolf.tokens.caseops import CHALLENGE, DIALECTS, LEADING


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@given(document=odd_documents)
def test_every_text_comes_back(dialect, document):
    transformed = dialect.encode(document)
    assert dialect.decode(transformed) == document
    assert dialect.original_bytes(transformed).sum() == len(document)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@given(documents=st.lists(odd_documents | st.text(st.sampled_from("abAB .\n")).map(str.encode), max_size=5))
def test_a_batch_is_transformed_as_its_texts_are(dialect, documents):
    assert dialect.encode_batch(documents) == [dialect.encode(document) for document in documents]


def test_the_challenges_example():
    expected = "\ue001the \ue002nasa i\ue003phone"
    assert CHALLENGE.encode(b"The NASA iPhone").decode() == expected


def test_the_operator_comes_before_the_space():
    assert LEADING.encode(b"The NASA iPhone").decode() == "\ue011the\ue012 nasa i\ue013phone"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A", "\ue001a"),
        ("AB", "\ue002ab"),
        ("McDonald", "\ue001mc\ue003donald"),
        ("ABc", "\ue001a\ue003bc"),
        ("éTé", "é\ue001té"),
        ("\ue002", "\ue004\ue002"),
    ],
)
def test_every_kind_of_word(text, expected):
    assert CHALLENGE.encode(text.encode()) == expected.encode()


@pytest.mark.parametrize("text", ["\ue001", "\ue0011", "\ue003 a", "\ue004a"])
def test_a_misplaced_operator_is_an_error(text):
    with pytest.raises(ValueError, match="wrong place"):
        CHALLENGE.decode(text.encode())


def test_time_is_linear_in_a_long_word():
    word = b"a" * 2_000_000
    assert CHALLENGE.encode(word) is not None
    assert LEADING.decode(LEADING.encode(word + b"B")) == word + b"B"
