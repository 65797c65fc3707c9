"""Every bad input is one line on stderr and exit code 2, and nothing is written."""

import json

import pytest
import sentencepiece
from filelock import FileLock
from typed import SMALL, assignments, pgolf, snapshot

from pgolf.errors import PgolfError


def refused(*words, says, folder, code=2):
    """Run the command; it must fail with one line that holds every text in `says`, and leave `folder` as it was."""
    before = snapshot(folder)
    result = pgolf(*words)
    assert result.exit_code == code, result.output or repr(result.exception)
    assert result.stdout == ""
    lines = [line for line in result.stderr.strip().splitlines() if line.startswith("pgolf: ")]
    assert len(lines) == 1, result.stderr  # beside it a slow machine sees lines of progress
    assert result.stderr.strip().endswith(lines[0])
    assert all(text in lines[0] for text in says), lines[0]
    assert snapshot(folder) == before
    return lines[0]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent.jsonl", None, ["absent.jsonl does not exist"]),
        ("empty.jsonl", b"", ["the corpus is empty", "empty.jsonl"]),
        ("blank.jsonl", b'{"text": ""}\n', ["the corpus is empty", "blank.jsonl"]),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', ["broken.jsonl:2 is not JSON"]),
        ("other.jsonl", b'{"text": "a"}\n\n{"body": "a"}\n', ["other.jsonl:3 has no text field 'text'", "body"]),
        ("list.jsonl", b"[1]\n", ["list.jsonl:1 has no text field"]),
        ("number.jsonl", b'{"text": 3}\n', ["number.jsonl:1 has no text field"]),
        ("text.pdf", b"%PDF", ["text.pdf is not a document file"]),
        ("cut.jsonl.gz", b"\x1f\x8b\x08", ["cannot read", "cut.jsonl.gz"]),
        ("small.txt", b"only a few words here", ["tokenizer.vocab_size = 20000 is too large for the corpus"]),
    ],
)
def test_documents(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    words = ["tokenize", tmp_path / name, "--val", tmp_path / name, "--artifacts", tmp_path / "artifacts"]
    refused(*words, *assignments("tokenizer.vocab_size=20000"), says=says, folder=tmp_path)


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("tokenizer.vocab_size=65537", ["65537", "65,536"]),
        ("model.vocab_size=65537", ["65537", "65,536"]),
        ("model.num_heads=5", ["model.num_heads = 5 does not divide model.dim"]),
        ("model.num_kv_heads=3", ["model.num_kv_heads = 3 does not divide model.num_heads"]),
        ("train.iteration=3", ["unknown key train.iteration", "did you mean train.iterations?"]),
        ("nonsense", ["section.key=value"]),
        ("train.seconds=nan", ["train.seconds is nan", "finite"]),
        ("optim.grad_clip=inf", ["optim.grad_clip is inf", "finite"]),
        ("model.mlp_ratio=-inf", ["model.mlp_ratio is -inf"]),
        ("train.batch_schedule=[[0.5, nan]]", ["train.batch_schedule is nan"]),
        ("seed=-1", ["seed is -1", "between 0 and"]),
        ("seed=18446744073709551616", ["seed is out of range"]),
        ("train.iterations=1" + "0" * 5000, ["train.iterations"]),
        ("train.iterations=many", ["train.iterations must be a whole number"]),
    ],
)
def test_settings(texts, tmp_path, assignment, says):
    words = ["tokenize", texts[0], "--val", texts[1], "--artifacts", tmp_path / "artifacts"]
    refused(*words, *assignments(*SMALL, assignment), says=says, folder=tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[train]\niteration = 3\n", ["settings.toml", "unknown key train.iteration", "train.iterations?"]),
        ("[trian]\niterations = 3\n", ["settings.toml", "unknown key trian", "train?"]),
        ("[train\n", ["settings.toml is not valid TOML"]),
    ],
)
def test_toml_file(tmp_path, content, says):
    file = tmp_path / "settings.toml"
    file.write_text(content)
    refused("train", "--config", file, "--artifacts", tmp_path / "artifacts", says=says, folder=tmp_path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--preset", "dem"], ["no preset named 'dem'", "demo"]),
        (["--device", "tpu"], ["--device 'tpu'"]),
        (["--config", "absent.toml"], ["cannot read the configuration absent.toml"]),
        (["--name", "a/b"], ["--name 'a/b'"]),
        (["--from", "absent"], ["absent is not a stage directory"]),
        ([], ["holds no finished stage", "pgolf tokenize or pgolf run begins one"]),
    ],
)
def test_options(tmp_path, words, says):
    refused("train", *words, "--artifacts", tmp_path / "artifacts", says=says, folder=tmp_path)


@pytest.fixture(scope="module")
def shards(made, tmp_path_factory):
    """Function that makes a folder of the run's shards and tokenizer, with one shard's bytes changed."""

    def make(change):
        folder = tmp_path_factory.mktemp("shards")
        for path in (made / "tiny" / "tokenize").glob("*"):
            if path.suffix in (".bin", ".model"):
                (folder / path.name).write_bytes(path.read_bytes())
        shard = folder / "fineweb_train_000000.bin"
        shard.write_bytes(change(shard.read_bytes()))
        return folder

    return make


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data[:-2], ["fineweb_train_000000.bin is damaged", "expected", "found"]),
        (lambda data: data[:100], ["fineweb_train_000000.bin is not a shard", "100 bytes"]),
        (lambda data: b"\0" * len(data), ["fineweb_train_000000.bin is not a shard", "20240520"]),
        (lambda data: data[:-2] + b"\xff\xff", ["holds token 65535", "another tokenizer"]),
    ],
)
def test_shards(shards, tmp_path, change, says):
    words = ["tokenize", "--shards", shards(change), "--artifacts", tmp_path / "artifacts"]
    refused(*words, says=says, folder=tmp_path)


