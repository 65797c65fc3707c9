"""Published shards, from a stand-in of the hub's layout: only what was asked for, checked, taken up again."""

import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest

import cli.tokenize
from pgolf import config as configs
from pgolf import runtime
from pgolf.config import TokenizerConfig
from pgolf.data.hub import KNOWN, TRAIN_SHARDS, RemoteFile, _Mirror, select
from pgolf.errors import PgolfError
from pgolf.progress import Silent
from pgolf.saved import tokens as token_stages
from pgolf.tokens import shards, tokenizer
from stages.context import StageContext
from stages.tokenize import tokenize

REPO = "somebody/parameter-golf"


@pytest.fixture
def context(tmp_path):
    return StageContext(
        run=tmp_path / "run",
        config=configs.load(),
        runtime=runtime.choose("cpu", threads=1),
        reporter=Silent(),
        command=("pgolf", "test"),
    )


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """The hub's files: two variants, one with byte counts, and the exporter's manifest."""
    root = tmp_path_factory.mktemp("hub") / "datasets"
    documents = [b"the cat sat on the mat number %d" % index for index in range(60)]
    model = tokenizer.train(documents, TokenizerConfig(vocab_size=290))
    (root / "tokenizers").mkdir(parents=True)
    manifest = {"version": "10B", "tokenizers": [], "datasets": []}
    for size in (290, 291):
        (root / "tokenizers" / f"fineweb_{size}_bpe.model").write_bytes(model.proto)
        manifest["tokenizers"].append({"name": f"sp_bpe_{size}", "model_path": f"tokenizers/fineweb_{size}_bpe.model"})
        manifest["datasets"].append({"name": f"fineweb10B_sp{size}", "tokenizer_name": f"sp_bpe_{size}"})
        folder = root / "datasets" / f"fineweb10B_sp{size}"
        encoded = model.encode(documents)
        shards.write_shards(folder, "fineweb_train", encoded[5:], 200)
        val = shards.write_shards(folder, "fineweb_val", encoded[:5], 40)
        if size == 291:
            counts = (shards.TokenStream.open(val)[:] != 1).astype(np.uint16)
            shards.write_shards(folder, "fineweb_val_bytes", [counts], 40)
    (root / "manifest.json").write_text(json.dumps(manifest))
    (root / "docs_selected.jsonl").write_text("not asked for")
    return root.parent


@pytest.fixture
def hub(layout, tmp_path, monkeypatch):
    """`huggingface_hub` over the layout: what it serves, what was fetched, and one cache folder."""
    state = SimpleNamespace(root=tmp_path / "served", cache=tmp_path / "cache", fetched=[])
    shutil.copytree(layout, state.root)

    def entries(self, repo, recursive, repo_type, revision):
        assert (repo, recursive, repo_type, revision) == (REPO, True, "dataset", "abc123")
        for path in sorted(state.root.rglob("*")):
            name = path.relative_to(state.root).as_posix()
            if path.is_dir():
                yield SimpleNamespace(path=name)
            else:
                data = (layout / name).read_bytes()  # what was published, whatever is served now
                lfs = SimpleNamespace(sha256=hashlib.sha256(data).hexdigest()) if name.endswith(".bin") else None
                yield SimpleNamespace(path=name, size=len(data), lfs=lfs)

    def download(repo, path, repo_type, revision, force_download):
        assert (repo, repo_type, revision) == (REPO, "dataset", "abc123")
        local = state.cache / path
        if force_download or not local.exists():
            state.fetched.append(path)
            local.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(state.root / path, local)
        return str(local)

    def info(self, repo, repo_type):
        if repo != REPO:
            raise huggingface_hub.errors.HFValidationError(f"no repository {repo}\nmore lines")
        return SimpleNamespace(sha="abc123")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", info)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", entries)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return state


def test_only_what_was_asked_for(context, hub, layout):
    stage = tokenize(context, hub=REPO, variant="sp290", train_shards=2)
    outputs = [name for name in stage.manifest.outputs if name.startswith("fineweb_train")]
    assert outputs == ["fineweb_train_000000.bin", "fineweb_train_000001.bin"]
    folder = layout / "datasets/datasets/fineweb10B_sp290"
    val = shards.TokenStream.open(sorted(folder.glob("fineweb_val_*.bin")))
    assert token_stages.open_split(stage, "val")[:].tolist() == val[:].tolist()
    assert not any("docs_selected" in path or "sp291" in path for path in hub.fetched)
    assert sum("fineweb_train" in path for path in hub.fetched) == 2
    assert stage.manifest.details["train_shards_published"] > 2
    entry = stage.manifest.inputs["fineweb_train_000001.bin"]
    assert entry.path == f"hf://datasets/{REPO}@abc123/datasets/datasets/fineweb10B_sp290/fineweb_train_000001.bin"


