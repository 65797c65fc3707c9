"""The tokenize stage: exact bytes on odd documents, shards registered as they are, and nothing written on bad input."""

import hashlib
import io
import json
import lzma
import zlib

import numpy as np
import pytest
import sentencepiece

from pgolf import config as configs
from pgolf import data, runtime
from pgolf.errors import PgolfError
from pgolf.program import scoring
from pgolf.progress import Silent
from pgolf.saved import tokens as token_stages
from pgolf.saved.models import load_model
from pgolf.store import stage_directory
from pgolf.tokens import shards
from pgolf.tokens.tokenizer import Tokenizer
from stages.context import StageContext
from stages.reports import summary
from stages.tokenize import tokenize
from stages.train import train

SENTENCE = "the cat sat on the mat and The dog ran to a house, 12 times. "
ODD = ["", " a", "a  b\r\n\t", "ﬁ½ e\u0301 \U0001f468\u200d\U0001f469", "\u2581x \ue011The NASA", "中文", "\ud800"]


@pytest.fixture
def context(tmp_path):
    return StageContext(
        run=tmp_path / "run",
        config=configs.load(assignments=["tokenizer.vocab_size=300", "tokenizer.shard_tokens=100"]),
        runtime=runtime.choose("cpu", threads=1),
        reporter=Silent(),
        command=("pgolf", "test"),
    )


def write_jsonl(path, documents):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), "utf-8")
    return path


@pytest.fixture
def train_file(tmp_path):
    return write_jsonl(tmp_path / "train.jsonl", [SENTENCE * count for count in range(1, 40)])


@pytest.fixture
def val_file(tmp_path):
    return write_jsonl(tmp_path / "val.jsonl", [*ODD, SENTENCE])


def utf8(text):
    return text.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("caseops", ["true", "false"])
def test_every_val_document_has_its_own_bytes(context, train_file, val_file, caseops):
    settings = configs.load(assignments=[f"tokenizer.caseops={caseops}"], base=context.config)
    stage = tokenize(context.replace(config=settings), [train_file], [val_file])
    tokens = token_stages.open_split(stage, "val")[:]
    counts = token_stages.token_bytes(stage)
    starts = np.flatnonzero(tokens == 1)
    documents = [utf8(text) for text in [*ODD, SENTENCE]]
    assert np.add.reduceat(counts, starts).tolist() == [len(document) for document in documents]
    tokenizer = token_stages.tokenizer_of(stage)
    assert [tokenizer.decode(part) for part in np.split(tokens, starts[1:])] == documents
    assert stage.manifest.details["lossless"] is True
    assert stage.manifest.details["val"]["bytes"] == sum(map(len, documents))
    assert stage.manifest.details["val"]["invalid_documents"] == 1
    assert stage.manifest.details["bos_id"] == 1
    assert len([name for name in stage.manifest.outputs if name.startswith("fineweb_train_")]) > 1


def test_other_documents_with_the_runs_tokenizer(context, train_file, val_file):
    stage = tokenize(context, [train_file], [val_file])
    tokens, counts, lossless = token_stages.encode_documents(stage, data.documents(data.source(val_file)))
    assert tokens.tolist() == token_stages.open_split(stage, "val")[:].tolist()
    assert counts.tolist() == token_stages.token_bytes(stage).tolist()
    assert lossless


def test_without_val_the_documents_are_split(context, tmp_path):
    path = write_jsonl(tmp_path / "all.jsonl", [f"{SENTENCE} number {index}" for index in range(300)])
    details = tokenize(context, [path]).manifest.details
    assert details["train"]["documents"] + details["val"]["documents"] == 300
    assert 3 < details["val"]["documents"] < 40
    assert details["train_documents_in_val"] == 0


def test_val_documents_in_train_are_counted(context, train_file):
    assert tokenize(context, [train_file], [train_file]).manifest.details["train_documents_in_val"] == 39


def test_up_to_date_and_changed_input(context, train_file, val_file):
    first = tokenize(context, [train_file], [val_file])
    assert tokenize(context, [train_file], [val_file]).manifest == first.manifest
    write_jsonl(train_file, [SENTENCE * 50])
    assert tokenize(context, [train_file], [val_file]).manifest != first.manifest


def test_the_same_input_gives_the_same_files(context, train_file, val_file):
    first = tokenize(context, [train_file], [val_file])
    again = tokenize(context.replace(name="again"), [train_file], [val_file])
    assert first.manifest.outputs == again.manifest.outputs


