"""The `pgolf` program: one command per module of this package."""

import importlib
import sys

import typer

from cli import interrupts
from pgolf import caches

# In the order of the chain, then what stands over it; `pgolf --help` shows them so.
COMMANDS: tuple[str, ...] = (
    "tokenize",
    "train",
    "ema_finalize",
    "quantize",
    "eval_sliding",
    "eval_ttt",
    "package",
    "eval",
    "run",
    "budget",
    "inspect",
    "audit",
    "compare",
    "report",
    "compress",
    "verify",
    "screen_record",
    "submission",
    "import_checkpoint",
)

app = typer.Typer(
    help="The best language model that fits a byte budget, as separate stages with files between them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for _module in COMMANDS:
    importlib.import_module(f"cli.{_module}").add_to(app)


def main() -> None:
    caches.ensure_home()
    interrupts.listen()
    try:
        app()
    except (KeyboardInterrupt, SystemExit):
        if interrupts.asked:  # typer makes 1 of an interrupt that comes before a command has begun
            sys.exit(130)
        raise
