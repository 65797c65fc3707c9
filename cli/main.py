"""The entry point: it answers to Ctrl-C from before the commands are loaded, which takes a second."""

import sys

from cli import interrupts


def main() -> None:
    interrupts.listen(interrupts.leave)
    from cli.app import app
    from pgolf import caches

    interrupts.listen()
    caches.ensure_home()
    try:
        app()
    except (KeyboardInterrupt, SystemExit):
        if interrupts.asked:  # typer makes 1 of an interrupt that comes before a command has begun
            sys.exit(130)
        raise
