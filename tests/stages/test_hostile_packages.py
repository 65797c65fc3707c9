"""Packages that lie: none is called true, whatever it says about itself (more attacks in tests/attacks).

The liar is consistent: hashes, ledger and claims agree with each other and with what pgolf computes from the package's
own files. The scoring process runs inside this one, for speed; test_package.py runs it in its sandbox.
"""

import contextlib
import functools
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from lying_packages import claims_again

from pgolf.errors import PgolfError
from pgolf.progress import Silent
from pgolf.sandbox import NAMESPACES, NOTHING, Outcome
from pgolf.tokens.shards import TokenStream, write_shards
from stages import verify as stage
from stages.verify import CANNOT, FAIL, PASS, Options, answer_of, verify
from stages.workers import verify_worker


@pytest.fixture(autouse=True)
def here(monkeypatch, chain):
    """Run the worker in this process; the checkout is the one that made the package, whatever was edited since."""
    monkeypatch.setattr(stage, "git_commit", lambda: chain.packaged.manifest.pgolf["commit"])

    def run(arguments, *_, **__):
        said = io.StringIO()
        with monkeypatch.context() as patched, contextlib.redirect_stdout(said):
            patched.setattr(sys, "argv", ["worker", arguments[-1]])
            verify_worker.main()
        return Outcome(0, said.getvalue(), "", "", NAMESPACES)

    monkeypatch.setattr(stage.sandbox, "run", run)
    monkeypatch.setattr(stage.packages, "remake", functools.cache(stage.packages.remake))


@pytest.fixture
def run(chain, tmp_path) -> Path:
    """A copy of the whole run that a test may change."""
    return Path(shutil.copytree(chain.packaged.path.parent, tmp_path / "run"))


@pytest.fixture
def package(run) -> Path:
    return run / "package"


def check(folder, documents, **options):
    """(answer, the check that decides, its detail); the text is the verifier's own documents unless said otherwise."""
    chosen = Options(**{"val": documents[1], "device": "cpu", "threads": 1} | options)
    checks = verify(folder, chosen, Silent())
    answer = answer_of(checks)
    decides = next(one for one in checks if one.answer == answer)
    return (answer, "", "") if answer == PASS else (answer, decides.what, decides.detail)


def consistent(folder, val, monkeypatch, **claimed):
    """Claim what the verifier's own process computes from the package's files."""
    found = {}
    honest = verify_worker._answer
    with monkeypatch.context() as patched:
        patched.setattr(verify_worker, "_answer", lambda job: found.setdefault("answer", honest(job)))
        patched.setattr(stage._Package, "code", lambda self: "left out")
        claims_again(folder, lambda claims: None)
        checks = verify(folder, Options(val=val, device="cpu", threads=1), Silent())
    assert "answer" in found, checks
    answer = found["answer"]

    def change(claims):
        claims["text"] = answer["text"]
        for name, score in claims["scores"].items():
            score |= answer["scores"][name] | claimed

    claims_again(folder, change)


def one_letter(folder: Path, documents: Path) -> bytes:
    """A tokenizer whose normalizer makes one letter of all."""
    rules = folder / "rules.tsv"
    letters = [chr(code) for code in range(33, 127) if chr(code) != "a"]
    rules.write_text("".join(f"{ord(letter):X}\t61\n" for letter in letters))
    texts = [json.loads(line)["text"] for line in documents.read_text("utf-8").splitlines()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(part for text in texts for part in text.split("\n")),
        model_writer=model,
        vocab_size=300,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_tsv=str(rules),
        add_dummy_prefix=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=9,
    )
    return model.getvalue()


@pytest.mark.parametrize("forged", [True, False], ids=["forged", "admitted"])
def test_a_lossy_tokenizer_is_never_true(package, documents, tmp_path, monkeypatch, forged):
    (package / "tokenizer.model").write_bytes(one_letter(tmp_path, documents[0]))
    # A lossy tokenizer has no canonical pairs, and that alone would end the check.
    monkeypatch.setattr("pgolf.evaluate.canonical.barred", lambda tokenizer, device: None)
    consistent(package, documents[1], monkeypatch, lossless=forged)
    answer, what, detail = check(package, documents)
    assert (answer, what) == (FAIL, "bytes")
    assert "do not come back" in detail
    assert ("claimed to be lossless" in detail) == forged


