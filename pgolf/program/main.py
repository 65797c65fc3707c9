"""The command line of the packaged script: score the packaged model, train a new one, or write the code out.

Every module that it can reach adds to the bytes of `train_gpt.py`. The settings are the run's; options choose files,
the device and the length of training.
"""

import argparse
import ast
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgolf.config import Config
from pgolf.errors import PgolfError

SETTINGS = "settings.json"


def main(sources: Mapping[str, str]) -> None:
    """Run the command line. `sources`: the script's own modules, and its settings as JSON."""
    config = Config.recorded(json.loads(sources[SETTINGS])["config"])
    parser = argparse.ArgumentParser(description="A packaged language model")
    commands = parser.add_subparsers(dest="command", required=True)
    score = commands.add_parser("eval", help="bits per byte of a text")
    score.add_argument("--val", type=Path, required=True, help="folder of val shards")
    score.add_argument("--ttt", action="store_true", help="learn from scored text")
    score.add_argument("--model", type=Path, help="container to score")
    again = commands.add_parser("train", help="make the model again; also under torchrun")
    again.add_argument("--data", type=Path, required=True, help="folder of train shards")
    again.add_argument(
        "--out",
        type=Path,
        default=Path("model.pgz"),
        help="the new container; its log is beside it",
    )
    again.add_argument("--iterations", type=int, help="stop by steps, not by the clock")
    again.add_argument("--seed", type=int, default=config.seed)
    for command in (score, again):
        command.add_argument("--tokenizer", type=Path)
        command.add_argument("--device", default="auto", help="auto, cpu or cuda")
        command.add_argument("--threads", type=int, default=0)
    commands.add_parser("source", help="write the code out").add_argument("folder", type=Path)
    given = parser.parse_args()
    try:
        if given.command == "source":
            write_out(sources, given.folder)
        elif given.command == "eval":
            _score(given, config)
        else:
            _train(given, config)
    except (PgolfError, OSError) as error:
        sys.exit(f"{error}")


def _train(given: Any, config: Config) -> None:
    if given.out.exists():
        raise PgolfError(f"{given.out} exists; name another file with --out")
    from pgolf import runtime as runtimes  # torch takes seconds to import: errors in the arguments come before
    from pgolf.program.retrain import retrain

    if given.iterations is not None:
        train = dataclasses.replace(config.train, iterations=given.iterations, seconds=0.0)
        config = dataclasses.replace(config, train=train)
    config = dataclasses.replace(config, seed=given.seed)
    pieces = None
    if config.optim.shared_lr and config.optim.shared_spelling:
        pieces = _tokenizer(given).pieces
    retrain(given.data, given.out, config, runtimes.choose(given.device, given.threads), pieces)


def _tokenizer(given: Any) -> Any:
    from pgolf.tokens.sentencepiece_model import Pieces

    return Pieces.open(given.tokenizer or Path(sys.argv[0]).resolve().parent / "tokenizer.model")


def _score(given: Any, config: Config) -> None:
    folder = Path(sys.argv[0]).resolve().parent
    model_file = given.model or folder / "model.pgz"
    for path in (given.val, model_file):
        if not path.exists():
            raise PgolfError(f"{path} is missing; train makes a model")
    from pgolf import runtime as runtimes
    from pgolf.program import scoring

    runtime = runtimes.choose(given.device, given.threads)
    tokenizer = _tokenizer(given)
    text = scoring.read_shards(given.val, tokenizer)
    if text is None:
        raise PgolfError(f"{given.val} holds no shards {scoring.VAL}; pgolf tokenize makes them")
    model = scoring.load_model(model_file.read_bytes(), config.model, runtime)
    result = scoring.score(model, tokenizer, text, config.evaluate, config.ttt if given.ttt else None, runtime)
    if runtime.is_main:
        print(line := json.dumps(result.metrics()))
        log = model_file.with_suffix(".log")
        if log.exists():
            with log.open("a") as file:
                print(*sys.argv[1:], line, file=file)


def write_out(sources: Mapping[str, str], folder: Path) -> None:
    """Write the script's files below `folder`, modules as tracebacks show them."""
    for name, text in sources.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(ast.unparse(ast.parse(text)) + "\n" if path.suffix == ".py" else text, "utf-8")
    print(f"{len(sources)} files in {folder}")
