"""The commands. What they do lives in :mod:`wmkit.training`; here are arguments, errors and last words.

Exit codes: 0 done, 1 a loss became NaN or infinite, 2 something the user gave does not fit
(one sentence, no traceback), 130 interrupted, by Ctrl-C or SIGTERM (everything is saved).
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from wmkit.errors import ConfigError, NonFiniteLossError, WmkitError

if TYPE_CHECKING:
    from omegaconf import DictConfig

app = typer.Typer(
    help="World models for PyTorch: train them, look at what they imagine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
affordance_app = typer.Typer(
    help="Affordance maps: where in a frame a goal can be approached.", no_args_is_help=True
)
app.add_typer(affordance_app, name="affordance")

Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045  (typer reads this at run time)
    typer.Argument(help="Hydra overrides, for example size=small env.num_envs=8 training.steps=50000"),
]
Run = Annotated[Path, typer.Argument(help="A run directory that `wmkit train` made.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Let the run's config.yaml name code of any package, modules of environments, and variables of "
        "your own environment: what it names is executed, as you. For folders whose config.yaml you wrote or "
        "read.",
    ),
]

REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)  # of a disk


def main() -> None:
    """Entry point of ``wmkit`` and ``python -m wmkit``."""
    app(prog_name="wmkit")


@contextmanager
def reported() -> Iterator[None]:
    """Turn what went wrong into one sentence on standard error and an exit code."""
    try:
        with _terminated_as_interrupted():
            yield
    except NonFiniteLossError as error:
        _fail(str(error), 1)
    except WmkitError as error:
        _fail(str(error), 2)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        thing = repr(str(error.filename)) if error.filename else "the disk"
        _fail(
            f"{thing} cannot be used: found {error.strerror}, wanted to read and write there; change that, "
            "or choose another run_dir",
            2,
        )
    except KeyboardInterrupt:
        _fail("interrupted", 130)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM as Ctrl-C in this process; those that it starts end by it, as always."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = os.getpid()

    def stop(number: int, frame: Any) -> None:
        if os.getpid() == ours:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, code: int) -> None:
    print(f"wmkit: {message}", file=sys.stderr)
    raise typer.Exit(code)


@app.command()
def train(
    system: Annotated[Optional[str], typer.Argument(help="A name from `wmkit list system`.")] = None,  # noqa: UP045
    overrides: Overrides = None,
    trust: Trust = False,
) -> None:
    """Train SYSTEM; without a system, list the systems.

    preset=smoke|quick|full chooses the budget, run_dir=PATH the folder, resume=RUN continues a run.
    """
    with reported():
        if system is None:
            _print_list("system")
            return
        config = read_config(system, overrides or [], trust=trust)
        from wmkit.training import train as run_training

        summary = run_training(config)
        _print_summary(summary)
    if summary.interrupted:
        raise typer.Exit(130)


@app.command("eval")
def evaluate(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN [OVERRIDES]",
            help="A run directory that `wmkit train` made; to plan instead, controller=cem "
            "controller.solver.samples=512 ... behind it. With --released, overrides alone.",
        ),
    ],
    episodes: Annotated[int, typer.Option(help="Episodes to play.", min=1)] = 20,
    best: Annotated[bool, typer.Option(help="Use the best-scored checkpoint instead of the newest.")] = False,
    released: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Evaluate LS-Imagine's published latest.pt: --released latest.pt env=NAME"),
    ] = None,
    trust: Trust = False,
) -> None:
    """Play episodes, one record per reset, and refresh the report."""
    with reported():
        if released is not None:
            from wmkit.training import evaluate_released

            evaluation, directory = evaluate_released(released, what, episodes=episodes)
            last, where = "run", directory.path
        else:
            from wmkit.training import revisit

            evaluation = revisit(what[0], episodes=episodes, best=best, trust=trust, controller=what[1:])
            last, where = "report", Path(what[0]) / "report.html"
        for name, value in evaluation.numbers().items():
            typer.echo(f"{name.replace('_', ' '):<14} {value:.3g}")
        typer.echo(f"{'protocol':<14} {evaluation.protocol}")
        typer.echo(f"{last:<14} {where}")


@app.command()
def imagine(run: Run, trust: Trust = False) -> None:
    """Lay an imagined roll-out beside what really happened, in the run's report."""
    with reported():
        from wmkit.training import revisit

        revisit(run, episodes=2, trust=trust)
        from wmkit.training.report import drawn

        typer.echo(f"{'drawn':<14} {drawn(run, trust=trust)}")
        typer.echo(f"{'report':<14} {run / 'report.html'}")


@app.command()
def report(run: Run, trust: Trust = False) -> None:
    """Write report.html anew from what lies in the run directory."""
    with reported():
        from wmkit.training import RunDirectory, write_report

        typer.echo(f"report {write_report(RunDirectory.open(run, trust=trust))}")


@affordance_app.command("fit")
def fit(
    overrides: Overrides = None,
    system: Annotated[str, typer.Option(help="The system whose affordance block is used.")] = "ls_imagine",
    trust: Trust = False,
) -> None:
    """Collect frames at random, label them by virtual exploration, train the U-Net, report agreement."""
    with reported():
        config = read_config(system, overrides or [], trust=trust)
        from wmkit.training import fit_only

        path, agreement = fit_only(config)
        for name, value in agreement.items():
            typer.echo(f"{name.replace('_', ' '):<26} {value:.3f}")
        typer.echo(f"{'model':<26} {path}  (use it with affordance.model={path})")


@app.command("list")
def list_names(
    kind: Annotated[
        str, typer.Argument(help="system, env, preset, size, domain, backbone, scorer, ...")
    ] = "system",
) -> None:
    """Print every part of KIND, plug-ins included; presets, sizes, domains and backbones by system."""
    with reported():
        _print_list(kind)


