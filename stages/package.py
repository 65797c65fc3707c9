"""Package a quantized model: coded weights, the script that trains and scores, its claims, a README and the ledger.

The folder runs by itself: `train_gpt.py` holds the modules that `pgolf.program` reaches by imports, and
`requirements.txt` names what those import from elsewhere. `pgolf verify` tests the folder against `claims.json`.
"""

import dataclasses
import importlib.metadata
import json
from collections.abc import Sequence
from typing import Any

from pgolf.bundle import Bundle
from pgolf.codec import container
from pgolf.codec import ledger as codec_ledger
from pgolf.config import Config
from pgolf.errors import CheckFailed
from pgolf.program import build as program
from pgolf.program.ledger import MODEL, README, SCRIPT, TOKENIZER, File, Ledger
from pgolf.progress import Reporter
from pgolf.saved.models import evaluate_settings, load_quantized
from pgolf.store import kinds
from pgolf.store.records import PackageDetails, PackageMetrics, ScoreDetails
from pgolf.store.stage_directory import Stage
from stages.context import StageContext
from stages.reports import package_text
from stages.reports.budget import remedy
from stages.views import claims

REQUIREMENTS = kinds.REQUIREMENTS
_LATER_SETTINGS = 64  # bytes left free for settings of a score that is not made yet


def package(context: StageContext, source: Stage) -> Stage:
    """Make the `package` stage from a `quantize` stage and the scores and audits that its run holds of it.

    Raises CheckFailed when the counted bytes exceed `package.cap_bytes`, PgolfError for scores under different
    settings; then nothing is written.
    """
    settings = context.config.package
    scores = claims.scores_of(source, context.run)
    claims.refuse_mixed(scores)
    audits = claims.audits_of(source, context.run, scores)
    inputs = {"model": source, **scores, **{f"audit:{name}": stage for name, stage in audits.items()}}
    with context.build("package", inputs=inputs, sections=("package",)) as build:
        if build.existing is None:
            for name, stage in scores.items():
                if stage.manifest.details_as(ScoreDetails).get("out_of_time"):
                    context.reporter.message(
                        f"{name} ended its learning by the clock, and the script has none: it gives another score, "
                        "which verify cannot check; score again with more --seconds or --nproc"
                    )
            tokenizer = source.ancestor("tokenize").file(TOKENIZER).read_bytes()
            with context.reporter.progress("code weights"):
                model = container.encode(load_quantized(source), coder=settings.coder)
            recorded = claims.recorded_config(source, scores, context.config)
            made = _script(context.reporter, recorded)
            ledger = Ledger(
                files=(
                    File(MODEL, len(model), True),
                    File(SCRIPT, len(made.script), settings.count_code),
                    File(TOKENIZER, len(tokenizer), settings.count_tokenizer),
                ),
                code=made.modules,
                model=_roles(model),
                cap_bytes=settings.cap_bytes,
            )
            _refuse_over_cap(ledger)
            files = {
                MODEL: model,
                SCRIPT: made.script,
                TOKENIZER: tokenizer,
                REQUIREMENTS: requirements(made.libraries).encode(),
                README: package_text.readme(source, scores, ledger).encode(),
            }
            claimed = claims.claim(source, scores, audits, files)
            files[claims.FILE] = (json.dumps(claimed, indent=2) + "\n").encode()
            for name, content in files.items():
                build.writer.path(name).write_bytes(content)
            build.metrics |= PackageMetrics(
                model_bytes=ledger.bytes_of(MODEL),
                code_bytes=ledger.bytes_of(SCRIPT),
                total_bytes=ledger.total_bytes,
            )
            build.details |= PackageDetails(ledger=ledger.to_dict(), claims=claimed)
    return build.stage


class PlannedScript:
    """The size that a package's script will have, before there is a model; its code is built once, when first asked."""

    def __init__(self, source: Stage, reporter: Reporter) -> None:
        """source: the float model."""
        self._source, self._reporter = source, reporter
        self._code_bytes = 0

    def beside(self, config: Config) -> dict[str, int]:
        """Bytes of `quantize.target_bytes` that the other counted files will take, by file.

        config: settings of the quantization and scoring to come. The script records the target that is left for the
        model. Settings are not compressed, and that number has no more digits than the whole target, so the script with
        the whole target in it is at most a few bytes larger than the one to come.
        """
        found = {}
        if config.package.count_tokenizer:
            found[TOKENIZER] = self._source.ancestor("tokenize").file(TOKENIZER).stat().st_size
        if config.package.count_code:
            evaluate = evaluate_settings(config.evaluate, self._source)
            planned = claims.planned_config(self._source, dataclasses.replace(config, evaluate=evaluate))
            settings = len(program.dumps(planned))
            if not self._code_bytes:
                self._code_bytes = len(_script(self._reporter, planned).script) - settings
            found[SCRIPT] = self._code_bytes + settings + _LATER_SETTINGS
        return found


def _script(reporter: Reporter, recorded: dict[str, Any]) -> Bundle:
    with reporter.progress("pack script") as bar:
        return program.build(recorded, bar.update)


def remake(data: bytes) -> tuple[bool, str, dict[str, Any]]:
    """Rebuild the script from the settings that a package's script holds, without running it.

    Whether both are the same bytes, the requirements of the one made here, and the settings. Raises PgolfError for
    anything but a script made by `package`.
    """
    _, settings = program.read(data)
    made = program.build(settings)
    return made.script == data, requirements(made.libraries), settings


def requirements(libraries: Sequence[str]) -> str:
    """The lines of `requirements.txt` for imported top-level names: the distribution of each, at its version here."""
    owners = importlib.metadata.packages_distributions()
    lines = set()
    for library in libraries:
        for distribution in owners.get(library, [library])[:1]:
            version = importlib.metadata.version(distribution).partition("+")[0]  # without the build: "+cpu"
            lines.add(f"{distribution.lower()}=={version}\n")
    return "".join(sorted(lines))


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
    others = {file.file: file.bytes for file in ledger.files if file.counted and file.file != MODEL}
    raise CheckFailed(
        f"the package has {ledger.counted_bytes:,} bytes ({counted}), {ledger.over:,} over the cap of "
        f"{ledger.cap_bytes:,}: {remedy(ledger.cap_bytes, others)}"
    )