def test_byte_counts_come_along(context, hub):
    stage = tokenize(context, hub=REPO, variant="sp291")
    assert stage.manifest.details["bytes_from"] == "sidecar"
    assert set(token_stages.token_bytes(stage).tolist()) == {0, 1}


def test_published_byte_counts_are_outside_of_the_glob_for_tokens(context, hub):
    stage = tokenize(context, hub=REPO, variant="sp291")
    assert "val_bytes_000000.bin" in stage.manifest.outputs
    read = shards.TokenStream.open(sorted(stage.path.glob("fineweb_val_*.bin")))
    assert len(read) == len(token_stages.open_split(stage, "val"))


def test_variant_of_the_vocabulary(context, hub):
    def wanting(size):
        return context.replace(config=configs.load(assignments=[f"tokenizer.vocab_size={size}"]))

    assert tokenize(wanting(291), hub=REPO).manifest.details["variant"] == "sp291"
    assert tokenize(wanting(290), hub=REPO).manifest.details["variant"] == "sp290"
    unnamed = context.replace(assignments=())
    with pytest.raises(PgolfError, match="has 2 variants; choose --variant from sp290, sp291"):
        tokenize(unnamed, hub=REPO)
    assert tokenize(unnamed.replace(assignments=("tokenizer.vocab_size=290",)), hub=REPO, variant="sp291")
    folder = hub.root / "datasets/datasets"
    (folder / "fineweb10B_sp291").rename(folder / "fineweb10B_sp290_caseops")
    with pytest.raises(PgolfError, match="has 2 variants of 290 pieces"):
        select(_Mirror(str(hub.root)), None, 290, None)
    assert {configs.load(name).tokenizer.vocab_size for name in ("record", "record-caseops")} == {8192}


def test_as_many_train_shards_as_the_challenges_script(context, hub, layout, monkeypatch):
    published = len(list((layout / "datasets/datasets/fineweb10B_sp290").glob("fineweb_train_*")))
    stage = tokenize(context, hub=REPO, variant="sp290")
    assert stage.manifest.config["options"]["train_shards"] == published > 3
    monkeypatch.setattr("pgolf.data.hub.TRAIN_SHARDS", 3)
    stage = tokenize(context.replace(name="three"), hub=REPO, variant="sp290")
    assert sum(name.startswith("fineweb_train") for name in stage.manifest.outputs) == 3


def test_a_large_download_is_asked_for(context, hub, layout, monkeypatch):
    monkeypatch.setattr("stages.register.ASK_BYTES", 1000)
    asked = []

    def answering(answer):
        return context.replace(ask=lambda question: asked.append(question) or answer)

    for one in (context, answering(False)):
        with pytest.raises(PgolfError, match=r"sp290: (\d+) of \1 train shards, .* GB: .* --train-shards \1, or"):
            tokenize(one, hub=REPO, variant="sp290")
    assert not any(path.endswith(".bin") for path in hub.fetched)
    assert not (context.run / "tokenize").exists()
    assert len(asked) == 1
    tokenize(context.replace(name="named"), hub=REPO, variant="sp290", train_shards=2)
    tokenize(context.replace(name="here"), hub=str(layout), variant="sp290")
    made = tokenize(answering(True), hub=REPO, variant="sp290")
    assert asked == ["Download 0.0 GB?"] * 2
    assert tokenize(context, hub=REPO, variant="sp290").manifest == made.manifest  # nothing is left to download


def test_the_help_names_what_the_library_knows():
    shown = " ".join(inspect.getsource(cli.tokenize).split())
    assert all(name in shown for name in KNOWN)
    assert f"default: {TRAIN_SHARDS}," in shown


def test_a_second_time_nothing_is_fetched(context, hub):
    first = tokenize(context, hub=REPO, variant="sp290", train_shards=1)
    hub.fetched.clear()
    assert tokenize(context, hub=REPO, variant="sp290", train_shards=1).manifest == first.manifest
    assert hub.fetched == []
    tokenize(context, hub=REPO, variant="sp290", train_shards=2)
    assert [path.rpartition("/")[2] for path in hub.fetched] == ["fineweb_train_000001.bin"]


