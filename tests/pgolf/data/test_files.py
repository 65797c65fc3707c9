"""Documents come out of every format byte for byte; bad files are named with their line."""

import gzip
import json
import lzma

import pyarrow
import pyarrow.parquet
import pytest
import texts
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pgolf import data as corpus
from pgolf.data.files import TEXT_BYTES
from pgolf.errors import PgolfError

PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


def read(path, field="text"):
    return list(corpus.documents(corpus.source(path), field))


def parquet(path, rows, name="text"):
    pyarrow.parquet.write_table(pyarrow.table({name: rows, "other": [1] * len(rows)}), path)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", PACK)
def test_every_format_plain_and_compressed(tmp_path, suffix):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts.ODD).encode()
    (tmp_path / f"a.jsonl{suffix}").write_bytes(PACK[suffix](lines))
    (tmp_path / f"b.parquet{suffix}").write_bytes(PACK[suffix](parquet(tmp_path / "plain", texts.ODD)))
    (tmp_path / f"c.txt{suffix}").write_bytes(PACK[suffix](b"\r\none\r\n document\xff "))
    odd = [text.encode() for text in texts.ODD]
    assert read(tmp_path / f"a.jsonl{suffix}") == odd
    assert read(tmp_path / f"b.parquet{suffix}") == odd
    assert read(tmp_path / f"c.txt{suffix}") == [b"\r\none\r\n document\xff "]
    (tmp_path / "plain").unlink()
    assert read(tmp_path) == [*odd, *odd, b"\r\none\r\n document\xff "]


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=5), st.booleans())
def test_any_text_in_json_lines(tmp_path_factory, rows, ascii_only):
    path = tmp_path_factory.mktemp("corpus") / "a.jsonl"
    lines = [json.dumps({"body": row}, ensure_ascii=ascii_only) for row in rows]
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    assert read(path, "body") == [row.encode() for row in rows]


def test_invalid_bytes_and_lone_surrogates_in_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "caf\xe9"}\n{"text": "\\ud800"}\n')
    assert read(path) == [b"caf\xe9", b"\xed\xa0\x80"]


@given(st.binary(max_size=300).map(lambda data: data * 700))
def test_a_long_text_file_is_cut_and_loses_nothing(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("corpus") / "a.txt"
    path.write_bytes(data)
    found = read(path)
    assert b"".join(found) == data
    assert all(0 < len(document) <= TEXT_BYTES for document in found) or not data


def test_a_long_text_file_is_cut_at_lines_or_characters(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a line of text\n" * 10_000, "utf-8")
    assert all(document.endswith(b"\n") for document in read(path))
    path.write_text("x" + "\u4e2d" * 50_000, "utf-8")
    assert "".join(document.decode() for document in read(path)) == "x" + "\u4e2d" * 50_000


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{not json}", r"a\.jsonl:3 is not JSON"),
        (b'{"txet": "x"}', r"a\.jsonl:3 has no text field 'text' \(fields: txet\)"),
        (b'{"text": 5}', r"a\.jsonl:3 has no text field"),
        (b'["text"]', r"a\.jsonl:3 has no text field 'text' \(it is no object\)"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(PgolfError, match=message):
        read(path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.xz", "a.jsonl.zst", "a.parquet", "a.parquet.gz"])
def test_a_damaged_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"not what the name says")
    with pytest.raises(PgolfError, match=name):
        read(tmp_path / name)


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_truncated_file(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(PACK[suffix](b'{"text": "fine"}\n' * 1000)[:-10])
    with pytest.raises(PgolfError, match="cannot read"):
        read(path)


def test_a_parquet_file_without_the_column(tmp_path):
    parquet(tmp_path / "a.parquet", ["x"], "body")
    with pytest.raises(PgolfError, match=r"no text column 'text' \(columns: body, other\)"):
        read(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", "body") == [b"x"]
    parquet(tmp_path / "b.parquet", ["x", None])
    with pytest.raises(PgolfError, match="row 2 has no text"):
        read(tmp_path / "b.parquet")


def test_what_is_no_document_file(tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"x")
    with pytest.raises(PgolfError, match="is no document file"):
        corpus.source(tmp_path / "a.pdf")
    with pytest.raises(PgolfError, match="holds no documents"):
        corpus.source(tmp_path)
    with pytest.raises(PgolfError, match="no such file"):
        corpus.source(tmp_path / "missing.txt")


def test_urls(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/b.txt", b"second")
    memory.pipe("/corpus/a.jsonl.gz", gzip.compress(b'{"text": "first"}\n'))
    assert read("memory://corpus") == [b"first", b"second"]
    assert read("memory://corpus/b.txt") == [b"second"]
    before = corpus.source("memory://corpus").sha256
    assert corpus.source("memory://corpus").sha256 == before
    memory.pipe("/corpus/b.txt", b"changed text")
    assert corpus.source("memory://corpus").sha256 != before
    with pytest.raises(PgolfError, match="memory://nothing"):
        corpus.source("memory://nothing")
    with pytest.raises(PgolfError, match="cannot open nosuch://x"):
        corpus.source("nosuch://x")


def test_a_folders_hash_is_its_content(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a")
    first = corpus.source(tmp_path)
    assert first.sha256 == corpus.source(tmp_path).sha256
    (tmp_path / "a.txt").write_bytes(b"b")
    assert corpus.source(tmp_path).sha256 != first.sha256


def test_the_split_is_the_documents_own():
    documents = texts.english(2000)
    val = [document for document in documents if corpus.in_val(document, 0.1)]
    assert 150 < len(val) < 250
    assert val == [document for document in documents if corpus.in_val(document, 0.1)]


def test_the_embedded_corpus():
    documents = list(corpus.embedded_documents())
    assert len(set(documents)) == len(documents)
    assert 1_500_000 < sum(map(len, documents)) < 3_500_000
    assert any(b"The standard type hierarchy" in document for document in documents)
    assert any(document.startswith(b"json\n") for document in documents)
