"""The evaluation stages on a tiny model: scores add up, other documents are scored, options reach the manifest."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.numpy import load_file
from safetensors.torch import save_file

from pgolf import config as configs
from pgolf.errors import PgolfError
from pgolf.evaluate import mixture, scoring_order
from pgolf.model.gpt import GPT
from pgolf.progress import Silent
from pgolf.runtime import Runtime
from pgolf.store.stage_directory import Stage, open_stage
from stages.context import StageContext
from stages.eval_sliding import eval_sliding
from stages.eval_ttt import eval_ttt
from stages.reports import compare
from stages.tokenize import tokenize
from stages.views.evaluation import Documents

WORDS = [
    "the",
    "old",
    "cat",
    "sat",
    "on",
    "a",
    "warm",
    "mat",
    "and",
    "dog",
    "ran",
    "out",
    "to",
    "see",
    "in",
    "red shoes",
]
SETTINGS = [
    "tokenizer.vocab_size=300",
    "model.vocab_size=300",
    "model.dim=16",
    "model.num_layers=1",
    "model.num_heads=2",
    "train.seq_len=32",
    "evaluate.stride=16",
    "ttt.chunk_tokens=16",
]


def documents(path: Path, seed: int, count: int) -> Path:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(5, 40))) + " ½ 猫\n" for _ in range(count)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return path


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    runtime = Runtime(torch.device("cpu"), torch.float32, 0, 1, 1, compile=False)
    run = tmp_path_factory.mktemp("evaluate") / "run"
    return StageContext(run, configs.load(None, None, SETTINGS), runtime, Silent(), ("test",))


@pytest.fixture(scope="module")
def trained(context: StageContext) -> Stage:
    folder = context.run.parent
    train, val = documents(folder / "train.jsonl", 0, 60), documents(folder / "val.jsonl", 1, 12)
    tokens = tokenize(context, train=[train], val=[val])
    with context.build("train", inputs={"tokens": tokens}, sections=("model",)) as build:
        torch.manual_seed(0)
        model = GPT(context.config.model)
        weights = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
        save_file(weights, build.writer.path("model.safetensors"))
        build.details["holdout_tokens"] = 200
    return build.stage


def named(context: StageContext, name: str, *assignments: str) -> StageContext:
    return context.replace(config=configs.load(None, None, assignments, base=context.config), name=name)


def test_sliding_scores_every_byte_of_val(context: StageContext, trained: Stage) -> None:
    stage = eval_sliding(context, trained)
    metrics = stage.manifest.metrics
    lines = (context.run.parent / "val.jsonl").read_text("utf-8").splitlines()
    assert metrics["bytes_scored"] == sum(len(json.loads(line)["text"].encode()) for line in lines)
    scores = load_file(stage.file("scores.safetensors"))
    assert metrics["tokens_scored"] == len(scores["nll"]) == len(scores["token_bytes"])
    bits = scores["nll"].sum(dtype=np.float64) / math.log(2)
    assert metrics["bits_per_byte"] == pytest.approx(bits / scores["token_bytes"].sum(), rel=1e-5)
    assert metrics["seconds"] > 0
    assert metrics["tokens_per_second"] > 0
    assert eval_sliding(context, trained).manifest_sha256 == stage.manifest_sha256


def score_as_rank(rank: int, context: StageContext, trained: Stage) -> None:
    dist.init_process_group("gloo", init_method=f"file://{context.run.parent}/group", rank=rank, world_size=2)
    runtime = dataclasses.replace(context.runtime, world_rank=rank, world_size=2)
    stage = eval_sliding(context.replace(runtime=runtime), trained)
    (context.run.parent / f"rank-{rank}").write_text(stage.manifest_sha256)
    runtime.shutdown()


def test_two_ranks_make_one_stage_with_the_score_of_one(context: StageContext, trained: Stage) -> None:
    alone = eval_sliding(context, trained)
    shared = named(context, "ranks", "evaluate.mixture=true")
    mp.spawn(score_as_rank, (shared, trained), nprocs=2)
    together = eval_sliding(shared, trained)  # up to date: read, not made again
    for rank in (0, 1):
        assert (context.run.parent / f"rank-{rank}").read_text() == together.manifest_sha256
    assert together.manifest.environment["world_size"] == 2
    wanted, found = alone.manifest.metrics["bits_per_byte"], together.manifest.metrics["bits_per_byte"]
    assert found == pytest.approx(wanted, abs=1e-6)
    scores = [load_file(stage.file("scores.safetensors"))["nll"] for stage in (alone, together)]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-6)


def test_two_processes_score_what_one_does(context: StageContext, trained: Stage) -> None:
    """`pgolf eval --ttt --nproc 2`: torchrun with gloo."""
    settings = ("ttt.method=phased", "ttt.phases=2", "ttt.lora_rank=2", "ttt.lora_documents=2", "ttt.seconds=100")
    settings += ("evaluate.tilt_boost=2.5", "evaluate.tilt_order=3")
    command = [
        sys.executable,
        "-m",
        "cli",
        "eval",
        "--ttt",
        "--nproc",
        "2",
        "--from",
        str(trained.path),
        "--name",
        "two",
    ]
    command += ["--artifacts", str(context.run.parent), "--run", context.run.name, "--device", "cpu", "--threads", "1"]
    command += ["--json", *(word for setting in settings for word in ("--set", setting))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "s for scoring alone" in done.stderr
    assert json.loads(done.stdout)["stage"] == "eval-ttt"
    alone = named(context, "one", *settings)
    for made in (eval_sliding(alone, trained), eval_ttt(alone, trained)):
        together = open_stage(context.run / f"{made.manifest.stage}@two")
        assert together.manifest.environment["world_size"] == 2
        assert together.manifest.details["tilt"]["hinted"] == made.manifest.details["tilt"]["hinted"] > 0
        scores = [load_file(stage.file("scores.safetensors"))["nll"] for stage in (made, together)]
        np.testing.assert_allclose(scores[1], scores[0], atol=1e-6)
        assert scoring_order.faults(together.file("order.csv"), len(scores[0])) == []
        assert together.manifest.metrics["bits_per_byte"] == pytest.approx(
            made.manifest.metrics["bits_per_byte"], abs=1e-6
        )


def test_a_mixture_beyond_the_limit_is_refused_with_its_estimate(
    context: StageContext, trained: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixture, "SECONDS_A_TOKEN", 2.0)
    asked = named(context, "long", "evaluate.mixture=true")
    with pytest.raises(PgolfError, match=r"the mixture of [\d,]+ tokens takes about [\d,]+ s and 0 GB on one core"):
        eval_sliding(asked, trained)
    assert not (context.run / "eval-sliding@long").exists()


def test_other_documents_are_scored_with_the_runs_tokenizer(context: StageContext, trained: Stage) -> None:
    other = documents(context.run.parent / "other.jsonl", 2, 3)
    stage = eval_sliding(named(context, "other"), trained, Documents.of([other]))
    texts = [json.loads(line)["text"] for line in other.read_text("utf-8").splitlines()]
    assert stage.manifest.metrics["bytes_scored"] == sum(len(text.encode()) for text in texts)
    assert stage.manifest.details["lossless"] is True


def test_documents_are_whatever_tokenize_takes_and_compare_reads_them_in_the_same_order(
    context: StageContext, trained: Stage
) -> None:
    folder = context.run.parent / "texts"
    folder.mkdir()
    sizes = []
    for index in range(12):  # more than 10: the role `documents:10` sorts before `documents:2`
        text = "abc " * (index + 1)
        sizes.append(len(text))
        (folder / f"{index:02}.jsonl").write_text(json.dumps({"body": text}) + "\n")
    one_by_one = [(folder / f"{index:02}.jsonl").as_uri() if index else folder / "00.jsonl" for index in range(12)]
    for name, texts in (("files", one_by_one), ("folder", [folder])):
        stage = eval_sliding(named(context, name), trained, Documents.of(texts, "body"))
        assert stage.manifest.metrics["bytes_scored"] == sum(sizes)
        assert compare.documents_of(stage).bytes.tolist() == sizes
    (folder / "00.jsonl").write_text('{"body": "changed"}\n')
    with pytest.raises(PgolfError, match=r"texts has changed since .* was made from it"):
        compare.documents_of(stage)


def test_compare_refuses_other_documents_of_the_same_length(context: StageContext, trained: Stage) -> None:
    folder, made = context.run.parent, {}
    for name, texts in {"ab": ["abc ", "hello "], "ba": ["hello ", "abc "], "other": ["abd ", "hello "]}.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"text": text * 20}) + "\n" for text in texts))
        made[name] = eval_sliding(named(context, name), trained, Documents.of([file]))
    again = eval_sliding(named(context, "again", "evaluate.stride=3"), trained, Documents.of([folder / "ab.jsonl"]))
    assert compare.compare(Silent(), [made["ab"]], [again]).paired.documents == 2
    for other in (made["ba"], made["other"]):
        with pytest.raises(PgolfError, match="did not score the same documents in the same order"):
            compare.compare(Silent(), [made["ab"]], [other])


def test_ttt_improves_the_score_and_the_mixture_is_reported_separately(context: StageContext, trained: Stage) -> None:
    fixed = eval_sliding(context, trained).manifest.metrics
    learned = eval_ttt(named(context, "mixed", "evaluate.mixture=true", "ttt.lr=3e-3"), trained).manifest.metrics
    assert learned["bits_per_byte"] < fixed["bits_per_byte"]
    assert learned["mixture_bits_per_byte"] != learned["bits_per_byte"]
    assert learned["bytes_scored"] == fixed["bytes_scored"]


def test_tuning_reads_train_text_and_records_it(context: StageContext, trained: Stage) -> None:
    stage = eval_ttt(named(context, "tuned", "ttt.method=in-place"), trained, tuned=True)
    trials = stage.manifest.details["trials"]
    chosen = stage.manifest.details["ttt"]["in_place_lr"]
    best = min(trials, key=lambda trial: trial["nats_per_token"])
    assert chosen == best["changes"].get("in_place_lr", context.config.ttt.in_place_lr)
    assert stage.manifest.details["tuned_on"] == "held-out train tokens"


def test_a_stage_without_a_model_is_refused(context: StageContext, trained: Stage) -> None:
    with pytest.raises(PgolfError):
        eval_sliding(named(context, "wrong"), trained.parent("tokens"))
    assert not (context.run / "eval-sliding@wrong").exists()
