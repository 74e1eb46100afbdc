"""``wmkit data``: recorded data, and looking after what a run has collected."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Annotated, Optional

import typer

from wmkit.cli.app import Run, Trust, reported

data_app = typer.Typer(
    help="Recorded data: collect it, look at it, check a run's replay.", no_args_is_help=True
)


@data_app.callback()
def _group() -> None:
    """Recorded data."""


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


@data_app.command("collect")
def collect(
    env: Annotated[str, typer.Argument(help="Name of an environment, such as two_rooms or CartPole-v1.")],
    options: Annotated[
        Optional[list[str]],  # noqa: UP045  (typer reads this at run time)
        typer.Argument(help="Its options, for example max_steps=50."),
    ] = None,
    policy: Annotated[str, typer.Option(help="random, scripted, or the folder of a run.")] = "random",
    episodes: Annotated[int, typer.Option(help="How many.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Of the environment and of chance.", min=0)] = 0,
    out: Annotated[Optional[Path], typer.Option(help="A new folder; else data/ENV-POLICY.")] = None,  # noqa: UP045
    limit: Annotated[int, typer.Option(help="Steps after which an episode is cut.", min=1)] = 30_000,
    trust: Trust = False,
) -> None:
    """Play episodes in ENV and write them as a data set of Minari's (HDF5)."""
    with reported():
        from wmkit.training.gather import gather

        given = dict(map(_option, options or []))
        names = (re.sub(r"[^\w.]+", "_", Path(part).name or part).strip("_") for part in (env, policy))
        writer = gather(
            env,
            out or Path("data") / "-".join(names),
            policy=policy,
            episodes=episodes,
            seed=seed,
            limit=limit,
            options=given,
            trust=trust,
        )
        typer.echo(f"{writer.episodes:,} episodes, {writer.steps:,} steps in {writer.folder}")
        typer.echo(f"to learn from them: wmkit train SYSTEM data={writer.folder}")


def _option(text: str) -> tuple[str, object]:
    from wmkit.systems.overrides import check_key, read_value

    check_key(text)
    return text.partition("=")[0], read_value(text)


@data_app.command("info")
def info(
    path: Annotated[str, typer.Argument(help="A data set: folder, file, or id of Minari's.")],
    strip: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Where the strip of frames goes; else NAME-strip.png in this folder."),
    ] = None,
) -> None:
    """Show keys, shapes and lengths of a data set, and write a strip of frames of its first episode."""
    with reported():
        from wmkit.data.recorded.show import describe, write_strip

        for name, finding in describe(path):
            typer.echo(f"{name:<24} {finding}")
        where = strip or Path(f"{Path(path).name}-strip.png")
        if write_strip(path, where):
            typer.echo(f"{'strip':<24} {where}")
