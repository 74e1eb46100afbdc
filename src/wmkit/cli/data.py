"""``wmkit data``: looking after what a run has collected."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from wmkit.cli.app import Run, Trust, reported

data_app = typer.Typer(
    help="A run's replay: what is in it, and whether it can be learned from.", no_args_is_help=True
)


@data_app.callback()
def _group() -> None:
    """A run's replay."""


@data_app.command("check")
def check(
    run: Run,
    repair: Annotated[
        bool, typer.Option("--repair", help="Cut off the records that hold NaN or infinity.")
    ] = False,
    trust: Trust = False,
) -> None:
    """Look for NaN and infinity in RUN's replay.

    --repair cuts such records off: each becomes an episode of its own that nothing leads to. All else stays,
    and what was overwritten is kept in RUN/repaired. Exit code 2 if any is left.
    """
    with reported():
        left = _check(run, repair, trust)
    if left:
        raise typer.Exit(2)


def _check(path: Path, mend: bool, trust: bool) -> bool:
    import torch

    from wmkit.data import ReplayStreams
    from wmkit.data.repair import not_finite
    from wmkit.data.repair import repair as repair_records
    from wmkit.training import RunDirectory

    run = RunDirectory.open(path, trust=trust)
    streams = ReplayStreams.open(run.path / "replay")
    found = not_finite(streams, latents=True)
    typer.echo(f"{len(streams):,} records of {streams.num_streams} environments in {run.path / 'replay'}")
    for line in found.words(streams.num_streams):
        typer.echo(line)
    if not found:
        typer.echo("all numbers are finite")
        return False
    if not mend:
        typer.echo(f"to cut these records off: wmkit data check {run.path} --repair")
        return True
    with run.held():
        kept = run.folder("repaired") / f"{datetime.now():%Y%m%d-%H%M%S}.pt"
        before = repair_records(streams, found, keep=lambda records: torch.save(records.to_dict(), kept))
    left = not_finite(streams, latents=True)
    typer.echo(f"{len(before):,} records were changed; as they were, they lie in {kept}")
    typer.echo(
        "all numbers are finite now; go on with resume=" + str(run.path) if not left else "some are left"
    )
    return bool(left)
