"""The challenge's records folder, filled from the manifests of packaged runs that differ in their seed alone.

One folder `<YYYY-MM-DD>_<Name>`: README.md, submission.json, a log per seed, the script and its requirements. Fields
and sections are those of the challenge's merged records; every figure is read out of a manifest. The weights stay out,
as in every record; the package of the run has them.
"""

import json
import re
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf import config as configs
from pgolf.config import Config
from pgolf.errors import PgolfError
from pgolf.program.ledger import SCRIPT, TOKENIZER
from pgolf.store import kinds, runs, stage_directory
from pgolf.store.records import AuditDetails, PackageDetails, PackageMetrics, ScoreMetrics, TrainMetrics
from pgolf.store.stage_directory import Stage
from pgolf.training import train_log
from stages.reports import credits, submission_text
from stages.reports.compare import Comparison
from stages.verify import REQUIREMENTS
from stages.views import claims, proofs
from stages.views.proofs import Proof

TRACKS = ("10min_16mb", "non_record_16mb")
SIZE_LIMIT, TIME_LIMIT = 16_000_000, 600.0  # bytes, and seconds each of training and of evaluation (the challenge's)


@dataclass(frozen=True)
class Author:
    """Who submits; the only thing in the folder that no manifest knows."""

    author: str
    github_id: str
    name: str
    blurb: str


@dataclass(frozen=True)
class Seed:
    """The data of one run in a submission."""

    run: Path
    package: Stage
    quantized: Stage
    train: Stage | None
    scores: Mapping[str, Stage]
    float_score: Stage | None
    proof: Proof | None = None
    """Of `best`; one that no longer holds says why."""

    @property
    def number(self) -> int:
        return self.train.manifest.seed if self.train is not None else self.quantized.manifest.seed

    @property
    def best(self) -> Stage:
        """The score submitted: with test-time training where there is one."""
        return self.scores.get("eval-ttt") or self.scores["eval-sliding"]

    def results(self) -> dict[str, Any]:
        """The challenge's `seed_results` entry."""
        metrics = self.best.manifest.metrics_as(ScoreMetrics)
        package = self.package.manifest.metrics_as(PackageMetrics)
        found: dict[str, Any] = {
            "val_loss": metrics["nats_per_token"],
            "val_bpb": metrics["bits_per_byte"],
            "artifact_bytes": package["total_bytes"],
            "bytes_model": package["model_bytes"],
            "bytes_code": package["code_bytes"],
            "eval_time_s": metrics["seconds"],
        }
        if self.train is not None:
            trained = self.train.manifest.metrics_as(TrainMetrics)
            steps, seconds = trained["iterations"], trained["seconds"]
            found |= {"steps": steps, "train_time_s": seconds, "step_avg_ms": round(1000 * seconds / max(1, steps), 3)}
        if "eval-ttt" in self.scores and "eval-sliding" in self.scores:
            before = self.scores["eval-sliding"].manifest.metrics_as(ScoreMetrics)["bits_per_byte"]
            found |= {"pre_ttt_val_bpb": before, "ttt_gain_bpb": metrics["bits_per_byte"] - before}  # negative: a gain
        if self.float_score is not None:
            found["pre_quant_val_bpb"] = self.float_score.manifest.metrics_as(ScoreMetrics)["bits_per_byte"]
        if self.proof is not None and not self.proof.stale:
            found["proof"] = self.proof.record()
        return found


def read_seed(run: Path, variant: str | None = None) -> Seed:
    """The stages of one packaged run, or of a variant of it.

    Raises PgolfError when it is not packaged, or its package claims no score.
    """
    label = "package" if variant is None else f"package@{variant}"
    if not stage_directory.exists(run / label):
        packaged = [
            path.name for path in stage_directory.stage_folders(run) if path.name.partition("@")[0] == "package"
        ]
        if not packaged:
            what = f"pgolf package --run {run.name} makes it" if run.is_dir() else runs.missing(run)
            raise PgolfError(f"{run} has no package: {what}")
        raise PgolfError(f"{run} has no {label}; it has {', '.join(packaged)}: choose with --variant")
    package = stage_directory.open_stage(run / label, ("package",))
    quantized = package.parent("model")
    lineage = {stage.manifest.stage: stage for stage in claims.ancestors(quantized)}
    scores = {role: package.parent(role) for role in claims.SCORES if role in package.manifest.inputs}
    if not scores:
        raise PgolfError(f"{package.path} claims no score: run pgolf eval --ttt, then pgolf package")
    floats = claims.scores_of(quantized.parent("model"), run)
    best = "eval-ttt" if "eval-ttt" in scores else "eval-sliding"
    # Of the package, of the evaluation that it claims, or of one that it no longer does.
    mine = [package, scores[best], *(stage for stage in runs.stages_of(run) if stage.manifest.stage == "prove")]
    made = [proof for proof in proofs.proofs_of(mine) if f"eval-{proof.score}" == best]
    proof = proofs.valid(mine, best) or (made[-1] if made else None)
    return Seed(run, package, quantized, lineage.get("train"), scores, floats.get("eval-sliding"), proof)


