"""What a run keeps of itself in a checkpoint, and how it is taken up again.

    of a checkpoint     what was learned, counts, sums of the log, sampler, chance, where the environments are
    of the replay       every step that was taken

Stopped by an interrupt, a limit or its end, a run goes on exactly as if it had not been stopped, if its
environments can be brought back (:mod:`wmkit.training.worlds`). Where they cannot, new episodes begin and
all else goes on. A killed run has steps in its replay of which its checkpoint does not know: they count, and
owe no updates.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wmkit.data.repair import clear_latents, not_finite
from wmkit.errors import CheckpointError, EnvironmentCrashError, NonFiniteLossError, SpecError
from wmkit.training.checkpoints import RUN, check_shapes, rng_state, set_rng_state
from wmkit.training.owed import settle

if TYPE_CHECKING:
    from wmkit.training.trainer import Trainer


def state_of(trainer: Trainer) -> dict[str, Any]:
    """Everything that a checkpoint of this run holds."""
    state = {
        "system": trainer.system.state_dict(),
        "counters": {
            "step": trainer.step,
            "updates": trainer.updates,
            "owed": trainer.ratio.owed,
            "left": trainer.ratio.left,
            "score": trainer.score,
            "replay_steps": trainer.memory.env_steps,
            "since": trainer.since | {name: every.since for name, every in trainer.due.items()},
        },
        "tracker": trainer.tracker.state_dict(),
        "means": trainer.guard.state_dict(),
        "memory": trainer.memory.state_dict(),
        "worlds": trainer.worlds.state_dict(trainer.collection),
        "rng": rng_state(),
    }
    if trainer.transform is not None:
        state["transform"] = dict(trainer.transform.state_dict())
    return state


def save(trainer: Trainer) -> None:
    """Write a checkpoint.

    Raises:
        NonFiniteLossError: what was learned is not finite; the last good state was saved.
        CheckpointError: the disk takes no more.
    """
    try:
        if trainer.updates:
            trainer.guard.check()
        trainer.checkpoints.save(trainer.step, state_of(trainer), trainer.score)
    except NonFiniteLossError as error:
        raise rescued(trainer, error) from None


def rescued(trainer: Trainer, error: NonFiniteLossError) -> NonFiniteLossError:
    """Save the last good state, clean what a bad one wrote to replay, and say where it lies."""
    good = trainer.guard.good
    if good is not None:
        with contextlib.suppress(NonFiniteLossError):  # losses may stay finite when weights do not
            trainer.checkpoints.save(good["counters"]["step"], {**good, "worlds": {}}, trainer.score)
    latest = trainer.checkpoints.latest()
    found = not_finite(trainer.memory.streams, latents=True)
    clear_latents(trainer.memory.streams, found.latents)  # a resumed run would start windows from them
    if found.shown:
        return NonFiniteLossError(f"{error.args[0].partition(';')[0]}; {found.advice(trainer.run.path)}")
    return NonFiniteLossError(f"{error} (saved in {latest})")


def stopped(trainer: Trainer, error: EnvironmentCrashError | SpecError) -> EnvironmentCrashError | SpecError:
    """Save, then say where it lies and how to go on."""
    save(trainer)
    return type(error)(
        f"{error} (saved in {trainer.checkpoints.latest()}; go on with resume={trainer.run.path})"
    )


def restore(trainer: Trainer) -> None:
    """Take a run up where its files end; of a new one there is nothing.

    Raises:
        CheckpointError: they are damaged, or of another system.
    """
    memory = trainer.memory
    settle(trainer.run, memory.streams.stream_steps())
    if found := not_finite(memory.streams):
        raise CheckpointError(found.advice(trainer.run.path))
    path = trainer.checkpoints.latest()
    if path is None:
        trainer.step = memory.env_steps  # killed before the first checkpoint: the replay is all there is
        if trainer.step:
            trainer.worlds.begin_anew(trainer.collection, None, trainer.step)
        return
    state = trainer.checkpoints.load(path, RUN)
    restore_system(trainer.system, state["system"], str(path))
    counters = state["counters"]
    trainer.updates, trainer.score = counters["updates"], counters["score"]
    trainer.ratio.restore(counters["owed"], counters.get("left"))
    trainer.since = counters.get("since", {})
    # Steps written after the checkpoint are in the replay and count; they owe no updates.
    later = memory.env_steps - counters["replay_steps"]
    trainer.step = counters["step"] + max(later, 0)
    if later < 0:
        trainer.stages.say(
            f"replay in {str(trainer.run.path)!r} is not whole: found {memory.env_steps:,} steps, "
            f"wanted the {counters['replay_steps']:,} that its checkpoint knows of; what is missing is "
            "not learned from again"
        )
    trainer.guard.updates = trainer.updates
    trainer.guard.load_state_dict(state.get("means", {}))
    trainer.tracker.load_state_dict(state["tracker"])
    memory.load_state_dict(state["memory"])
    _restore_worlds(trainer, state, later)
    if trainer.transform is not None and "transform" in state:
        check_shapes(state["transform"], trainer.transform.state_dict(), str(path), "transform/")
        trainer.transform.load_state_dict(state["transform"])
    set_rng_state(state["rng"])


def _restore_worlds(trainer: Trainer, state: Mapping[str, Any], later: int) -> None:
    found = state.get("worlds")
    fits = bool(found) and len(state["tracker"].get("open", [[]])[0]) == trainer.num_envs
    if later == 0 and fits and trainer.worlds.restore(found, trainer.collection, trainer.memory.streams):
        trainer.tracker.go_on(state["tracker"])
        trainer.memory.go_on()
        if trainer.prolong is not None:
            trainer.prolong.waiting = trainer.memory.waiting()
        return
    if later == 0 and found:
        trainer.stages.say(
            "the environments could not be brought back to where they were: found others when their "
            "episodes were played again, wanted the same; new episodes begin"
        )
    episodes = found.get("episodes") if isinstance(found, dict) else None
    passed = trainer.step if episodes is None else max(later, 0)
    trainer.worlds.begin_anew(trainer.collection, episodes, passed)


def restore_system(system: Any, state: dict[str, Any], source: str) -> None:
    """Load a system's state after comparing every shape: what was learned, and how far; options stay its own.

    Raises:
        CheckpointError: names the first parameter that does not fit.
    """
    wanted = system.state_dict()
    options = {name for name, _ in system.named_buffers()} - wanted.keys()  # which older checkpoints have
    state = getattr(system, "renamed", dict)(state)
    state = {name: value for name, value in state.items() if name not in options}
    check_shapes(state, wanted, source)
    try:
        system.load_state_dict(state)
    except CheckpointError:
        raise
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"checkpoint {source!r} does not fit: found {' '.join(str(error).split())}, wanted all that the "
            "system keeps; use the size and parts of the run's own config.yaml"
        ) from error
