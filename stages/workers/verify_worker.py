"""Read and score a package for `pgolf verify`: pgolf's own code on a stranger's bytes, in the sandbox.

Its only argument is a job as JSON; the last line of stdout is the answer: results, or `untrue` with a fault of
the package, or `unknown` with an input that the verifier lacks.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pgolf import config as configs
from pgolf import data
from pgolf import runtime as runtimes
from pgolf.audit import PASSED, AuditSettings, evaluators, explain, first_failure
from pgolf.audit.text import ORDINARY_TEXT, byte_accounting
from pgolf.codec import container
from pgolf.errors import PgolfError
from pgolf.evaluate import canonical
from pgolf.model.gpt import GPT
from pgolf.program import scoring
from pgolf.runtime import Runtime
from pgolf.tokens.byte_counts import ByteTable, table_faults
from pgolf.tokens.encode import encode_documents
from pgolf.tokens.tokenizer import Tokenizer
from stages.views import claims

AUDIT_SECONDS = 300.0
"""After so long no further probe is made."""
_FEWEST_PROBES = 64  # the field's audit tests ask for as many


class _Unknown(Exception):
    """Something on the verifier's side is missing or wrong."""


def main() -> None:
    """Score the package of the job and print the answer."""
    try:
        answer = _answer(json.loads(sys.argv[1]))
    except _Unknown as error:
        answer = {"unknown": str(error)}
    except MemoryError:
        answer = {"unknown": "the model needs more memory than the sandbox allows"}
    except Exception as error:  # whatever a hostile package raises
        answer = {
            "untrue": str(error) if isinstance(error, PgolfError) else f"the package is malformed: {error!r}"[:500]
        }
    print(json.dumps(answer))


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    folder = Path(job["folder"])
    try:
        runtime = runtimes.choose(job["device"], job["threads"], compile=False)
    except PgolfError as error:
        raise _Unknown(str(error)) from error
    packed = (folder / job["model"]).read_bytes()
    quantized = container.decode(packed)
    header = quantized.header.get("model")
    if not isinstance(header, dict):
        raise PgolfError("the container does not describe its model")
    model_config = configs.from_dict({"model": header}).model
    if model_config.num_layers > len(quantized.matrices):
        raise PgolfError(f"the container describes {model_config.num_layers} layers and holds fewer matrices")
    del quantized
    tokenizer = Tokenizer.open(folder / job["tokenizer"])
    text, found = _shards(job, tokenizer) if job["shards"] else _documents(job, tokenizer, runtime)
    if int(text.tokens.max()) >= model_config.vocab_size:
        raise PgolfError(f"the text holds token {int(text.tokens.max())}, the model has {model_config.vocab_size}")
    model = scoring.load_model(packed, model_config, runtime)
    scores = {}
    for name, settings in job["scores"].items():
        config = configs.from_dict(settings)
        ttt = config.ttt if name == "ttt" else None
        started = time.monotonic()
        measured = scoring.score(model, tokenizer, text, config.evaluate, ttt, runtime).metrics()
        measured["seconds"] = round(time.monotonic() - started, 1)
        scores[name] = measured | {"device": runtime.device.type, "dtype": str(runtime.dtype).removeprefix("torch.")}
    audits = {name: _audit(name, job["scores"][name], model, tokenizer, text, runtime) for name in job["audits"]}
    return {
        "text": claims.identity(text.tokens, text.token_bytes),
        "bytes": int(text.token_bytes.sum()),
        "scores": scores,
        "audits": audits,
        **found,
    }