def test_a_given_tokenizer(context, train_file, val_file, tmp_path):
    first = tokenize(context, [train_file], [val_file])
    model = tmp_path / "given.model"
    model.write_bytes(first.file("tokenizer.model").read_bytes())
    second = tokenize(context.replace(name="given"), [train_file], [val_file], tokenizer=model)
    assert second.manifest.outputs == first.manifest.outputs
    assert second.manifest.details["trained"] is False


def test_a_lossy_tokenizer_is_named_and_counts_original_bytes(context, train_file, val_file, shared_data):
    model = shared_data / "tokenizers" / "fineweb_8192_bpe.model"
    stage = tokenize(context, [train_file], [val_file], tokenizer=model)
    details = stage.manifest.details
    assert details["lossless"] is False
    assert details["lossy_documents"] > 0
    assert details["changed_bytes"] > 0
    assert token_stages.token_bytes(stage).sum() == sum(len(utf8(text)) for text in [*ODD, SENTENCE])


@pytest.mark.parametrize("caseops", [True, False])
def test_byte_counts_of_a_new_and_of_an_old_folder(context, train_file, val_file, tmp_path, caseops):
    """The challenge's scripts without CaseOps, and llm.c, take all of `fineweb_val_*.bin` for tokens."""
    settings = configs.load(assignments=[f"tokenizer.caseops={str(caseops).lower()}"], base=context.config)
    stage = tokenize(context.replace(config=settings), [train_file], [val_file])
    tokens, counts = token_stages.open_split(stage, "val")[:], token_stages.token_bytes(stage)
    globbed = shards.TokenStream.open(sorted(stage.path.glob("fineweb_val_*.bin")))
    assert len(globbed) == (2 if caseops else 1) * len(tokens)

    tokenizer = token_stages.tokenizer_of(stage)
    for prefix in ("val_bytes", "fineweb_val_bytes"):
        folder = tmp_path / prefix
        folder.mkdir()
        for name in stage.manifest.outputs:
            if "val_bytes" not in name:
                (folder / name).write_bytes((stage.path / name).read_bytes())
        marked = np.where(tokens == 1, 0, counts + 7).astype(np.uint16)  # no table per piece gives these
        shards.write_shards(folder, prefix, [marked], 50)
        read = scoring.read_shards(folder, tokenizer)
        assert read.tokens.tolist() == tokens.tolist()
        assert read.token_bytes.tolist() == marked.tolist()
        registered = tokenize(context.replace(config=settings, name=prefix), shards=folder)
        assert token_stages.token_bytes(registered).tolist() == marked.tolist()
        assert token_stages.open_split(registered, "val")[:].tolist() == tokens.tolist()
        named = {name.rpartition("_")[0] for name in registered.manifest.outputs if "bytes" in name}
        assert named == {"fineweb_val_bytes" if caseops else "val_bytes"}

    manifest = json.loads((stage.path / "manifest.json").read_text())
    for path in sorted(stage.path.glob("val_bytes_*")):  # as earlier versions named them
        path.rename(path.with_name(f"fineweb_{path.name}"))
        manifest["outputs"][f"fineweb_{path.name}"] = manifest["outputs"].pop(path.name)
    (stage.path / "manifest.json").write_text(json.dumps(manifest))
    old = stage_directory.open_stage(stage.path)
    assert token_stages.token_bytes(old).tolist() == counts.tolist()
    assert token_stages.open_split(old, "val")[:].tolist() == tokens.tolist()


