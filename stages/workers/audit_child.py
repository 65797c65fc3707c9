"""One evaluation in a separate process that the audit watches: `python -m stages.workers.audit_child JOB.json`.

The job names the stage, the settings and the file of tokens; the scores go to stdout, float64 in base64.
"""

import base64
import json
import sys
from pathlib import Path

import numpy as np


def main(job_file: str) -> None:
    job = json.loads(Path(job_file).read_text("utf-8"))
    from pgolf import config as configs
    from pgolf import runtime as runtimes
    from pgolf.audit import evaluators
    from pgolf.evaluate import canonical
    from pgolf.saved.models import load_model
    from pgolf.store.stage_directory import open_stage
    from pgolf.tokens.sentencepiece_model import Pieces

    runtime = runtimes.choose(job["device"], job["threads"])
    config = configs.from_dict(job["config"])
    model = load_model(open_stage(Path(job["stage"])), runtime)
    if config.evaluate.canonical:
        model.barred = canonical.barred(Pieces.open(Path(job["tokenizer"])), runtime.device)
    evaluator = evaluators.evaluator(job["evaluator"], model, config, runtime)
    trace = evaluator.score(np.load(job["tokens"]))
    print(base64.b64encode(trace.nll.tobytes()).decode())


if __name__ == "__main__":
    main(sys.argv[1])