def test_tokenizer_of_too_many_pieces(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(sentencepiece.SentencePieceProcessor, "vocab_size", lambda self: 70_000)
    model = tmp_path / "big.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a few words"]),
        model_prefix=str(tmp_path / "big"),
        vocab_size=14,
        hard_vocab_limit=False,
        minloglevel=3,
    )
    words = ["tokenize", texts[0], "--tokenizer", model, "--artifacts", tmp_path / "artifacts"]
    refused(*words, says=["big.model has 70000 pieces; at most 65536"], folder=tmp_path)


def test_a_sequence_longer_than_the_shard(made, tmp_path):
    words = ["train", "--from", made / "tiny" / "tokenize", "--artifacts", tmp_path / "artifacts"]
    settings = assignments(*SMALL, "train.seq_len=65536", "train.batch_tokens=65536")
    refused(*words, *settings, says=["train.seq_len = 65536 is longer than the train shards"], folder=tmp_path)


@pytest.mark.parametrize(
    ("command", "stage", "needs"),
    [
        ("train", "train", "tokenize"),
        ("ema-finalize", "tokenize", "train"),
        ("quantize", "tokenize", "ema-finalize or train"),
        ("quantize", "quantize", "ema-finalize or train"),
        ("eval-sliding", "tokenize", "this needs"),
        ("eval-ttt", "tokenize", "this needs"),
        ("package", "train", "quantize"),
        ("audit", "tokenize", "this needs"),
        ("budget", "tokenize", "this needs"),
    ],
)
def test_the_wrong_kind_of_stage(made, command, stage, needs):
    words = [command, "--from", made / "tiny" / stage, "--artifacts", made, "--run", "tiny", "--name", "wrong"]
    refused(*words, says=[f"holds a {stage} stage", needs], folder=made)


def test_a_context_that_the_method_would_not_use(made):
    words = ["eval-ttt", "--artifacts", made, "--run", "tiny", "--method", "lora", "--context", "banded"]
    refused(*words, says=["--context applies to --method in-place only", "lora"], folder=made)


@pytest.mark.parametrize(
    ("command", "changed"),
    [
        ("train", "tokenize/fineweb_train_000000.bin"),
        ("ema-finalize", "train/model.safetensors"),
        ("quantize", "ema-finalize/model.safetensors"),
        ("eval-sliding", "quantize/quantized.safetensors"),
        ("eval-sliding", "tokenize/fineweb_val_000000.bin"),
        ("eval-ttt", "quantize/quantized.safetensors"),
        ("package", "quantize/quantized.safetensors"),
    ],
)
def test_a_changed_payload(copy, command, changed):
    path = copy / "tiny" / changed
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    words = [command, "--artifacts", copy, "--run", "tiny", "--name", "again"]
    refused(*words, says=[path.name, "was changed", "SHA-256", "rerun"], folder=copy)


def test_a_missing_payload_and_a_damaged_manifest(copy):
    (copy / "tiny" / "quantize" / "quantized.safetensors").unlink()
    words = ["package", "--artifacts", copy, "--run", "tiny"]
    refused(*words, says=["quantized.safetensors is missing", "rerun quantize"], folder=copy)
    (copy / "tiny" / "quantize" / "manifest.json").write_text("{")
    refused(*words, says=["manifest.json is not a pgolf manifest"], folder=copy)


def test_a_run_in_use(made):
    words = ["ema-finalize", "--artifacts", made, "--run", "tiny", "--force"]
    with FileLock(made / "tiny" / ".lock"):
        refused(*words, says=["is in use by another pgolf process"], folder=made)


def test_a_folder_that_cannot_be(texts, tmp_path):
    (tmp_path / "artifacts").write_text("a file, not a folder")
    words = ["tokenize", texts[0], "--artifacts", tmp_path / "artifacts", *assignments(*SMALL)]
    refused(*words, says=["artifacts"], folder=tmp_path)


def test_over_the_budget_is_exit_code_1(made):
    here = ["--artifacts", made, "--run", "tiny"]
    refused("package", "--cap", "1000", *here, says=["over the cap of 1,000"], folder=made, code=1)
    result = pgolf("budget", "--cap", "1000", "--json", *here)
    assert result.exit_code == 1
    assert json.loads(result.stdout)["cap_bytes"] == 1000
    assert "over the cap of 1,000" in result.stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["train", "--from", "absent"], 2, "absent is not a stage directory"),
        (["train", "--no-such-option"], 2, "no-such-option"),
        (["inspect", "--run", "absent"], 2, "there is no run 'absent'"),
        (["package", "--run", "tiny", "--cap", "10"], 1, "over the cap"),
    ],
)
def test_an_error_as_json(made, words, code, says):
    result = pgolf(*words, "--artifacts", made, "--json")
    assert result.exit_code == code
    found = json.loads(result.stdout)
    assert found["exit_code"] == code
    assert says in found["error"]


def test_debug_shows_where_it_failed(tmp_path):
    result = pgolf("train", "--from", tmp_path / "absent", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert PgolfError.__name__ in result.stderr