def submission(
    out: Path, seeds: Sequence[Seed], author: Author, track: str, comparison: Comparison | None = None
) -> Path:
    """Write the folder below `out` and return its path.

    comparison: of the record to beat (reference) with these runs (candidate). Raises PgolfError when the runs differ in
    more than their seed, or the folder exists.
    """
    if track not in TRACKS:
        raise PgolfError(f"--track {track!r}: choose {' or '.join(TRACKS)}")
    _same_but_seed(seeds)
    date = max(seed.package.manifest.started for seed in seeds)[:10]
    words = re.findall(r"\w+", author.name)  # a name with "/" or ".." must not lead out of the folder
    title = "".join(word[0].upper() + word[1:] for word in words) or "Run"
    folder = out / f"{date}_{title}"
    if folder.exists():
        raise PgolfError(f"{folder} exists; choose another --out or --name")
    entry = describe(seeds, author, track, date, comparison)
    stage_directory.sweep(out)
    writer = stage_directory.StageWriter(folder)
    try:
        for name in (SCRIPT, REQUIREMENTS, TOKENIZER):
            shutil.copyfile(seeds[0].package.file(name), writer.path(name))
        for seed in seeds:
            writer.path(f"train_seed{seed.number}.log").write_text(log(seed), "utf-8")
        text = json.dumps(entry, indent=2, ensure_ascii=False, allow_nan=False)
        writer.path("submission.json").write_text(text + "\n", "utf-8")
        writer.path("README.md").write_text(
            submission_text.readme(seeds, entry, settings(seeds[0]), comparison), "utf-8"
        )
        writer.publish()
    finally:
        writer.discard()
    return folder


def describe(
    seeds: Sequence[Seed], author: Author, track: str, date: str, comparison: Comparison | None
) -> dict[str, Any]:
    """The content of `submission.json`."""
    results = {str(seed.number): seed.results() for seed in seeds}
    scores = [result["val_bpb"] for result in results.values()]
    losses = [result["val_loss"] for result in results.values()]
    sizes = [result["artifact_bytes"] for result in results.values()]
    environment = seeds[0].best.manifest.environment
    entry: dict[str, Any] = {
        "author": author.author,
        "github_id": author.github_id,
        "name": author.name,
        "date": date,
        "track": track,
        "blurb": author.blurb,
        "val_bpb": statistics.fmean(scores),
        "val_loss": statistics.fmean(losses),
        "bytes_total": max(sizes),
        "bytes_code": max(result["bytes_code"] for result in results.values()),
        "artifact_bytes_mean": round(statistics.fmean(sizes)),
        "artifact_bytes_max": max(sizes),
        "seeds": [seed.number for seed in seeds],
        "seed_results": results,
        "hardware": hardware(environment),
        "pytorch_version": environment["torch"],
        "technique_summary": summary(seeds[0]),
        "compliance": _compliance(seeds, results),
        "attribution": credits.of(configs.recorded(_recorded(seeds[0])), "eval-ttt" in seeds[0].scores),
    }
    entry["reproducibility_notes"] = (
        f"{submission_text.tokenizing(seeds[0])} makes the shards; README.md, How to run, has the lines that train and "
        "score; seeds differ by --seed alone."
    )
    if built := re.search(r"\+cu(\d+)(\d)", environment["torch"]):  # "2.9.1+cu128"
        entry["cuda_version"] = f"{built[1]}.{built[2]}"
    for key in ("steps", "step_avg_ms", "train_time_s", "eval_time_s"):
        if all(key in result for result in results.values()):
            name = f"train_{key}_mean" if key == "steps" else f"{key}_mean"
            entry[name] = round(statistics.fmean(result[key] for result in results.values()), 3)
    if len(seeds) > 1:
        entry |= {"val_bpb_std": statistics.stdev(scores), "val_loss_std": statistics.stdev(losses)}
    if comparison is not None:
        entry |= {
            "comparison_baseline_bpb": comparison.samples[0].mean,
            "delta_vs_base_bpb": comparison.samples[1].mean - comparison.samples[0].mean,  # negative: better
        }
        # The challenge's own bar: better by 0.005 nats per token, the second of the readings.
        if (test := comparison.readings[1].test) is not None:
            entry |= {"t_statistic": test.t, "welch_df": test.degrees, "p_value": test.p}
    return entry


