"""Names that are not wmkit's own: ids of gymnasium's, and what chooses an environment named in part."""

from __future__ import annotations

import difflib
import importlib
import re
from contextlib import suppress

from wmkit.envs.vizdoom.tasks import PREFIX, TASKS
from wmkit.errors import ConfigError
from wmkit.registry import available

MINIGRID = ("MiniGrid-", "BabyAI-")
_REGISTRARS = ("ale_py", "minigrid", "gym_pusht")  # gymnasium knows their ids once they are imported
# [namespace/]name-vN, or anything behind the module that registers it.
_ID = re.compile(r"([\w-]+/)?[\w.-]+-v\d+|[\w.]+:[\w/.-]+")


def is_gymnasium_id(name: str) -> bool:
    """Whether gymnasium is to be asked: by its form, or because it is registered already.

    >>> [is_gymnasium_id(name) for name in ("CartPole-v1", "ALE/Pong-v5", "my.module:Room", "pong")]
    [True, True, True, False]
    """
    if _ID.fullmatch(name):
        return True
    import gymnasium

    return name in gymnasium.registry


def register_ids() -> None:
    """Have the packages of wmkit's extras that are there register their ids with gymnasium."""
    for package in _REGISTRARS:
        with suppress(ImportError):
            importlib.import_module(package)


def find_meant(name: str) -> dict[str, str]:
    """Environments that are called so when their family or version is left out.

    Args:
        name: a game of Atari, a task, or an id of gymnasium's, with or without its version.

    Returns:
        Their full names, and what chooses each of them in a run.

    >>> find_meant("cartpole")
    {'CartPole-v1': 'env=gymnasium env.name=CartPole-v1'}
    """
    from wmkit.envs.atari import find_game
    from wmkit.envs.dmc import find_suite_task

    if name in TASKS:
        return {PREFIX + name: f"env={name}"}
    with suppress(ConfigError):
        game = find_game(name)
        return {f"{page}/{game}": f"env={page} env.game={game}" for page in ("atari100k", "atari")}
    with suppress(ConfigError):
        task = "_".join(find_suite_task(name))
        return {f"{page}/{task}": f"env={page} env.task={task}" for page in ("dmc_proprio", "dmc_vision")}
    found = name if is_gymnasium_id(name) else _newest(name)
    page = "minigrid" if found.startswith(MINIGRID) else "gymnasium"
    return {found: f"env={page} env.name={found}"} if found else {}


def unknown_env(name: str) -> ConfigError:
    """The error for a name that no environment has, with what was meant or what is near.

    >>> unknown_env("cartpole").args[0]
    "env 'cartpole' is unknown: wanted 'CartPole-v1'; in a run write env=gymnasium env.name=CartPole-v1"
    """
    if meant := find_meant(name):
        wanted, how = " or ".join(map(repr, meant)), " or ".join(meant.values())
        return ConfigError(f"env {name!r} is unknown: wanted {wanted}; in a run write {how}")
    names = available("env")
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]!r}?" if near else "run `wmkit list env`"
    return ConfigError(
        f"env {name!r} is unknown: wanted one of {', '.join(names)}, or an id of gymnasium's "
        f"(env=gymnasium env.name=ID); {hint}"
    )


def _newest(name: str) -> str:
    """The id of the newest version, in whatever case the name was written; empty where there is none."""
    import gymnasium

    register_ids()
    specs = [
        spec
        for key, spec in gymnasium.registry.items()
        if key.removesuffix(f"-v{spec.version}").lower() == name.lower()
    ]
    return max(specs, key=lambda spec: spec.version or 0).id if specs else ""
