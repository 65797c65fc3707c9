"""Encoding in batches and threads gives what encoding one document at a time gives, and counts what was lost."""

import numpy as np
import pytest
import texts
from hypothesis import given
from hypothesis import strategies as st

from pgolf.tokens.byte_counts import changed_bytes, document_bytes
from pgolf.tokens.encode import encode_documents


@pytest.mark.parametrize("make", texts.EVERY)
@given(documents=st.lists(texts.odd_documents, max_size=6))
def test_a_batch_is_its_documents(make, documents):
    tokenizer = make()
    batches = list(encode_documents(tokenizer, documents, with_bytes=True, threads=1))
    if not documents:
        assert batches == []
        return
    (batch,) = batches
    one_by_one = [tokenizer.encode([document])[0] for document in documents]
    assert batch.tokens.tolist() == np.concatenate(one_by_one).tolist()
    counts = [document_bytes(tokenizer, *pair) for pair in zip(documents, one_by_one, strict=True)]
    assert batch.token_bytes.tolist() == np.concatenate(counts).tolist()
    assert (batch.documents, batch.bytes) == (len(documents), sum(map(len, documents)))


@pytest.mark.parametrize("make", texts.EXACT)
def test_exact_tokenizers_lose_nothing(make):
    for batch in encode_documents(make(), texts.ODD_BYTES):
        assert (batch.lossy_documents, batch.changed_bytes) == (0, 0)
        assert batch.invalid_documents == 4


@given(documents=st.lists(st.sampled_from([b"the that", b"a  b", b"\n", b"", b"on\xc2\xbd"]), min_size=1, max_size=5))
def test_lost_bytes_are_counted_per_document(documents):
    tokenizer = texts.reserved_caseops()
    (batch,) = encode_documents(tokenizer, documents)
    changes = [changed_bytes(document, tokenizer.decode(tokenizer.encode([document])[0])) for document in documents]
    assert batch.lossy_documents == sum(change > 0 for change in changes)
    assert batch.changed_bytes == sum(changes)


def test_order_is_kept_over_many_batches():
    documents = texts.english(3000)
    batches = list(encode_documents(texts.plain(), documents, threads=3))
    assert len(batches) > 3
    tokens = np.concatenate([batch.tokens for batch in batches])
    assert texts.plain().decode_lines(tokens) == b"".join(b"\n" + document for document in documents)


def test_an_error_among_the_documents_comes_through():
    def failing():
        yield b"the"
        raise RuntimeError("while reading")

    with pytest.raises(RuntimeError, match="while reading"):
        list(encode_documents(texts.plain(), failing()))