@pytest.mark.parametrize("lossy", [False, True])
def test_a_proof_of_the_round_trips_lies_beside_the_tokenizer(context, train_file, val_file, lossy):
    tokenizer = bos_two(train_file, normalization_rule_name="nmt_nfkc_cf") if lossy else None
    stage = tokenize(context, [train_file], [val_file], tokenizer=tokenizer)
    proof = json.loads(stage.file("tokenizer_proof.json").read_text())
    assert proof["sha256"] == hashlib.sha256(stage.file("tokenizer.model").read_bytes()).hexdigest()
    used, stream = Tokenizer.open(stage.file("tokenizer.model")), token_stages.open_split(stage, "val")[:]
    ends = [*np.flatnonzero(stream == used.bos_id)[1:], len(stream)]
    texts = [utf8(text) for text in [*ODD, SENTENCE]]
    decoded = [used.decode(stream[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
    val = proof["splits"]["val"]
    assert val["documents"] == val["round_trips"] == len(texts)
    assert val["bytes"] == sum(map(len, texts))
    assert val["changed_documents"] == sum(a != b for a, b in zip(texts, decoded, strict=True))
    assert (val["changed_bytes"] > 0) == (val["changed_documents"] > 0) == lossy == (not proof["lossless"])


@pytest.fixture
def shard_folder(context, train_file, val_file, tmp_path):
    """Shards as somebody published them: with a tokenizer, without byte counts."""
    stage = tokenize(context, [train_file], [val_file])
    folder = tmp_path / "published"
    folder.mkdir()
    for name in stage.manifest.outputs:
        if not name.startswith("val_bytes"):
            (folder / name).write_bytes((stage.path / name).read_bytes())
    return folder


def test_registered_shards(context, shard_folder):
    stage = tokenize(context.replace(name="shards"), shards=shard_folder)
    val = shards.TokenStream.open(sorted(shard_folder.glob("fineweb_val_*.bin")))
    assert token_stages.open_split(stage, "val")[:].tolist() == val[:].tolist()
    counts = token_stages.token_bytes(stage)
    assert len(counts) == len(val)
    assert stage.manifest.details["val"]["bytes"] == counts.sum()
    assert stage.manifest.details["bytes_from"] == "table"
    assert stage.manifest.details["val"]["documents"] == len(ODD) + 1


def test_registered_shards_with_their_byte_counts(context, shard_folder):
    first = context.run / "tokenize"
    for path in first.glob("val_bytes_*"):
        (shard_folder / path.name).write_bytes(path.read_bytes())
    stage = tokenize(context.replace(name="shards"), shards=shard_folder)
    assert token_stages.token_bytes(stage).sum() == sum(len(utf8(text)) for text in [*ODD, SENTENCE])
    assert stage.manifest.details["bytes_from"] == "sidecar"


def test_shifted_byte_counts_are_refused(context, shard_folder):
    counts = token_stages.token_bytes(stage_directory.open_stage(context.run / "tokenize")).astype(np.uint16)
    shards.write_shards(shard_folder, "fineweb_val_bytes", [np.roll(counts, -1)], 1000)
    with pytest.raises(PgolfError, match="shifted against the tokens"):
        tokenize(context.replace(name="shards"), shards=shard_folder)


def test_shards_of_another_tokenizer(context, shard_folder):
    foreign = np.full(50, 9000, np.uint16)
    shards.write_shards(shard_folder, "fineweb_train", [foreign], 100)
    with pytest.raises(PgolfError, match="holds token 9000"):
        tokenize(context.replace(name="shards"), shards=shard_folder)


def test_shards_without_bos(context, shard_folder):
    for path in shard_folder.glob("fineweb_val_*"):
        path.unlink()
    shards.write_shards(shard_folder, "fineweb_val", [np.full(50, 9, np.uint16)], 100)
    with pytest.raises(PgolfError, match="has no BOS"):
        tokenize(context.replace(name="shards"), shards=shard_folder)


def test_shards_that_cannot_be_registered(context, shard_folder, tmp_path):
    other = context.replace(name="shards")
    with pytest.raises(PgolfError, match="is not a folder"):
        tokenize(other, shards=tmp_path / "nowhere")
    with pytest.raises(PgolfError, match="leave the documents out"):
        tokenize(other, ["x.txt"], shards=shard_folder)
    broken = next(shard_folder.glob("fineweb_val_*"))
    broken.write_bytes(broken.read_bytes()[:-2])
    with pytest.raises(PgolfError, match="is damaged"):
        tokenize(other, shards=shard_folder)
    (shard_folder / "tokenizer.model").unlink()
    broken.write_bytes(broken.read_bytes() + b"\1\0")
    with pytest.raises(PgolfError, match="has no tokenizer"):
        tokenize(other, shards=shard_folder)
    for path in shard_folder.glob("fineweb_train_*"):
        path.unlink()
    with pytest.raises(PgolfError, match=r"has no fineweb_train_\*.bin"):
        tokenize(other, shards=shard_folder)
    assert not (context.run / "tokenize@shards").exists()


@pytest.mark.parametrize(
    ("documents", "assignment", "message"),
    [
        (["", ""], "seed=0", "the corpus is empty"),
        (["one document only, which is train"], "tokenizer.vocab_size=300", "falls into val|too large"),
        ([SENTENCE + str(index) for index in range(300)], "tokenizer.vocab_size=20000", "too large for the corpus"),
    ],
)
def test_bad_corpora_leave_nothing(context, tmp_path, documents, assignment, message):
    path = write_jsonl(tmp_path / "all.jsonl", documents)
    settings = configs.load(assignments=[assignment], base=context.config)
    with pytest.raises(PgolfError, match=message):
        tokenize(context.replace(config=settings), [path])
    assert not context.run.exists()


def test_a_bad_line_leaves_nothing(context, train_file, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "x"}\n{"tex', "utf-8")
    with pytest.raises(PgolfError, match=r"bad\.jsonl:2"):
        tokenize(context, [train_file], [bad])
    assert not (context.run / "tokenize").exists()


def test_val_needs_train(context, val_file):
    with pytest.raises(PgolfError, match="needs train documents"):
        tokenize(context, val=[val_file])


def test_a_vocabulary_beyond_uint16():
    with pytest.raises(PgolfError, match="65,536"):
        configs.load(assignments=["tokenizer.vocab_size=65537"])


def test_the_sample_for_training_is_spread_over_the_corpus(context, train_file, val_file):
    settings = configs.load(assignments=["tokenizer.train_bytes=5000"], base=context.config)
    stage = tokenize(context.replace(config=settings), [train_file], [val_file])
    assert isinstance(token_stages.tokenizer_of(stage), Tokenizer)
    assert stage.manifest.details["train"]["documents"] == 39


def bos_two(train_file, **settings):
    """A SentencePiece model whose BOS is token 2, as an iterator of texts trains it."""
    texts = [json.loads(line)["text"] for line in train_file.read_text("utf-8").splitlines()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        bos_id=2,
        eos_id=3,
        unk_id=0,
        minloglevel=3,
        **settings,
    )
    path = train_file.parent / "two.model"
    path.write_bytes(model.getvalue())
    return path


def test_the_model_is_configured_with_the_tokenizers_own_bos(context, train_file, val_file):
    stage = tokenize(context, [train_file], [val_file], tokenizer=bos_two(train_file))
    assert stage.manifest.details["bos_id"] == 2
    assert context.config.model.bos_id == 1
    assert token_stages.with_bos(context.config, stage).model.bos_id == 2
    settings = configs.load(
        assignments=[
            *("model.vocab_size=300", "model.dim=16", "model.num_layers=2", "model.num_heads=2"),
            *("model.num_kv_heads=1", "train.iterations=2", "train.batch_tokens=64", "train.seq_len=16"),
            *("train.compile=false", "train.holdout_tokens=200"),
        ],
        base=context.config,
    )
    context = context.replace(config=settings, runtime=runtime.choose("cpu", 1, compile=False))
    trained = train(context, stage)
    assert trained.manifest.config["model"]["bos_id"] == 2
    assert load_model(trained, context.runtime).config.bos_id == 2  # what windows, masks and resets go by


@pytest.mark.parametrize("kind", ["plain", "caseops", "lossy"])
def test_the_general_compressors_get_the_documents_own_text(context, train_file, val_file, kind):
    tokenizer = None
    if kind == "lossy":
        tokenizer = bos_two(train_file, normalization_rule_name="nmt_nfkc_cf")
    settings = configs.load(assignments=[f"tokenizer.caseops={str(kind == 'caseops').lower()}"], base=context.config)
    stage = tokenize(context.replace(config=settings), [train_file], [val_file], tokenizer=tokenizer)
    assert stage.manifest.details["lossless"] == (kind != "lossy")
    text = b"".join(utf8(document) + b"\n" for document in [*ODD, SENTENCE])
    found = {reading.key: reading.bits_per_byte for reading in summary.compressors(stage)}
    assert found["gzip"] == 8 * len(zlib.compress(text, 9)) / len(text)
    assert found["xz"] == 8 * len(lzma.compress(text)) / len(text)


def test_documents_of_a_folder_are_named(context, tmp_path, train_file, val_file):
    said = []

    class Told(Silent):
        def message(self, text, detail=False):
            said.append(text)

    folder = tmp_path / "texts"
    (folder / ".cache").mkdir(parents=True)
    train_file.rename(folder / "a.jsonl")
    (folder / ".cache" / "b.jsonl").write_text("broken")
    tokenize(context.replace(reporter=Told()), [folder], [val_file])
    assert f"{folder}: 1 files read (1 .jsonl); left out 1 folders that are hidden or made by pgolf" in said