@pytest.mark.parametrize("damage", [lambda data: data[:-4], lambda data: data[:-1] + b"\x7f"])
def test_a_damaged_copy_is_refetched(context, hub, damage):
    tokenize(context, hub=REPO, variant="sp290")
    broken = hub.cache / "datasets/datasets/fineweb10B_sp290/fineweb_val_000000.bin"
    data = broken.read_bytes()
    broken.unlink()  # the stage holds a hard link to it
    broken.write_bytes(damage(data))
    hub.fetched.clear()
    stage = tokenize(context.replace(name="again"), hub=REPO, variant="sp290")
    assert hub.fetched == ["datasets/datasets/fineweb10B_sp290/fineweb_val_000000.bin"]
    assert stage.file("fineweb_val_000000.bin").read_bytes() == data


@pytest.mark.parametrize(
    ("damage", "message"),
    [(lambda data: data[:-4], "bytes, found"), (lambda data: data[:-1] + b"\x7f", "expected SHA-256")],
)
def test_a_bad_published_file_is_refused(context, hub, damage, message):
    bad = hub.root / "datasets/datasets/fineweb10B_sp290/fineweb_val_000000.bin"
    bad.write_bytes(damage(bad.read_bytes()))
    with pytest.raises(PgolfError, match=message) as caught:
        tokenize(context, hub=REPO, variant="sp290")
    assert "fineweb_val_000000.bin" in str(caught.value)
    assert not (context.run / "tokenize").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hub": "no/such"}, "the hub's dataset no/such: no repository no/such; records name willdepueoai/"),
        (
            {"hub": REPO},
            "has 0 variants of 1,024 pieces; choose --variant from sp290, sp291, .* kevclark/parameter-golf",
        ),
        ({"hub": REPO, "variant": "sp1024"}, "has no variant sp1024; choose --variant from sp290, sp291"),
        ({"hub": REPO, "variant": "sp290", "train_shards": 99}, "--train-shards 99: .* has [0-9]+ of variant sp290"),
        ({"hub": REPO, "variant": "sp290", "train_shards": 0}, "--train-shards is 0"),
        ({"hub": REPO, "train": ["a.txt"]}, "leave the documents out"),
        ({"hub": REPO, "shards": "x"}, "leave --shards and --tokenizer out"),
    ],
)
def test_what_cannot_be_fetched(context, hub, arguments, message):
    with pytest.raises(PgolfError, match=message):
        tokenize(context, **arguments)


@pytest.mark.parametrize("prefix", ["", "datasets"])
def test_a_folder_with_the_layout_serves_as_well(context, layout, prefix):
    stage = tokenize(context, hub=str(layout / prefix), variant="sp290")
    assert len(token_stages.open_split(stage, "val")) > 5


def test_a_url_with_the_layout_serves_as_well(context, layout):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(layout / "datasets"), "/mirror/", recursive=True)
    stage = tokenize(context, hub="memory://mirror", variant="sp290")
    assert len(token_stages.open_split(stage, "val")) > 5


def test_without_a_manifest_the_tokenizer_is_found_by_its_size(context, hub):
    (hub.root / "datasets/manifest.json").unlink()
    stage = tokenize(context, hub=REPO, variant="sp290")
    assert stage.manifest.details["vocab_size"] == 290
    (hub.root / "datasets/tokenizers/fineweb_290_bpe.model").unlink()
    with pytest.raises(PgolfError, match="no SentencePiece model for variant sp290"):
        tokenize(context.replace(name="x"), hub=REPO, variant="sp290")


def test_a_folder_without_shards(context, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(PgolfError, match="holds no shards in the challenge's layout"):
        tokenize(context, hub=str(tmp_path / "empty"))


@pytest.mark.parametrize("path", ["datasets/../../../escaped.bin", "/etc/passwd", "a\\..\\b"])
def test_a_name_that_leads_outside_is_refused(path):
    with pytest.raises(PgolfError, match="outside of itself"):
        RemoteFile(path, 10, None)
    assert RemoteFile("datasets/a..b/x.bin", 10, None).bytes == 10


def test_the_client_is_whole_without_anybody_having_imported_its_parts():
    """The client loads its submodules when they are named: `huggingface_hub.utils` alone is an AttributeError."""
    code = "from pgolf.data import hub; hub._HuggingFace('no/network')"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stderr.strip().splitlines()[-1].startswith("pgolf.errors.PgolfError: cannot read the hub's dataset")
