"""Documents come out of every format byte for byte; bad files are named with their line."""

import gzip
import itertools
import json
import lzma
import sys

import pyarrow
import pyarrow.parquet
import pytest
import texts
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pgolf import data as corpus
from pgolf.data import decompress, files
from pgolf.data.files import TEXT_BYTES
from pgolf.errors import PgolfError
from pgolf.store import manifest

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
        (b'["text"]', r"a\.jsonl:3 has no text field 'text' \(not an object\)"),
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


def zstd_stream(data):
    """A frame without its content's size, as pipes make them, with a checksum."""
    packer = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    return packer.compress(data) + packer.flush()


CONTAINERS = {"a.jsonl": PACK, "a.txt": PACK, "b.jsonl": {".zst": zstd_stream}}


@pytest.mark.parametrize(
    ("name", "suffix"), [(name, suffix) for name, packs in CONTAINERS.items() for suffix in packs if suffix]
)
def test_cut_at_every_byte_a_file_is_whole_or_refused(tmp_path, name, suffix):
    text = b'{"text": "first"}\n{"text": "second"}\n'
    pack = CONTAINERS[name][suffix]
    first, second = pack(text), pack(text[18:])
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(first + second)
    whole = read(path)
    assert b"".join(whole) in (b"firstsecondsecond", text + text[18:])
    for size in range(len(first) + len(second)):
        path.write_bytes((first + second)[:size])
        if size == len(first):  # a file of one frame: nothing tells that there was another
            assert b"".join(read(path)) in (b"firstsecond", text)
            continue
        with pytest.raises(PgolfError, match=path.name):
            read(path)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_every_changed_byte_of_a_compressed_file_is_seen_or_means_nothing(tmp_path, suffix):
    text = b'{"text": "some words, and some words more"}\n' * 3
    packed = zstd_stream(text) if suffix == ".zst" else PACK[suffix](text)
    path = tmp_path / f"a.txt{suffix}"
    refused = 0
    for data in [
        *(packed + packed[:at] + bytes([packed[at] ^ 0x15]) + packed[at + 1 :] for at in range(len(packed))),
        packed + b"garbage",
    ]:
        path.write_bytes(data)
        try:
            assert b"".join(read(path)) == 2 * text
        except PgolfError:
            refused += 1
    assert refused >= len(packed) - 6  # gzip's header names a time and a system


def test_padding_and_skippable_frames_are_no_text(tmp_path):
    for suffix, padding in ((".gz", bytes(7)), (".xz", bytes(8)), (".zst", b"\x50\x2a\x4d\x18\x03\0\0\0abc")):
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(PACK[suffix](b"one ") + padding + PACK[suffix](b"two") + padding)
        assert read(path) == [b"one two"]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_bomb_is_refused(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK[suffix](bytes(12 << 20)))
    monkeypatch.setattr(decompress, "FREE_BYTES", 4 << 20)
    with pytest.raises(PgolfError, match=r"a\.txt.* unpacks to more than 500 times its size"):
        read(path)


def test_a_window_that_needs_too_much_memory_is_refused(tmp_path):
    path = tmp_path / "a.txt.zst"
    parameters = zstandard.ZstdCompressionParameters(window_log=28)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path.write_bytes(packer.compress(b"text") + packer.flush())
    with pytest.raises(PgolfError, match="requires too much memory"):
        read(path)


