"""``wmkit minedojo``: its interpreter, whether it plays, and an episode in a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from wmkit.cli.app import reported

minedojo_app = typer.Typer(
    help="MineDojo, in an interpreter of its own: make it, try it, record what the game says.",
    no_args_is_help=True,
)

TaskName = Annotated[str, typer.Argument(help="One of LS-Imagine's tasks, or an id that MineDojo knows.")]
Port = Annotated[
    Optional[int],  # noqa: UP045  (typer reads this at run time)
    typer.Option(help="Of a Malmo that already runs on this machine; without it Minecraft is started."),
]
SEED = typer.Option(help="Of the random actions.")


@minedojo_app.callback()
def _group() -> None:
    """MineDojo."""


@minedojo_app.command("setup")
def setup(
    python: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A Python 3.9, 3.10 or 3.11; by default one is looked for."),
    ] = None,
    folder: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Of the environment; by default in your data folder."),
    ] = None,
    mixin: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A clone of MixinGradle-dcfaf61: the build then takes it from there."),
    ] = None,
) -> None:
    """Make an environment with MineDojo and pins that work, and say what Minecraft needs besides.

    Exit code 2 if something is missing.
    """
    from wmkit.envs.minedojo import interpreter, requirements

    with reported():
        chosen = folder or interpreter.default_folder()
        made = interpreter.create(chosen, interpreter.find_base(python), typer.echo)
        typer.echo(f"{'interpreter':<12} {made}")
        if mixin is not None:
            malmo = next(chosen.glob("lib/*/site-packages/minedojo/sim/Malmo"))
            mended = requirements.mend_build(malmo, mixin, chosen / "Malmo")
            typer.echo(f"{'Malmo':<12} {mended}")
        if chosen != interpreter.default_folder():
            typer.echo(f"{'to use it':<12} export {interpreter.VARIABLE}={made}")
        good = True
        for finding in requirements.examine(chosen):
            good &= finding.good
            typer.echo(f"{finding.name:<12} {'ok' if finding.good else 'MISSING'}: {finding.text}")
        typer.echo(
            "all is there: wmkit minedojo check"
            if good
            else "get what is missing, then: wmkit minedojo check"
        )
    if not good:
        raise typer.Exit(2)


@minedojo_app.command("check")
def check(
    task: TaskName = "harvest_log_in_plains",
    steps: Annotated[int, typer.Option(help="At most.", min=1)] = 200,
    video: Annotated[Path, typer.Option(help="Where the pictures go, as a GIF.")] = Path("minedojo.gif"),
    port: Port = None,
    seed: Annotated[int, SEED] = 0,
) -> None:
    """Play one episode at random and write a short video of it."""
    with reported():
        import time

        from PIL import Image

        pictures, begin, total, last = [], time.monotonic(), 0.0, {}
        started = begin
        for index, (_, report, said) in enumerate(_play(task, steps, port, seed)):
            if index == 0:
                started = time.monotonic()
                typer.echo(f"{'started in':<12} {started - begin:.1f} s")
            total, last = total + said.get("reward", 0.0), said
            pictures.append(Image.fromarray(report.frame.transpose(1, 2, 0).copy()))
        taken = len(pictures) - 1
        typer.echo(f"{'steps':<12} {taken}, {taken / max(time.monotonic() - started, 1e-9):.1f} a second")
        typer.echo(f"{'return':<12} {total:g}")
        ends = [name for name in ("success", "terminated", "truncated") if last.get(name)]
        typer.echo(f"{'ended by':<12} {', '.join(ends) or 'the number of steps that were asked for'}")
        pictures[0].save(video, save_all=True, append_images=pictures[1:], duration=50, loop=0)
        typer.echo(f"{'video':<12} {video}")


@minedojo_app.command("record")
def record(
    path: Annotated[Path, typer.Argument(help="Of the file to write, a zip archive.")],
    task: TaskName = "harvest_log_in_plains",
    steps: Annotated[int, typer.Option(help="At most.", min=1, max=5000)] = 200,
    port: Port = None,
    seed: Annotated[int, SEED] = 0,
) -> None:
    """Play one episode at random and write down all that the game said.

    Such a file of a real Minecraft is what the tests of wmkit lack. It holds pictures, the game's values, the
    actions and the names of your operating system and Python; nothing else of your machine.
    """
    with reported():
        from wmkit.envs.minedojo.recording import Recorder, missing

        lacks: list[str] = []
        takes: list[str] = []
        with Recorder(path, task, {"name": "minedojo", "version": "0.1"}) as recorder:
            count = 0
            for action, report, _ in _play(task, steps, port, seed, raw=True):
                recorder.add(action, report)
                demanded, defaulted = missing(report.raw or {})
                lacks += [key for key in demanded if key not in lacks]
                takes += [key for key in defaulted if key not in takes]
                count += 1
        typer.echo(f"{'moments':<12} {count}, the reset among them")
        typer.echo(f"{'lacks':<12} {', '.join(lacks) or 'nothing that MineDojo demands'}")
        typer.echo(f"{'defaults':<12} {', '.join(takes) or 'none taken'}")
        typer.echo(f"{'recording':<12} {path}")


def _play(
    task: str, steps: int, port: int | None, seed: int, raw: bool = False
) -> Iterator[tuple[Any, Any, dict[str, Any]]]:
    """Keys, report, and what the environment made of it, of a reset and at most so many steps."""
    import torch

    from wmkit.envs.minedojo import MineDojoEnv

    torch.manual_seed(seed)
    with closing(MineDojoEnv(task, port=port, seed=seed, raw=raw, max_steps=steps)) as env:
        found = env.reset()
        yield None, env.report, {}
        done = False
        while not done:
            found = env.step(found.set("action", env.action_spec.rand()))["next"]
            names = ("reward", "success", "terminated", "truncated", "done")
            said = {name: found[name].item() for name in names}
            yield env.given, env.report, said
            done = said["done"]
