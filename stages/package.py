"""Package a quantized model: the coded weights, one script that trains and scores, what it claims, and the ledger.

The folder runs by itself: `train_gpt.py` holds exactly the modules that `stages.script` reaches by imports, and
`requirements.txt` names what those import from elsewhere. `claims.json` is what `pgolf verify` holds it to.
"""

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pgolf import config as configs
from pgolf.codec import container
from pgolf.codec import ledger as codec_ledger
from pgolf.config import Config
from pgolf.errors import CheckFailed
from pgolf.package import program, script
from pgolf.package.ledger import MODEL, SCRIPT, TOKENIZER, File, Ledger, code_lines
from pgolf.store import kinds
from pgolf.store.stage_directory import Stage
from stages.context import StageContext
from stages.views import claims, evaluation
from stages.views.models import load_quantized

ENTRY = "stages.script"
REQUIREMENTS = kinds.REQUIREMENTS
_GUESSES = 4  # at the size of the script


def package(context: StageContext, source: Stage) -> Stage:
    """Make the `package` stage from a `quantize` stage and the scores and audits that its run holds of it.

    Raises CheckFailed when what counts is over `package.cap_bytes`; then nothing is written.
    """
    settings = context.config.package
    scores = claims.scores_of(source, context.run)
    audits = claims.audits_of(source, context.run, scores)
    inputs = {"model": source, **scores, **{f"audit:{name}": stage for name, stage in audits.items()}}
    with context.build("package", inputs=inputs, sections=("package",)) as build:
        if build.existing is None:
            tokenizer = source.ancestor("tokenize").file(TOKENIZER).read_bytes()
            with context.reporter.progress("package", total=3) as bar:
                model = container.encode(load_quantized(source), coder=settings.coder)
                bar.update(1, note="the weights are coded")
                recorded = {"config": claims.recorded_config(source, scores, context.config)}
                made = program.make(ENTRY, _everything(recorded), _on_gpu(source, scores))
                bar.update(2, note="the script is minified")
                libraries = sorted({*made.libraries, *script.LIBRARIES})
                packed = script.pack(made.modules, recorded)
                plain = script.pack(made.sources, recorded)
                bar.update(3)
            ledger = Ledger(
                files=(
                    File(MODEL, len(model), True),
                    File(SCRIPT, len(packed.data), settings.count_code),
                    File(TOKENIZER, len(tokenizer), settings.count_tokenizer),
                ),
                code=code_lines(made.sources, made.modules, script.sizes(made.modules, recorded, packed)),
                model=_roles(model),
                readings={
                    "shipped": len(packed.data),
                    "packed": len(plain.data),
                    "minified_packed": len(packed.data),
                    "sources": sum(len(text.encode("utf-8")) for text in made.sources.values()),
                },
                cap_bytes=settings.cap_bytes,
            )
            _refuse_over_cap(ledger)
            files = {
                MODEL: model,
                SCRIPT: packed.data,
                TOKENIZER: tokenizer,
                REQUIREMENTS: requirements(libraries).encode(),
            }
            claimed = claims.claim(source, scores, audits, files)
            files[claims.FILE] = (json.dumps(claimed, indent=2) + "\n").encode()
            for name, content in files.items():
                build.writer.path(name).write_bytes(content)
            build.metrics |= {
                "model_bytes": ledger.bytes_of(MODEL),
                "code_bytes": ledger.bytes_of(SCRIPT),
                "total_bytes": ledger.total_bytes,
            }
            build.details |= {"ledger": ledger.to_dict(), "claims": claimed}
    return build.stage


def reserved(source: Stage, config: Config) -> dict[str, int]:
    """Bytes of the byte target that the files beside the model will take, by file, before there is a model.

    source: the float model; config: what it will be quantized and scored with. The script holds the model's own target,
    and a compressor's size jumps with every digit, so the script is made for the target that it leaves until both agree
    within a thousandth of the script; if they never do, the largest one counts. A two-thousandth is left free, for
    settings of a score that cannot be known yet.
    """
    found = {}
    if config.package.count_tokenizer:
        found[TOKENIZER] = source.ancestor("tokenize").file(TOKENIZER).stat().st_size
    if config.package.count_code:
        target = config.quantize.target_bytes - sum(found.values())
        guesses = [0]
        for _ in range(_GUESSES):
            planned = {"config": _planned(source, config, max(1, target - guesses[-1]))}
            made = program.make(ENTRY, _everything(planned), _on_gpu(source, {}))
            size = len(script.pack(made.modules, planned).data)
            if size <= guesses[-1] <= size + size // 1000:
                break
            guesses.append(size + size // 2000)
        else:
            guesses.append(max(guesses))
        found[SCRIPT] = guesses[-1]
    return found


def _planned(source: Stage, config: Config, target: int) -> dict[str, Any]:
    """What will be recorded in the script when the model gets `target` bytes and is scored as configured."""
    quantize = dataclasses.replace(config.quantize, target_bytes=target)
    evaluate = evaluation.resolve(config.evaluate, source)
    return claims.planned_config(source, dataclasses.replace(config, quantize=quantize, evaluate=evaluate))


def requirements(libraries: Sequence[str]) -> str:
    """The lines of `requirements.txt` for imported top-level names: the distribution of each, at its version here."""
    owners = importlib.metadata.packages_distributions()
    lines = set()
    for library in libraries:
        for distribution in owners.get(library, [library])[:1]:
            version = importlib.metadata.version(distribution).partition("+")[0]  # without the build: "+cpu"
            lines.add(f"{distribution.lower()}=={version}\n")
    return "".join(sorted(lines))


def _everything(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The whole configuration, its defaults filled in, as JSON has it: lists, no tuples."""
    return dict(configs.to_dict(configs.from_dict(recorded["config"])))


def _on_gpu(source: Stage, scores: Mapping[str, Stage]) -> bool:
    """Whether any of the work that the script repeats was done on a GPU."""
    stages = [source, *claims.ancestors(source), *scores.values()]
    return any(stage.manifest.environment.get("device") == "cuda" for stage in stages)


def _roles(model: bytes) -> list[dict[str, Any]]:
    """Bytes of the container per tensor role, whole bytes that sum to its size; an entropy coder's shares are not."""
    found = codec_ledger.ledger(model)
    rows: list[dict[str, Any]] = []
    exact, given = 0.0, 0
    for line in found.roles():
        exact += line.bytes
        rows.append({"role": line.role, "weights": line.weights, "bytes": round(exact) - given})
        given = round(exact)
    return [*rows, {"role": "header", "weights": 0, "bytes": len(model) - given}]


def _refuse_over_cap(ledger: Ledger) -> None:
    if ledger.over <= 0:
        return
    counted = ", ".join(f"{file.file} {file.bytes:,}" for file in ledger.files if file.counted)
    target = ledger.bytes_of(MODEL) - ledger.over
    remedy = (
        f"pgolf quantize --target-bytes {target} leaves room for the rest"
        if target > 0
        else "what counts besides the model is over it alone"
    )
    raise CheckFailed(
        f"the package has {ledger.counted_bytes:,} bytes ({counted}), {ledger.over:,} over the cap of "
        f"{ledger.cap_bytes:,}: {remedy}"
    )
