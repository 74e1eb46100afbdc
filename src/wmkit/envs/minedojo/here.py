"""MineDojo in this very process, where its versions allow it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wmkit.envs.minedojo.far.world import SimulatorError, World
from wmkit.envs.minedojo.observations import Report, hud_mask, read_report
from wmkit.errors import ConfigError, EnvironmentCrashError


class MineDojoHere:
    """A :class:`~wmkit.envs.minedojo.client.Simulator`; a step that hangs is answered when Malmo's socket is.

    Args:
        recipe: see :mod:`wmkit.envs.minedojo.far.world`.
        port: of a Malmo that runs already; None starts Minecraft.
        malmo: the folder that starts Minecraft; None is MineDojo's own.
        step_timeout: seconds in which Malmo must answer a message of a step.
        reset_timeout: the same of a reset.
        raw: have reports bring what the game said.

    Raises:
        ConfigError: MineDojo is not here, or cannot run with this numpy.
    """

    def __init__(
        self,
        recipe: dict[str, Any],
        *,
        port: int | None = None,
        malmo: Path | None = None,
        step_timeout: float = 60.0,
        reset_timeout: float = 900.0,
        raw: bool = False,
    ) -> None:
        self._raw = raw
        mask = hud_mask() if recipe.get("hud") == "inpaint" else None
        try:
            self._world = World(
                recipe,
                port=port,
                malmo=None if malmo is None else str(malmo),
                patience=(step_timeout, reset_timeout),
                mask=mask,
            )
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"MineDojo cannot be played in this process: found {type(error).__name__}: {error}, wanted "
                "minedojo 0.1 with a numpy before 2; leave server=false out and run `wmkit minedojo setup`"
            ) from error
        except SimulatorError as error:
            raise EnvironmentCrashError(
                f"MineDojo failed: found {error}, wanted a task; correct it"
            ) from error

    def reset(self, *, full: bool, seed: int | None) -> Report:
        """Begin an episode."""
        return self._told("reset", self._world.reset, full=full, seed=seed)

    def step(self, action: Any) -> Report:
        """One step."""
        return self._told("step", self._world.step, action)

    def close(self) -> None:
        """End the connection, and the Minecraft that was started."""
        self._world.close()

    def _told(self, what: str, call: Any, *args: Any, **kwargs: Any) -> Report:
        try:
            frame, said = call(*args, **kwargs)
        except Exception as error:
            raise EnvironmentCrashError(
                f"MineDojo failed in {what}: found {type(error).__name__}: {error}, wanted an answer; reset "
                "the environment to start another"
            ) from error
        if not self._raw:
            said["raw"] = None
        return read_report(said, frame)