def hardware(environment: Mapping[str, Any]) -> str:
    """As people write it: `8xH100 80GB SXM`, or `2 CPU cores (x86_64)`."""
    name = str(environment["device_name"])
    if environment["device"] == "cuda":
        found = [re.search(pattern, name) for pattern in (r"[A-Z]+\d+[A-Z]?\b", r"\d+ ?GB", r"SXM|PCIe|NVL|HBM3")]
        words = [match[0] for match in found if match] if found[0] else [name.removeprefix("NVIDIA ")]
        return f"{environment['world_size']}x{' '.join(words).replace('HBM3', 'SXM')}"
    cores = environment["world_size"] * environment["threads"]
    return f"{cores} CPU core{'s' * (cores > 1)} ({name})"


def settings(seed: Seed) -> dict[str, dict[str, Any]]:
    """Every setting of the run, section by section, from its manifests; of learning at test time where it learned."""
    values = configs.to_dict(configs.recorded(_recorded(seed)))
    sections = ["tokenizer", "model", "train", "optim", "average", "quantize", "evaluate"]
    return {section: values[section] for section in (*sections, *(["ttt"] if "eval-ttt" in seed.scores else []))}


def _recorded(seed: Seed) -> dict[str, Any]:
    """The settings that are not pgolf's defaults, by section."""
    return claims.recorded_config(seed.quantized, seed.scores, Config())


def summary(seed: Seed) -> str:
    """The technique in one line: the settings that are not pgolf's defaults, and the method of the quantizer."""
    recorded = _recorded(seed)
    recorded["quantize"] = {"method": settings(seed)["quantize"]["method"], **recorded.get("quantize", {})}
    return "; ".join(
        f"{section}: {', '.join(f'{key} = {value}' for key, value in recorded[section].items())}"
        for section in settings(seed)
        if section in recorded
    )


def warnings(seeds: Sequence[Seed], track: str) -> list[str]:
    """What the challenge's reviewers would object to before they read on."""
    found = []
    environment = seeds[0].best.manifest.environment
    if track == "10min_16mb" and (environment["device"] != "cuda" or environment["world_size"] != 8):
        found.append(f"track 10min_16mb wants 8 GPUs; this was made on {hardware(environment)}")
    if len(seeds) < 3:
        found.append(f"records show 3 seeds; this has {len(seeds)}")
    found += [f"the proof of {seed.run.name} does not count: {seed.proof.stale}"
              for seed in seeds if seed.proof is not None and seed.proof.stale]  # fmt: skip
    if not submission_text.is_registered(seeds[0].package.ancestor("tokenize")):
        found.append("the val text is not the challenge's FineWeb shards, so the score does not compare with records")
    return found


