"""The process that re-scores a package for `pgolf verify`: it reads what nobody vouches for, so it runs guarded.

Its only argument is a job as JSON; its answer is one JSON object on stdout. All that is imported is imported before
the guard goes up, and the files of the package are read after.
"""

import json
import sys
from pathlib import Path
from typing import Any

from pgolf import config as configs
from pgolf import data as corpus
from pgolf import runtime as runtimes
from pgolf import sandbox
from pgolf.audit import PASSED, AuditSettings, evaluators, explain
from pgolf.audit.text import byte_accounting
from pgolf.codec import container
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.program import scoring
from pgolf.runtime import Runtime
from pgolf.tokens.tokenizer import Tokenizer
from stages.views import claims

AUDIT_SECONDS = 300.0
"""After so long no further probe is made; at least 8 are."""


def main() -> None:
    """Score what the job names and print the answer; a PgolfError becomes `{"error": ...}`."""
    job = json.loads(sys.argv[1])
    try:
        answer = _answer(job)
    except (PgolfError, PermissionError) as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    folder, val = Path(job["folder"]), Path(job["val"])
    runtime = runtimes.choose(job["device"], job["threads"], compile=False)
    sandbox.guard(readable=[folder, val], writable=[Path.cwd()], programs=True)  # of its own: kernels in C
    data = (folder / job["model"]).read_bytes()
    quantized = container.decode(data)
    header = quantized.header.get("model")
    if not isinstance(header, dict):
        raise PgolfError("the container does not describe its model")
    model_config = configs.from_dict({"model": header}).model
    if model_config.num_layers > len(quantized.matrices):
        raise PgolfError(f"the container describes {model_config.num_layers} layers and holds fewer matrices")
    tokenizer = Tokenizer.open(folder / job["tokenizer"])
    text = scoring.read_text(
        val, tokenizer, runtime.threads, lambda path: corpus.documents(corpus.source(path), job["text_field"])
    )
    model = scoring.load_model(data, model_config, runtime)
    scores = {}
    for name, settings in job["scores"].items():
        config = configs.from_dict(settings)
        ttt = config.ttt if "ttt" in settings else None
        scores[name] = scoring.score(model, text, config.evaluate, ttt, runtime).metrics()
    audits = {
        name: _audit(name, job["scores"][name], wanted, model, tokenizer, text, runtime)
        for name, wanted in job["audits"].items()
    }
    return {"text": claims.identity(text.tokens, text.token_bytes), "scores": scores, "audits": audits}


def _audit(
    name: str,
    settings: dict[str, Any],
    wanted: dict[str, int],
    model: GPT,
    tokenizer: Tokenizer,
    text: scoring.Text,
    runtime: Runtime,
) -> dict[str, Any]:
    """What pgolf's own evaluator with the claimed settings passes on the beginning of the text."""
    config = evaluators.resolve(configs.from_dict(settings), 0)
    count = wanted.get("tokens") or evaluators.audited_tokens(text.tokens, tokenizer.bos_id, name, config)
    tokens = text.tokens[:count]
    budget = AuditSettings(probes=wanted.get("probes", AuditSettings.probes), seconds=AUDIT_SECONDS)
    black_box, subject = evaluators.black_box(name, model, config, tokens, tokenizer, runtime, budget)
    bytes_right = byte_accounting(tokenizer, tokens, text.token_bytes[:count], None)
    findings = [*black_box.findings, bytes_right]
    failed = next((finding for finding in findings if finding.failed), None)
    return {
        "passed": sum(finding.outcome == PASSED for finding in findings),
        "failed": None if failed is None else explain(failed),
        "tokens": len(tokens),
        "evaluations": subject.runs,
    }


if __name__ == "__main__":
    main()
