"""Several processes of one command, through torchrun's own launcher (torch.distributed.launcher)."""

import logging
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cli.screen import activity
from pgolf.errors import PgolfError

Nproc = Annotated[int, typer.Option(min=1, help="Processes, one per GPU, through torchrun.")]


def launched(nproc: int) -> bool:
    """Whether this command was handed to `nproc` processes, which have done its work; never for one."""
    if nproc > 1:
        activity.end()  # the processes show what they do
        launch(nproc, without_option(sys.argv[1:], "--nproc"))
    return nproc > 1


def without_option(arguments: Sequence[str], name: str) -> list[str]:
    """Command-line arguments without `--name VALUE` and `--name=VALUE`."""
    kept, skip = [], False
    for argument in arguments:
        if skip or argument.startswith(f"{name}="):
            skip = False
        elif argument == name:
            skip = True
        else:
            kept.append(argument)
    return kept


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Run `pgolf ARGUMENTS` in that many processes on this machine and wait for them.

    Ends with the exit code of the first process that failed, if any; the processes have said why themselves. Raises
    PgolfError when one dies without having been able to.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the processes speak for themselves
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        # With -P and an explicit path: `-m cli` would run a cli.py of the working folder.
        root = str(Path(__file__).parents[1])
        start = f"import sys; sys.argv[0] = 'pgolf'; sys.path.append({root!r}); from cli.main import main; main()"
        elastic_launch(config, sys.executable)("-P", "-c", start, *arguments)
    except SignalException as error:
        raise typer.Exit(130) from error
    except ChildFailedError as error:
        first = error.get_first_failure()[1]
        if first.exitcode in (1, 2, 130):
            raise typer.Exit(first.exitcode) from error
        raise PgolfError(f"process {first.local_rank} ended with {first.exitcode}; see its output above") from error
