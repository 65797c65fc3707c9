"""Decode a proof in a process that sees the model and the file alone; job and answer are JSON."""

import json
import sys
from pathlib import Path

import torch

from pgolf import runtime as runtimes
from pgolf.compress import proof
from pgolf.errors import PgolfError
from pgolf.evaluate import canonical
from pgolf.progress import Silent
from pgolf.saved.models import load_model
from pgolf.store.stage_directory import open_stage
from pgolf.tokens.sentencepiece_model import Pieces


def main() -> None:
    job = json.loads(sys.argv[1])
    try:
        model = load_model(open_stage(Path(job["model"])), runtimes.choose("cpu", 1, compile=False))
        if "tokenizer" in job:
            model.barred = canonical.barred(Pieces.open(Path(job["tokenizer"])), torch.device("cpu"))
        tokens = proof.decode(Path(job["file"]).read_bytes(), "the proof", model, Silent())
        print(json.dumps({"tokens_sha256": proof.digest(tokens)}))
    except (PgolfError, OSError) as error:
        print(json.dumps({"error": str(error)}))


if __name__ == "__main__":
    main()
