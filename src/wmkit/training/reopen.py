"""Look at a run again: load its system, play episodes, refresh the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf

from wmkit.training.checkpoints import RUN, CheckpointStore
from wmkit.training.collect import closing
from wmkit.training.evaluate import Episode, Evaluation, evaluate, headline, means
from wmkit.training.keeping import restore_system
from wmkit.training.parts import Parts, default_parts
from wmkit.training.progress import Stages
from wmkit.training.protocol import EVALUATION_SEED, EvaluationProtocol
from wmkit.training.records import Records
from wmkit.training.report import gather_evidence, write_report
from wmkit.training.run import RunDirectory
from wmkit.training.settings import Settings, set_up


class Opened(NamedTuple):
    """A run that was trained, ready to be looked at.

    Attributes:
        system: with what was learned.
        memory: its replay.
        run: its directory.
        step: environment steps when the checkpoint was written.
        affordance: model and text features; None for systems without.
        device: where the system computes.
        parts: how its environments are made.
    """

    system: Any
    memory: Any
    run: RunDirectory
    step: int
    affordance: Any
    device: torch.device
    parts: Parts

    def make_world(self, policy: Any = None) -> Any:
        """The environments of an evaluation, carrying what the system's policy, or another one, remembers."""
        config = self.run.config
        base = self.parts.make_env(config, self.affordance, seed=EVALUATION_SEED, evaluation=True)
        return self.parts.carry(base, self.system, policy)


def load_run(
    path: str | Path,
    *,
    best: bool = False,
    trust: bool = False,
    parts: Parts | None = None,
    stages: Stages | None = None,
) -> Opened:
    """Open a run: its system as its newest (or best) checkpoint has it, and its replay.

    Args:
        path: the run directory.
        best: take the checkpoint with the highest success rate, or return without flags.
        trust: let its configuration name code of any package; see :meth:`RunDirectory.open`.
        parts: stand-ins for tests.
        stages: draws the progress bars.

    Raises:
        CheckpointError: no run, no checkpoint, or one of another shape.
        ConfigError: its configuration names more than known parts.
    """
    run, parts = RunDirectory.open(path, trust=trust), parts or default_parts()
    config, store = run.config, CheckpointStore(run.path / "checkpoints")
    if config.get("data") is not None:
        parts = Records(config, run).parts(parts)
    checkpoint = (store.best() if best else None) or store.latest()
    state = store.load(checkpoint, RUN)
    device, _ = set_up(config)
    affordance = parts.prepare_affordance(config, run, stages or Stages())
    with closing(parts.make_env(config, affordance, seed=0)) as env:
        system = parts.build(config, env, device)  # what training saw decides the system's shape
    restore_system(system, state["system"], str(checkpoint))
    memory = parts.make_memory(config, run, system, int(OmegaConf.select(config, "env.num_envs", default=1)))
    return Opened(system, memory, run, state["counters"]["step"], affordance, device, parts)


def revisit(
    path: str | Path,
    *,
    episodes: int,
    best: bool = False,
    trust: bool = False,
    controller: Sequence[str] = (),
    parts: Parts | None = None,
    stages: Stages | None = None,
) -> Evaluation:
    """Evaluate a run's newest (or best) checkpoint and write its report anew.

    Args:
        path: the run directory.
        episodes: how many to play, one record per reset.
        best: take the checkpoint with the highest success rate, or return without flags.
        trust: let its configuration name code of any package; see :meth:`RunDirectory.open`.
        controller: ``controller=NAME`` and its options: what plans instead of the run's own policy
            (:func:`wmkit.systems.planning.make_planner`).
        parts: stand-ins for tests.
        stages: draws the progress bar.

    Raises:
        CheckpointError: no run, no checkpoint, or one of another shape.
        ConfigError: its configuration names more than known parts, or ``controller`` does not fit.
    """
    opened = load_run(path, best=best, trust=trust, parts=parts, stages=stages)
    run, system = opened.run, opened.system
    run.check_writable()
    stages = stages or Stages()
    policy, protocol = system.policy, EvaluationProtocol.of(run.config, episodes)
    if controller:
        from wmkit.systems.planning import make_policy

        policy = make_policy(system, controller)
        protocol = replace(protocol, controller=" ".join(controller).removeprefix("controller="))
    result = play(run, policy, opened.make_world(policy), protocol, opened.step, stages)
    gather_evidence(run, system, result, opened.memory, opened.device, opened.affordance, stages.say)
    write_report(run, stages.say)
    run.close()
    return result


def play(
    run: RunDirectory, policy: Any, world: Any, protocol: EvaluationProtocol, step: int, stages: Stages
) -> Evaluation:
    """Play episodes by a protocol, each written down once, and close the environments.

    Args:
        run: gets the episodes' lines and the score.
        policy: acts.
        world: environments of an evaluation.
        protocol: how many episodes, and by which rules.
        step: environment steps that the policy learned from.
        stages: draws the progress bar.
    """
    done = list[Episode]()
    with closing(world), stages.stage("evaluation", protocol.episodes, "episodes") as bar:

        def count(episode: Episode) -> None:
            done.append(episode)
            name, value = headline(means(done)) or ("return", 0.0)
            bar.advance(1, **{name: value})

        limit = Settings.read(run.config).evaluate_limit
        result = evaluate(policy, world, protocol, record=2, limit=limit, on_episode=count)
    for episode in result.episodes:
        run.episode(step, "evaluate", episode.line())
    run.score(step, "evaluate", result.numbers(), (result.protocol or protocol).record())
    return result
