"""The program inside a packaged script: score the model beside it, train it again, or write the code out.

It is all that `train_gpt.py` runs, so what it imports is what the script weighs. Settings are the run's own; what can
be chosen is where the files are and how long to train.
"""

import argparse
import ast
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgolf import runtime as runtimes
from pgolf.config import Config, from_dict
from pgolf.errors import PgolfError

SETTINGS = "settings.json"


def main(sources: Mapping[str, str]) -> None:
    """Run the command line. `sources`: the script's own modules, and its settings as JSON."""
    parser = argparse.ArgumentParser(description="A packaged language model: score it, train it again, read its code.")
    commands = parser.add_subparsers(dest="command", required=True)
    score = commands.add_parser("eval", help="bits per byte of a text")
    score.add_argument("--val", type=Path, required=True, help="folder of val shards")
    score.add_argument("--ttt", action="store_true", help="learn from the text once it is scored")
    score.add_argument("--model", type=Path, help="container to score")
    again = commands.add_parser("train", help="train, average and quantize again; under torchrun on every rank")
    again.add_argument("--data", type=Path, required=True, help="folder of train shards")
    again.add_argument("--out", type=Path, default=Path("again.pgz"), help="the new container")
    again.add_argument("--iterations", type=int, help="stop after so many, without a clock")
    for command in (score, again):
        command.add_argument("--tokenizer", type=Path)
        command.add_argument("--device", default="auto", help="auto, cpu or cuda")
        command.add_argument("--threads", type=int, default=0)
    commands.add_parser("source", help="write the code out").add_argument("folder", type=Path)
    given = parser.parse_args()
    config = from_dict(json.loads(sources[SETTINGS])["config"])
    try:
        if given.command == "source":
            write_out(sources, given.folder)
        elif given.command == "eval":
            _score(given, config)
        else:
            from stages.again import train_again

            if given.iterations is not None:
                train = dataclasses.replace(config.train, iterations=given.iterations, seconds=0.0)
                config = dataclasses.replace(config, train=train)
            train_again(given.data, given.out, config, runtimes.choose(given.device, given.threads))
    except (PgolfError, OSError) as error:
        if not error.args:  # packed errors have lost their texts: the traceback shows the condition
            raise
        sys.exit(f"{error}")


def _score(given: Any, config: Config) -> None:
    from pgolf.program import scoring
    from pgolf.tokens.sentencepiece_model import Pieces

    folder = Path(sys.argv[0]).resolve().parent
    runtime = runtimes.choose(given.device, given.threads)
    pieces = Pieces.open(given.tokenizer or folder / "tokenizer.model")
    text = scoring.read_shards(given.val, pieces)
    if text is None:
        raise PgolfError(f"{given.val} holds no val shards ({scoring.VAL}); pgolf tokenize makes them of documents")
    model = scoring.load_model((given.model or folder / "model.pgz").read_bytes(), config.model, runtime)
    result = scoring.score(model, text, config.evaluate, config.ttt if given.ttt else None, runtime)
    if runtime.is_main:
        print(json.dumps(result.metrics()))


def write_out(sources: Mapping[str, str], folder: Path) -> None:
    """Write modules as files below `folder`, laid out as tracebacks show them."""
    packages = {name.rpartition(".")[0] for name in sources}
    for name, text in sources.items():
        path = folder / (name.replace(".", "/") + ("/__init__.py" if name in packages else ".py"))
        if name == SETTINGS:
            path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if name == SETTINGS else ast.unparse(ast.parse(text)) + "\n", "utf-8")
    print(f"{len(sources)} files in {folder}")