def _documents(job: dict[str, Any], tokenizer: Tokenizer, runtime: Runtime) -> tuple[scoring.Text, dict[str, Any]]:
    """Encode the documents with the package's tokenizer, decode each and compare; their bytes are their own."""

    def documents() -> Iterator[bytes]:
        try:
            if job["embedded"]:
                yield from (text for text, is_val in data.embedded_split(job["split"]) if is_val)
                return
            sources = [data.source(path) for path in job["documents"]]
            each = (text for item in sources for text in data.documents(item, job["text_field"]))
            for text in each:
                if job["split"] is None or data.in_val(text, job["split"]):
                    yield text
        except (PgolfError, OSError) as error:
            raise _Unknown(f"the text cannot be read: {error}") from error

    batches = list(encode_documents(tokenizer, documents(), with_bytes=True, threads=runtime.threads))
    tokens = np.concatenate([batch.tokens for batch in batches]) if batches else np.zeros(0, np.uint16)
    if len(tokens) < 2:
        raise _Unknown("the text holds no documents")
    counts = np.concatenate([batch.token_bytes for batch in batches if batch.token_bytes is not None])
    found = {
        "documents": sum(batch.documents for batch in batches),
        "lossy_documents": sum(batch.lossy_documents for batch in batches),
        "changed_bytes": sum(batch.changed_bytes for batch in batches),
        "counted": "counted from the documents themselves",
    }
    return scoring.Text(tokens, counts.astype(np.int64)), found


def _shards(job: dict[str, Any], tokenizer: Tokenizer) -> tuple[scoring.Text, dict[str, Any]]:
    """The verifier's shards, whose bytes come from their own sidecar or tokenizer, not from the package."""
    folder, reference = Path(job["shards"]), job["reference"]
    sidecar = any(folder.glob(scoring.VAL_BYTES))
    if reference is None and not sidecar:
        raise _Unknown(
            f"{folder} holds neither byte counts nor the tokenizer of its shards: name that one with --tokenizer, or "
            "documents with --val"
        )
    own = Tokenizer.open(Path(reference)) if reference is not None else tokenizer
    text = scoring.read_shards(folder, own)
    if text is None:
        raise _Unknown(f"{folder} holds no val shards")
    spelled = int(ByteTable.from_tokenizer(tokenizer).count(text.tokens).sum())
    if own is not tokenizer and own.proto != tokenizer.proto:
        faults = table_faults(own, ByteTable.from_tokenizer(tokenizer).base)
        what = faults[0] if faults else f"it spells {spelled:,} bytes"
        raise PgolfError(f"the package's tokenizer is not that of the shards: {what}")
    if own is tokenizer and spelled != int(text.token_bytes.sum()):
        raise _Unknown(
            f"the package's tokenizer spells {spelled:,} bytes for these shards, their sidecar has "
            f"{int(text.token_bytes.sum()):,}: name the tokenizer of the shards with --tokenizer"
        )
    counted = "by your shards' sidecar" if sidecar else "by the challenge's table for your tokenizer"
    if tokenizer.decode(tokenizer.encode([ORDINARY_TEXT])[0]) != ORDINARY_TEXT:
        raise PgolfError("the tokenizer is lossy: ordinary letters do not come back from their tokens")
    return text, {
        "documents": int((text.tokens == tokenizer.bos_id).sum()),
        "lossy_documents": 0,
        "changed_bytes": 0,
        "counted": counted,
    }


def _audit(
    name: str, settings: dict[str, Any], model: GPT, tokenizer: Tokenizer, text: scoring.Text, runtime: Runtime
) -> dict[str, Any]:
    """Audit of pgolf's own evaluator with the claimed settings; the verifier chooses the extent."""
    config = evaluators.resolve(configs.from_dict(settings), 0)
    model.barred = canonical.barred(tokenizer, runtime.device) if config.evaluate.canonical else None
    count = evaluators.audited_tokens(text.tokens, tokenizer.bos_id, name, config)
    tokens, budget = text.tokens[:count], AuditSettings(seconds=AUDIT_SECONDS)
    black_box, subjects = evaluators.black_box(
        name, model, config, tokens, tokenizer, runtime, budget, whole=text.tokens
    )
    if black_box.probes < _FEWEST_PROBES and not any(finding.failed for finding in black_box.findings):
        raise _Unknown(f"the audit of {name} made only {black_box.probes} probes in {AUDIT_SECONDS:.0f} s")
    findings = [*black_box.findings, byte_accounting(tokenizer, tokens, text.token_bytes[:count], None)]
    failed = first_failure(findings)
    return {
        "passed": sum(finding.outcome == PASSED for finding in findings),
        "failed": None if failed is None else explain(failed),
        "tokens": sum(len(subject.tokens) for subject in subjects),
        "power": black_box.power,
        "evaluations": sum(subject.runs for subject in subjects),
    }


if __name__ == "__main__":
    main()