def test_a_score_that_learns_is_not_a_sliding_score(package, documents):
    def sold(claims):
        claims["scores"] = {"sliding": claims["scores"]["ttt"]}

    claims_again(package, sold)
    assert check(package, documents)[:2] == (FAIL, "claims")

    def hidden(claims):
        del claims["scores"]["sliding"]["settings"]["ttt"]

    claims_again(package, hidden)
    answer, what, detail = check(package, documents)
    assert (answer, what) == (FAIL, "scores")
    assert detail.startswith("sliding: ")


@pytest.mark.parametrize("documents_left", [True, False], ids=["documents", "shards alone"])
def test_a_sidecar_of_the_packages_own_run_is_not_evidence(
    run, package, documents, monkeypatch, tmp_path, documents_left
):
    tokens = run / "tokenize"
    sidecar = next(tokens.glob("val_bytes_*.bin"))
    counts = np.asarray(TokenStream.open([sidecar])[:]).astype(np.uint16) * 2
    sidecar.unlink()
    write_shards(tokens, "val_bytes", iter([counts]), len(counts))
    manifest = json.loads((tokens / "manifest.json").read_text())
    lying = dict(manifest, inputs={}, config=manifest["config"] | {"options": {"shards": True}})
    (tokens / "manifest.json").write_text(json.dumps(lying))
    consistent(package, tokens, monkeypatch)
    if documents_left:
        for entry in manifest["inputs"].values():
            entry["path"] = str((Path("/") / entry["path"]) if entry["path"].startswith("/") else documents[1])
        manifest["inputs"]["val:0"]["path"] = str(documents[1])
        (tokens / "manifest.json").write_text(json.dumps(manifest))
        assert check(package, documents, val=None)[:2] == (FAIL, "bytes")
    else:
        answer, what, detail = check(package, documents, val=None)
        assert (answer, what) == (CANNOT, "bytes")
        assert "--val" in detail
    assert check(package, documents)[:2] == (FAIL, "bytes")  # on the verifier's own documents


def test_shards_without_byte_counts_need_a_tokenizer_of_the_verifiers(chain, package, documents, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for path in chain.tokens.path.glob("fineweb_val_0*.bin"):
        shutil.copy(path, shards)
    answer, what, detail = check(package, documents, val=shards)
    assert (answer, what) == (CANNOT, "bytes")
    assert "--tokenizer" in detail
    assert check(package, documents, val=shards, tokenizer=chain.tokens.path / "tokenizer.model")[0] == PASS
    other = tmp_path / "other.model"
    other.write_bytes(one_letter(tmp_path, documents[0]))
    answer, what, detail = check(package, documents, val=shards, tokenizer=other)
    assert (answer, what) == (FAIL, "bytes")
    assert "not that of the shards" in detail


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("train_gpt.py", lambda data: data + b"\nimport os; os.system('true')\n"),
        (
            "train_gpt.py",
            lambda data: data.replace(b"\nimport brotli,", b"\nimport os;os.system('true')\nimport brotli,", 1),
        ),
        ("requirements.txt", lambda data: b"--index-url https://elsewhere.example/simple\n" + data),
        ("requirements.txt", lambda data: data + b"torch @ https://elsewhere.example/torch.whl\n"),
        ("requirements.txt", lambda data: data + b"some-helper==1.0\n"),
    ],
    ids=["appended", "in the loader", "index", "url", "helper"],
)
def test_code_that_pgolf_did_not_make_is_not_true(package, documents, name, change):
    (package / name).write_bytes(change((package / name).read_bytes()))
    claims_again(package, lambda claims: None)
    answer, what, detail = check(package, documents)
    assert (answer, what) == (FAIL, "code")
    assert name in detail


def test_cap_and_what_counts_are_the_verifiers(package, documents):
    size = sum((package / name).stat().st_size for name in ("model.pgz", "train_gpt.py"))
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["details"]["ledger"]["cap_bytes"] = manifest["config"]["package"]["cap_bytes"] = 1 << 60
    for row in manifest["details"]["ledger"]["files"]:
        row["counted"] = False
    (package / "manifest.json").write_text(json.dumps(manifest))
    assert check(package, documents, cap_bytes=size)[0] == PASS
    answer, what, detail = check(package, documents, cap_bytes=size - 1)
    assert (answer, what) == (FAIL, "size")
    assert f"{size:,}" in detail
    assert check(package, documents, cap_bytes=size, count_tokenizer=True)[:2] == (FAIL, "size")