def test_a_line_of_json_has_a_longest_length(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    monkeypatch.setattr(files, "LINE_BYTES", 20)
    path.write_bytes(b'{"text": "0123456"}\n' * 2)  # 20 bytes each, line end included
    assert read(path) == [b"0123456"] * 2
    path.write_bytes(b'{"text": "0123456"}\n{"text": "01234567"}\n')
    with pytest.raises(PgolfError, match=r"a\.jsonl:2 is longer than"):
        read(path)


def test_other_fields_of_a_line_do_not_matter(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"n": ' + "9" * 5000 + ', "x": -1e999, "y": NaN, "text": "fine"}\n{"text": "deep", "a": ' + "[" * 500
    )
    with path.open("a") as file:
        file.write("]" * 500 + "}\n")
    assert read(path) == [b"fine", b"deep"]
    path.write_text('{"text": "too deep", "a": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    with pytest.raises(PgolfError, match=r"a\.jsonl:1 is nested too deeply"):
        read(path)


@given(
    st.lists(
        st.sampled_from([b"a", b"\xb2", "é".encode(), b"\\udcb2", b"\\ud83d\\ude00", b"\\\\udcb2", b"\xf3\xb0\x82\xb2"])
    )
)
def test_an_escape_gives_the_same_bytes_in_any_context(tmp_path_factory, parts):
    meaning = {b"\\udcb2": b"\xed\xb2\xb2", b"\\ud83d\\ude00": "😀".encode(), b"\\\\udcb2": b"\\udcb2"}
    path = tmp_path_factory.mktemp("corpus") / "a.jsonl"
    path.write_bytes(b'{"text": "' + b"".join(parts) + b'"}')
    assert read(path) == [b"".join(meaning.get(part, part) for part in parts)]


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.large_string(),
        pyarrow.string_view(),
        pyarrow.binary(),
        pyarrow.large_binary(),
        pyarrow.dictionary(pyarrow.int8(), pyarrow.string()),
    ],
    ids=str,
)
def test_every_way_parquet_keeps_text(tmp_path, kind):
    rows = ["one", "zwei ß", "one"]
    values = pyarrow.array(rows).dictionary_encode() if pyarrow.types.is_dictionary(kind) else pyarrow.array(rows)
    pyarrow.parquet.write_table(pyarrow.table({"text": values.cast(kind)}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [row.encode() for row in rows]


def test_a_parquet_file_cut_at_any_byte_is_refused(tmp_path):
    data = parquet(tmp_path / "a.parquet", ["one", "two"])
    for size in range(0, len(data), 7):
        (tmp_path / "a.parquet").write_bytes(data[:size])
        with pytest.raises(PgolfError, match=r"cannot read .*a\.parquet as parquet"):
            read(tmp_path / "a.parquet")


def test_a_parquet_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    table = pyarrow.table({"text": [bytes(range(256)) * 4000] * 3}).cast(pyarrow.schema({"text": pyarrow.binary()}))
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    assert len(read(tmp_path / "a.parquet")) == 3  # below the size from which the ratio matters
    monkeypatch.setattr(files, "FREE_BYTES", 1 << 16)
    with pytest.raises(PgolfError, match=r"unpacks to 3,072,[0-9]+ bytes from [0-9,]+, as no text does"):
        read(tmp_path / "a.parquet")


def test_linked_folders_are_read_once_and_circles_end(tmp_path):
    data = tmp_path / "data"
    (data / "part").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_bytes(b"linked")
    (data / "part" / "a.txt").write_bytes(b"plain")
    (data / "more").symlink_to(tmp_path / "elsewhere")
    (data / "again").symlink_to(tmp_path / "elsewhere")
    (data / "part" / "circle").symlink_to(data)
    found = corpus.source(data)
    assert sorted(read(data)) == [b"linked", b"plain"]
    assert [file.removeprefix(f"{data}/") for file in found.files] == ["again/b.txt", "part/a.txt"]


def test_hidden_files_and_stage_directories_in_a_folder_are_left_out(tmp_path):
    stage = tmp_path / "artifacts" / "default" / "train"
    stage.mkdir(parents=True)
    facts = {"pgolf": {}, "command": [], "config": {}, "inputs": {}, "outputs": {}, "metrics": {}, "environment": {}}
    made = manifest.Manifest("train", "train", **facts, seed=0, started="2026-01-01T00:00:00+00:00", seconds=1.0)
    (stage / "manifest.json").write_text(made.to_json())
    (stage / "metrics.jsonl").write_bytes(b'{"step": 1}')
    (tmp_path / "artifacts" / "default" / "quantize.partial").mkdir()
    (tmp_path / "artifacts" / "default" / "quantize.partial" / "log.txt").write_bytes(b"log")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "description.txt").write_bytes(b"hidden")
    (tmp_path / "a.txt").write_bytes(b"mine")
    assert read(tmp_path) == [b"mine"]
    assert corpus.source(tmp_path).describe() == (
        f"{tmp_path}: 1 files read (1 .txt); left out 3 folders that are hidden or made by pgolf"
    )


def test_a_parquet_file_without_the_column(tmp_path):
    parquet(tmp_path / "a.parquet", ["x"], "body")
    with pytest.raises(PgolfError, match=r"no text column 'text' \(columns: body \(string\), other \(int64\)\)"):
        read(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", "body") == [b"x"]
    parquet(tmp_path / "b.parquet", ["x", None])
    with pytest.raises(PgolfError, match="row 2 has no text"):
        read(tmp_path / "b.parquet")


def test_other_files_than_documents_are_refused(tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"x")
    with pytest.raises(PgolfError, match="is not a document file"):
        corpus.source(tmp_path / "a.pdf")
    with pytest.raises(PgolfError, match="holds no documents"):
        corpus.source(tmp_path)
    with pytest.raises(PgolfError, match="does not exist"):
        corpus.source(tmp_path / "missing.txt")


def test_urls(monkeypatch):
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
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(PgolfError, match="pip install fsspec s3fs"):
        corpus.source("s3://bucket/a.jsonl")

    def lost(path):
        raise KeyError("lost\nthe connection")

    monkeypatch.setattr(memory, "isfile", lost)
    with pytest.raises(PgolfError, match=r"cannot read memory://broken.jsonl: .*lost") as error:
        corpus.source("memory://broken.jsonl")
    assert "\n" not in str(error.value)
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
    # What may be val is a good part of it, and repeats nothing of the rest.
    assert 0.2 < sum(map(len, itertools.compress(documents, corpus.unlike_others(documents)))) / 2_400_000 < 0.6


def test_documents_that_share_a_passage_are_known():
    long = b"one two three four five six seven eight nine"
    documents = [
        b"zero " + long,
        b"other words entirely",
        long + b" ten",
        b"one two three four five six seven",
        b"short",
    ]
    assert corpus.unlike_others(documents) == [False, True, False, True, True]
    assert corpus.unlike_others([b"same", b"same"]) == [False, False]
