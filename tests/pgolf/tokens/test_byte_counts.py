"""Bytes of a document's tokens sum to its length, for every tokenizer; the field's faults are found by name."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import texts
from hypothesis import given

from pgolf.errors import PgolfError
from pgolf.tokens.byte_counts import ByteTable, changed_bytes, document_bytes, faults, table_faults
from pgolf.tokens.shards import TokenStream
from pgolf.tokens.tokenizer import Tokenizer


def check(tokenizer, document):
    (tokens,) = tokenizer.encode([document])
    counts = document_bytes(tokenizer, document, tokens)
    assert counts.dtype == np.uint16
    assert counts.shape == tokens.shape
    assert counts[0] == 0
    assert counts.sum(dtype=np.int64) == len(document)
    return tokens, counts


@pytest.mark.parametrize("make", texts.EVERY)
@given(document=texts.odd_documents)
def test_bytes_of_any_document_are_exact(make, document):
    check(make(), document)


@pytest.mark.parametrize("make", texts.EVERY)
def test_bytes_of_odd_documents_are_exact(make):
    for document in texts.ODD_BYTES:
        check(make(), document)


@pytest.mark.parametrize("name", ["fineweb_8192_bpe", "fineweb_8192_caseops"])
def test_bytes_are_exact_with_the_challenges_tokenizers(shared_data, name):
    tokenizer = Tokenizer.open(shared_data / "tokenizers" / f"{name}.model")

    @given(document=texts.odd_documents)
    def run(document):
        check(tokenizer, document)

    run()
    for document in texts.ODD_BYTES:
        check(tokenizer, document)


@given(document=texts.odd_documents)
def test_each_token_has_the_bytes_it_decodes_to(document):
    tokenizer = texts.whitespace()
    tokens, counts = check(tokenizer, document)
    assert counts.tolist() == [len(tokenizer.pieces[token]) for token in tokens]


def test_case_operators_have_no_bytes():
    tokenizer = texts.reserved_caseops()
    tokens, counts = check(tokenizer, b"The you")
    pieces = [tokenizer.sp.id_to_piece(int(token)) for token in tokens]
    assert pieces[:2] == ["<s>", "\ue001"]
    assert counts[:2].tolist() == [0, 0]


def test_bytes_beyond_uint16_move_to_the_next_tokens():
    _, counts = check(texts.lossy(), b"the" + b" " * 70_000 + b"that was")
    assert counts.max() == 65_535


def reference_table(sp, tokens):
    """The challenge's own accounting, written as its script does (openai/parameter-golf, train_gpt.py)."""
    size = sp.vocab_size()
    base, lead, boundary = [0] * size, [False] * size, [True] * size
    for token in range(size):
        if sp.is_control(token) or sp.is_unknown(token) or sp.is_unused(token):
            continue
        boundary[token] = False
        if sp.is_byte(token):
            base[token] = 1
            continue
        piece = sp.id_to_piece(token)
        if piece.startswith("▁"):
            lead[token] = True
            piece = piece[1:]
        base[token] = len(piece.encode())
    pairs = itertools.pairwise(tokens)
    return [base[target] + int(lead[target] and not boundary[before]) for before, target in pairs]


@pytest.mark.parametrize("make", [texts.plain, texts.lossy, texts.without_space_piece])
def test_the_table_is_the_challenges(make):
    tokenizer = make()
    documents = [document for document in texts.ODD_BYTES if len(document) < 1000] + texts.english(20)
    tokens = np.concatenate(tokenizer.encode(documents))
    assert ByteTable.from_tokenizer(tokenizer).count(tokens)[1:].tolist() == reference_table(
        tokenizer.sp, tokens.tolist()
    )


def test_the_table_is_the_challenges_on_its_own_tokenizer(shared_data):
    tokenizer = Tokenizer.open(shared_data / "tokenizers" / "fineweb_8192_bpe.model")
    tokens = np.arange(8192, dtype=np.uint16)
    tokens = np.concatenate([tokens, tokens[::-1], np.random.default_rng(0).permutation(tokens)])
    assert ByteTable.from_tokenizer(tokenizer).count(tokens)[1:].tolist() == reference_table(
        tokenizer.sp, tokens.tolist()
    )


def test_the_table_in_pieces_and_beyond_the_vocabulary():
    table = ByteTable.from_tokenizer(texts.plain())
    (tokens,) = texts.plain().encode([b"the that was of you"])
    whole = table.count(tokens)
    assert np.concatenate([table.count(tokens[:3]), table.count(tokens[3:], int(tokens[2]))]).tolist() == whole.tolist()
    assert table.count(np.array([1, 60_000, 5], np.uint16)).tolist() == [0, 0, 1]