def test_how_much_is_audited_is_the_verifiers(package, documents, monkeypatch):
    def little(claims):
        audit = {"tokens": 16, "probes": 0, "checks_passed": 9, "checks_failed": 0, "checks_not_run": 0}
        claims["audits"] = {"sliding": audit}

    claims_again(package, little)
    asked = []

    def box(name, model, config, tokens, tokenizer, runtime, settings, whole):
        asked.append((len(tokens), settings.probes, settings.seed))
        raise PgolfError("enough seen")

    monkeypatch.setattr(verify_worker.evaluators, "black_box", box)
    check(package, documents)
    tokens, probes, seed = asked[0]
    assert tokens > 300
    assert probes >= 64
    assert seed is None


def test_control_characters_never_reach_the_screen(package, documents):
    (package / "\x1b[2Jx").write_text("")
    answer, _, detail = check(package, documents)
    assert answer == FAIL
    assert detail.isprintable()
    (package / "\x1b[2Jx").unlink()

    def escape(claims):
        claims["scores"]["\x1b]0;title\x07"] = claims["scores"]["sliding"]

    claims_again(package, escape)
    answer, _, detail = check(package, documents)
    assert answer == FAIL
    assert detail.isprintable()


def test_large_and_deep_files_are_refused_before_they_are_parsed(package, documents):
    script = (package / "train_gpt.py").read_bytes()
    (package / "train_gpt.py").write_bytes(script + b"\n[" * (2 << 20))
    claims_again(package, lambda claims: None)
    answer, what, detail = check(package, documents)
    assert (answer, what) == (FAIL, "files")
    assert "at most" in detail
    (package / "train_gpt.py").write_bytes(script)
    (package / "claims.json").write_text("[" * 100_000 + "]" * 100_000)
    assert check(package, documents)[0] == FAIL


def test_a_score_capped_by_the_clock_is_refused_by_verify(package, documents, monkeypatch):
    def capped(claims):
        claims["scores"] = {"ttt": claims["scores"]["ttt"]}
        claims["scores"]["ttt"]["settings"]["ttt"]["seconds"] = 5.0
        claims["scores"]["ttt"]["bits_per_byte"] += 0.01

    claims_again(package, capped)
    monkeypatch.setattr(stage._Package, "code", lambda self: "left out")
    answer, what, detail = check(package, documents)
    assert (answer, what) == (CANNOT, "scores")
    assert "depends on the machine" in detail


def test_another_text_and_another_folder_cannot_be_checked(run, package, documents, tmp_path):
    answer, what, detail = check(package, documents, val=documents[0])
    assert (answer, what) == (CANNOT, "bytes")
    assert "not the text" in detail
    assert check(package, documents, val=tmp_path / "nothing")[0] == CANNOT
    with pytest.raises(PgolfError, match="cannot check"):
        verify(run / "train", Options(), Silent())
    assert check(run, documents)[0] == PASS  # a run finds its package


def test_code_is_not_run_without_a_sandbox_unless_trusted(package, documents, monkeypatch):
    monkeypatch.setattr(stage.sandbox, "available", lambda: NOTHING)
    monkeypatch.setattr(stage.sandbox, "reasons", lambda: "namespaces: forbidden here")
    answer, what, detail = check(package, documents, run_code=True)
    assert (answer, what) == (CANNOT, "script")
    assert "forbidden here" in detail
    assert "--trust" in detail


def test_tolerance_follows_the_arithmetic(package, documents):
    def moved(claims):
        claims["scores"]["sliding"]["bits_per_byte"] += 2e-5

    claims_again(package, moved)
    assert check(package, documents)[:2] == (FAIL, "scores")

    def on_gpu(claims):
        claims["scores"]["sliding"] |= {"device": "cuda", "dtype": "bfloat16"}

    claims_again(package, on_gpu)
    assert check(package, documents)[0] == PASS