def log(seed: Seed) -> str:
    """A training log as the records have them: what the `train` stage wrote while it trained, hyperparameters first;
    then, from the manifests, the later settings, the sizes and the scores."""
    trained, recorded = seed.train, settings(seed)
    lines: list[str] = []
    if trained is not None and kinds.TRAIN_LOG in trained.manifest.outputs:
        lines = trained.file(kinds.TRAIN_LOG).read_text("utf-8").splitlines()
    elif trained is not None:
        version = trained.manifest.pgolf["version"]
        lines = [f"Written from {kinds.METRICS_LOG}: pgolf {version} kept no {kinds.TRAIN_LOG}"]
        lines += train_log.hyperparameters(configs.recorded(trained.manifest.config))
        for text in trained.file(kinds.METRICS_LOG).read_text("utf-8").splitlines():
            step = json.loads(text)
            lines.append(
                f"{step['iteration']}/{trained.manifest.config['train']['iterations']} "
                f"train_loss:{step['loss']:.6f} train_time:{1000 * step['seconds']:.0f}ms"
            )
    later = [section for section in ("quantize", "evaluate", "ttt") if section in recorded]
    lines.append("Hyperparameters of quantization and evaluation:")
    lines += [f"  {section}.{key}: {value}" for section in later for key, value in recorded[section].items()]
    environment = seed.best.manifest.environment
    lines.append(f"val_tokens:{seed.best.manifest.metrics['tokens_scored']}")
    lines.append(f"hardware:{hardware(environment)} torch:{environment['torch']}")
    if seed.float_score is not None:
        lines.append(_scored("diagnostic pre-quantization", seed.float_score))
    ledger, coder = seed.package.manifest.metrics, seed.package.manifest.config["package"]["coder"]
    lines += [
        f"Serialized model quantized+{coder}: {ledger['model_bytes']} bytes",
        f"Code size: {ledger['code_bytes']} bytes",
        f"Total submission size quantized+{coder}: {ledger['total_bytes']} bytes",
    ]
    names = {"eval-sliding": "quantized_sliding_window", "eval-ttt": "quantized_ttt"}
    lines += [_scored(names[kind], stage) for kind, stage in sorted(seed.scores.items())]
    return "\n".join(lines) + "\n"


def _scored(name: str, stage: Stage) -> str:
    metrics = stage.manifest.metrics_as(ScoreMetrics)
    return (
        f"{name} val_loss:{metrics['nats_per_token']:.8f} val_bpb:{metrics['bits_per_byte']:.8f} "
        f"eval_time:{1000 * metrics['seconds']:.0f}ms"
    )


def _compliance(seeds: Sequence[Seed], results: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """The challenge's conditions as far as the manifests record them."""
    found = {
        "artifact_under_16mb": all(result["artifact_bytes"] <= SIZE_LIMIT for result in results.values()),
        "eval_under_600s": all(result["eval_time_s"] <= TIME_LIMIT for result in results.values()),
        "three_seeds": len(seeds) >= 3,
    }
    if all(seed.train is not None for seed in seeds):
        # The weights that were quantized came out of training on train shards; no evaluation is in their lineage.
        lineages = [claims.ancestors(seed.quantized) for seed in seeds]
        kinds = {stage.manifest.stage for lineage in lineages for stage in lineage}
        found["no_pre_quant_ttt"] = not kinds & set(claims.SCORES)
    audits = [passed for seed in seeds if (passed := _audit_passed(seed)) is not None]
    if len(audits) == len(seeds):
        # What the audit tests: causal, normalized, one pass, and scored before learned from.
        found["score_first_ttt" if "eval-ttt" in seeds[0].scores else "causal_and_normalized"] = all(audits)
    if all("train_time_s" in result for result in results.values()):
        found["train_under_600s"] = all(result["train_time_s"] <= TIME_LIMIT for result in results.values())
    return found


def _audit_passed(seed: Seed) -> bool | None:
    """True if all audits of the submitted score's evaluator in the run passed; None when there was none."""
    models = {seed.package.manifest_sha256, seed.quantized.manifest_sha256}
    evaluator = claims.SCORES[seed.best.manifest.stage]
    found = [
        not stage.manifest.details_as(AuditDetails)["failed"]
        for stage in runs.stages_of(seed.run)
        if stage.manifest.stage == "audit"
        and stage.manifest.inputs["model"].sha256 in models
        and stage.manifest.config["options"]["evaluator"] == evaluator
    ]
    return all(found) if found else None


def _same_but_seed(seeds: Sequence[Seed]) -> None:
    if not seeds:
        raise PgolfError("name at least one packaged run")
    numbers = [seed.number for seed in seeds]
    if len(set(numbers)) < len(numbers):
        raise PgolfError(f"two runs have the same seed ({numbers}); every seed counts once")
    first, *others = map(_recorded, seeds)
    for seed, other in zip(seeds[1:], others, strict=True):
        for key in sorted({*first, *other} - {"seed"}):
            if first.get(key) != other.get(key):
                raise PgolfError(f"{seed.run} differs from {seeds[0].run} in [{key}]: seeds of one configuration only")
    texts = {
        json.dumps(seed.package.manifest.details_as(PackageDetails)["claims"]["text"], sort_keys=True) for seed in seeds
    }
    if len(texts) > 1:
        raise PgolfError("the runs were not scored on the same text")