def test_a_stream_is_counted_in_parts():
    tokens = np.tile(np.concatenate(texts.plain().encode(texts.english(200))), 550)  # over one part of 4,194,304
    stream = TokenStream([tokens[:70_001], tokens[70_001:]], "val")
    table = ByteTable.from_tokenizer(texts.plain())
    assert len(tokens) > 1 << 22
    assert np.array_equal(table.count_stream(stream), table.count(tokens))


def test_table_and_documents_agree_but_for_a_first_space():
    tokenizer = texts.plain()
    table = ByteTable.from_tokenizer(tokenizer)
    for document in texts.english(20):
        (tokens,) = tokenizer.encode([document])
        assert table.count(tokens).tolist() == document_bytes(tokenizer, document, tokens).tolist()
    (tokens,) = tokenizer.encode([b" the"])
    assert table.count(tokens).sum() == 3  # B14: the table cannot see a space after BOS
    assert document_bytes(tokenizer, b" the", tokens).sum() == 4


def test_inner_spaces_are_one_byte_each():
    tokenizer = texts.whitespace()
    (tokens,) = tokenizer.encode([b"a        b"])
    assert ByteTable.from_tokenizer(tokenizer).count(tokens).sum() == 10


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [(b"abc", b"abc", 0), (b"a\nb", b"a b", 1), (b"a  b", b"a b", 1), (b"ab", b"ba", 1), (b"", b"xy", 2)],
)
def test_changed_bytes(before, after, changed):
    assert changed_bytes(before, after) == changed


def test_sound_tokenizers_have_no_faults():
    assert faults(texts.plain()) == []


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (texts.without_space_piece, "no space piece"),
        (texts.whitespace, "inner space marks"),
        (texts.caseops, "case operators"),
        (texts.lossy, "no byte fallback"),
        (texts.lossy, "dummy prefix"),
        (texts.reserved_caseops, "lossy normalization: white space"),
        (texts.reserved_caseops, "lossy normalization: compatibility characters"),
    ],
)
def test_a_tokenizers_fault_is_named(make, name):
    assert any(fault.startswith(name) for fault in faults(make()))


def test_the_challenges_tokenizers_normalize(shared_data):
    for path in sorted(Path(shared_data / "tokenizers").glob("*.model")):
        assert any("lossy normalization" in fault for fault in faults(Tokenizer.open(path))), path


def broken(change):
    table = ByteTable.from_tokenizer(texts.plain())
    base = table.base.copy()
    change(base, table)
    return table_faults(texts.plain(), base)


def test_a_right_table_has_no_faults():
    assert broken(lambda base, table: None) == []


def test_spaces_counted_twice_are_named():
    def change(base, table):
        base[table.leading_space] += 1

    (fault,) = broken(change)
    assert fault.startswith("pre-credited spaces")


def test_control_tokens_with_length_are_named():
    def change(base, table):
        base[1] = 3  # len("<s>")

    (fault,) = broken(change)
    assert fault.startswith("control tokens with length: 1 tokens, first 1 (<s>): 3, not 0")


@pytest.mark.parametrize("length", [3, 6])  # U+FFFD, or the text "<0x0A>"
def test_long_byte_tokens_are_named(length):
    def change(base, table):
        base[texts.plain().byte_tokens] = length

    (fault,) = broken(change)
    assert fault.startswith("byte tokens longer than one byte: 256 tokens")


def test_other_wrong_lengths_are_named():
    def change(base, table):
        base[-1] += 7

    (fault,) = broken(change)
    assert fault.startswith("other lengths: 1 tokens")


def test_a_space_and_an_operator_as_one_piece(shared_data: Path) -> None:
    """Fewer tokens, the same text and bytes as with the published CaseOps tokenizer."""
    plain = Tokenizer.open(shared_data / "tokenizers" / "fineweb_8192_caseops.model")
    fused = plain.with_fused_operators()
    assert fused.vocab_size == plain.vocab_size + 3
    assert fused.with_fused_operators().vocab_size == fused.vocab_size
    tables = [ByteTable.from_tokenizer(tokenizer) for tokenizer in (plain, fused)]
    for document in (*texts.ODD_BYTES, b"It is The NASA iPhone, an X", b"no capitals at all"):
        before, after = check(plain, document)[0], check(fused, document)[0]
        assert fused.decode(after) == plain.decode(before)
        assert len(before) - len(after) == (after >= plain.vocab_size).sum()
        assert tables[0].count(before).sum() == tables[1].count(after).sum()
    assert len(plain.encode([b"It is The NASA"])[0]) - len(fused.encode([b"It is The NASA"])[0]) == 2
    with pytest.raises(PgolfError, match="not a CaseOps tokenizer"):
        Tokenizer.open(shared_data / "tokenizers" / "fineweb_8192_bpe.model").with_fused_operators()
