"""Environments by name, alone or in a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

from torchrl.envs import EnvBase, SerialEnv

from wmkit.arguments import check_arguments
from wmkit.envs.adapters import making
from wmkit.envs.guarded import Guard, Guarded
from wmkit.envs.names import MINIGRID, is_gymnasium_id, unknown_env
from wmkit.envs.parallel import ParallelWorlds
from wmkit.envs.vizdoom.tasks import PREFIX, find_task
from wmkit.errors import ConfigError
from wmkit.registry import available, resolve


def make_env(
    name: str,
    *,
    num_envs: int | None = None,
    parallel: bool = False,
    seed: int = 0,
    guard: Guard | None = None,
    **options: Any,
) -> EnvBase:
    """An environment, or ``num_envs`` of them side by side.

    Args:
        name: ``vizdoom/<task>``, ``counting``, ``two_rooms``, ``crafter``, ``gym/<Id>``, ``minigrid/<Id>``,
            ``dmc_proprio/<task>``, ``dmc_vision/<task>``, ``atari/<game>``, ``atari100k/<game>``, or any
            name that a plug-in registered under the kind ``env`` (a callable that takes ``seed`` and
            options and returns an EnvBase; what follows a slash is its first argument). An id of
            gymnasium may stand alone: ``CartPole-v1``, ``ALE/Pong-v5``, ``module:Id``; one that begins with
            a name of the above and a slash needs ``gym/`` in front.
        num_envs: None for one unbatched environment, else the batch size.
        parallel: a process for each environment instead of one after another.
        seed: environment i of a batch plays the stream ``seed + i``.
        guard: of a batch whose environments are made anew when they fail, see :mod:`wmkit.envs.guarded`.
        **options: of the environment.

    Raises:
        ConfigError: an unknown name or option, or an option out of range.

    >>> make_env("counting", num_envs=2).rollout(7)["next", "reward"].shape
    torch.Size([2, 7, 1])
    """
    if num_envs is not None and num_envs < 1:
        raise ConfigError(
            f"num_envs={num_envs} is out of range: wanted at least 1, or None for an unbatched one"
        )
    create = partial(_constructor(name), **options)
    _check_options(name, create)
    create = partial(_made, name, create)
    if num_envs is None:
        return create(seed=seed)
    constructors = [partial(create, seed=seed + i) for i in range(num_envs)]
    if parallel:
        return ParallelWorlds(constructors, guard)
    if guard is None:
        return SerialEnv(num_envs, constructors)
    env = SerialEnv(num_envs, [partial(Guarded, one, i, guard) for i, one in enumerate(constructors)])
    env.guard = guard
    return env


def read_options(name: str, **options: Any) -> dict[str, Any]:
    """Arguments of an environment's constructor: ``options``, and its defaults for the others.

    Nothing is made. ``max_steps`` is also known of gymnasium's environments, from their registry; None
    where that says nothing.

    Raises:
        ConfigError: an unknown name or option.

    >>> read_options("counting", truncate=True)["length"]
    7
    """
    create = partial(_constructor(name), **options)
    bound = _check_options(name, create)
    known: dict[str, Any] = {}
    for key, value in bound.arguments.items():
        if bound.signature.parameters[key].kind is inspect.Parameter.VAR_KEYWORD:
            known |= value  # handed on to another constructor
        elif key not in ("self", "seed"):
            known[key] = value
    if "env_id" in known:
        import gymnasium

        registered = gymnasium.registry.get(known["env_id"].rpartition(":")[2])  # less the module
        limit = registered.max_episode_steps if registered is not None else None
        known.setdefault("max_steps", known.get("max_episode_steps", limit))
    return known


def read_rules(name: str, **options: Any) -> dict[str, Any]:
    """The ``rules`` of an environment beyond its options, if it has any.

    To ask for them one environment is made and closed.

    Raises:
        ConfigError: an unknown name or option, or an option out of range.

    >>> read_rules("atari100k/pong", fire=True)["fewest_noops"]  # doctest: +SKIP
    1
    """
    create = _constructor(name)
    if not hasattr(getattr(create, "func", create), "rules"):
        return {}
    env: Any
    with closing(make_env(name, **options)) as env:
        return env.rules


def _constructor(name: str) -> Callable[..., EnvBase]:
    if name.startswith(PREFIX):
        find_task(name)  # its message is the better one
    names = available("env")
    if name in names:
        return resolve("env", name)
    family, slash, one = name.partition("/")
    if slash and family in names:
        return partial(resolve("env", family), one)
    if is_gymnasium_id(name):
        return partial(resolve("env", "minigrid" if name.startswith(MINIGRID) else "gym"), name)
    raise unknown_env(name)


def _made(name: str, create: partial, *, seed: int) -> EnvBase:
    """An environment; only its own constructor may know what its options mean, and what else it needs."""
    with making(name, create.keywords):
        return create(seed=seed)


def _check_options(name: str, create: partial) -> inspect.BoundArguments:
    """Every argument of the constructor of ``name``; options that it does not have are refused."""
    target: Any = create.func
    arguments = create.args
    if isinstance(target, type):  # EnvBase's metaclass hides the constructor's signature
        target, arguments = target.__init__, (None, *arguments)  # type: ignore[misc]
    try:
        bound = inspect.signature(target).bind(*arguments, seed=0, **create.keywords)
    except TypeError as error:
        raise ConfigError(
            f"env {name!r} cannot take these options: {error}; see its documentation"
        ) from error
    check_arguments(create.func, create.keywords, "options")
    bound.apply_defaults()
    return bound