@app.command()
def doctor(
    system: Annotated[Optional[str], typer.Argument(help="Also size up this system.")] = None,  # noqa: UP045
    overrides: Overrides = None,
    trust: Trust = False,
) -> None:
    """Show versions, what is missing and what it costs."""
    with reported():
        from wmkit.cli.doctor import examine

        config = read_config(system, overrides or [], trust=trust) if system else None
        for name, finding in examine(config):
            typer.echo(f"{name:<24} {finding}")


def read_config(system: str, overrides: list[str], *, trust: bool = False) -> DictConfig:
    """Compose a system's configuration, or continue the one of ``resume=RUN`` with further overrides.

    With ``trust`` that run's configuration may name anything; without, parts alone.

    Raises:
        ConfigError: an unknown system or override, or a run of another system.
    """
    from wmkit.registry import GROUPS
    from wmkit.systems.overrides import check_key, misplaced, read_value
    from wmkit.systems.pages import check_values, name_targets

    for override in overrides:
        check_key(override)
    named = {read_value(o) or "" for o in overrides if o.lstrip("+").startswith("resume=")}
    if len(named) > 1:
        raise ConfigError(
            f"resume is given {len(named)} times: found {', '.join(sorted(named))}, wanted one run; leave one"
        )
    resume = "".join(named)
    if not resume:
        from wmkit.systems import compose

        return compose(system, overrides)
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from wmkit.training.run import RunDirectory

    given = [key for override in overrides for key in _given(override)]
    run = RunDirectory.open(resume, trust=trust, given=given)
    if run.config.system != system:
        raise ConfigError(
            f"run {resume!r} cannot be resumed as {system!r}: found a run of {str(run.config.system)!r}, "
            f"wanted one of {system!r}; use wmkit train {run.config.system} resume={resume}"
        )
    config = run.config.copy()
    for override in overrides:
        name, equals, _ = override.partition("=")
        key = name.lstrip("+")
        if key == "resume":
            continue
        if key == "run_dir":
            if Path(read_value(override) or resume) == Path(resume):
                continue
            raise ConfigError(
                f"override {override!r} does not fit a resumed run: found it in {resume!r}, wanted it "
                "to stay there; leave run_dir away, or copy the run and resume the copy"
            )
        if not equals or name in GROUPS:
            raise ConfigError(
                f"override {override!r} does not fit a resumed run: wanted NAME=VALUE of a name in its "
                "config.yaml; choose sizes, presets and the like when a run begins"
            )
        if sentence := misplaced(config, "data.path" if name == "data" else name, system):
            raise ConfigError(sentence)
        key = "data.path" if key == "data" else key
        OmegaConf.update(config, key, read_value(override))
        try:
            OmegaConf.resolve(config.copy())
        except OmegaConfBaseException as error:
            raise ConfigError(
                f"override {override!r} does not fit run {resume!r}: found {' '.join(str(error).split())}, "
                "wanted a value that all who read it can take; correct it"
            ) from error
    name_targets(config)
    check_values(config, system, overrides)
    config.resume, config.run_dir = str(resume), str(resume)
    return config


def _given(override: str) -> Iterator[str]:
    """Keys that an override sets: of a mapping, which goes over what is there, those in it."""
    from wmkit.systems.overrides import read_value

    key, _, text = override.partition("=")
    found = [(key.lstrip("+"), read_value(override) if text.lstrip().startswith("{") else None)]
    while found:
        path, value = found.pop()
        if isinstance(value, dict):
            found += [(f"{path}.{name}", inner) for name, inner in value.items()]
        else:
            yield path


def _print_list(kind: str) -> None:
    from wmkit.cli.listing import listing

    for line in listing(kind):
        typer.echo(line)


def _print_summary(summary: Any) -> None:
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.0f} %"

    lines = [("run", summary.run)]
    if summary.interrupted:
        lines.append(("interrupted", f"saved; go on with resume={summary.run}"))
    if summary.offline:
        lines.append(("from records", f"{summary.offline:,} updates"))
    frames = "" if summary.frames is None else f" ({summary.frames:,} frames)"
    lines.append(("environment steps", f"{summary.steps:,}{frames} in {summary.minutes:.1f} min"))
    lines.append(("updates", f"{summary.updates:,}"))
    if summary.success_rate is not None:
        lines.append(
            ("success rate", f"{percent(summary.success_rate)} of {summary.episodes} evaluation episodes")
        )
    if summary.episode_return is not None:
        lines.append(("return", f"{summary.episode_return:.2f}, mean of {summary.episodes} episodes"))
        if summary.crafter_score is not None:
            lines.append(("Crafter score", f"{summary.crafter_score:.2f} %, of the same episodes"))
        lines.append(("protocol", summary.protocol))
    rules = f": {summary.training_rules}" if summary.training_rules else ", by the evaluation's rules"
    last = f"the last {summary.training_episodes} episodes{rules}"
    if summary.training_success_rate is not None:
        lines.append(("success in training", f"{percent(summary.training_success_rate)} of {last}"))
    elif summary.training_return is not None:
        lines.append(("return in training", f"{summary.training_return:.2f}, mean of {last}"))
    if (Path(summary.run) / "report.html").exists() and not summary.interrupted:
        lines.append(("report", str(Path(summary.run) / "report.html")))
    for name, value in lines:
        typer.echo(f"{name:<20} {value}")
    if summary.learned:
        typer.echo(summary.learned)


from wmkit.cli.data import data_app  # noqa: E402  (which uses what stands above)
from wmkit.cli.minedojo import minedojo_app  # noqa: E402

app.add_typer(data_app, name="data")
app.add_typer(minedojo_app, name="minedojo")
