"""Plan with any trained system: ``controller=NAME`` becomes a planner over its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wmkit.arguments import check_page
from wmkit.control import Planner, StateReturns
from wmkit.control.planners import PredictedReturn
from wmkit.errors import ConfigError
from wmkit.places import made, placed
from wmkit.registry import unknown
from wmkit.systems.overrides import misplaced, read_value
from wmkit.systems.pages import name_targets
from wmkit.systems.system import System

SAMPLED = {"samples": 256, "iterations": 6, "elites": 32}
SOLVERS: dict[str, dict[str, Any]] = {
    "cem": SAMPLED,
    "icem": SAMPLED,
    "mppi": {**SAMPLED, "temperature": 0.5, "refit": [0.05, 2.0]},
    "categorical_cem": {**SAMPLED, "smoothing": 0.01, "warm": 0.5},
    "gradient": {"samples": 8, "iterations": 20},
    "predictive_sampling": {"samples": 256, "std": 0.5},
    "beam_search": {"beams": 16, "branches": 4, "draws": 1, "keep": "global", "replace_every": 0},
}
"""What ``controller=NAME`` means unless it is told otherwise: fewer candidates than published, for a CPU."""

HORIZON = 12


def make_planner(system: System, overrides: Sequence[str]) -> Planner:
    """A planner over a system's parts.

    Its cost is the return that the system predicts, with its critic's value at the end.

    Args:
        system: trained or not.
        overrides: ``controller=NAME`` with one of :data:`SOLVERS`, and ``controller.KEY=VALUE`` of
            :class:`~wmkit.control.Planner`, its ``solver`` and its ``cost``.

    Raises:
        ConfigError: an unknown name or key, or a value that does not fit.

    >>> from torchrl.data import Composite, OneHot, Unbounded
    >>> import wmkit
    >>> spec, tiny = Composite(observation=Unbounded((2,))), ["size=tiny"]
    >>> system = wmkit.build("dreamer_v3", observation_spec=spec, action_spec=OneHot(3), overrides=tiny)
    >>> planner = make_planner(system, ["controller=cem", "controller.solver.samples=64"])
    >>> planner.solver.samples, planner.horizon
    (64, 12)
    """
    name, given = _read(overrides)
    node = _page(system, name)
    for key, value in given.items():
        if sentence := misplaced(node, key.removeprefix("+"), f"controller={name}") if key[0] != "+" else "":
            raise ConfigError(sentence)
        try:
            OmegaConf.update(node, key.removeprefix("+"), value)
        except OmegaConfBaseException as error:
            raise ConfigError(
                f"{key} cannot be set: found {' '.join(str(error).split())}, wanted a value; correct it"
            ) from error
    name_targets(node)
    plain: Any = OmegaConf.to_container(node)
    check_page(plain["controller"], "controller")
    with made("controller", InstantiationException):
        make = placed(instantiate(node.controller, _convert_="all"), "controller")
        planner: Planner = make(system.actor, system.critic)
    return planner.of(system.spaces.actions)


def make_policy(system: System, overrides: Sequence[str]) -> Any:
    """The policy of :func:`make_planner`, for environments that carry what it remembers."""
    policy = system.policy_of(make_planner(system, overrides))
    policy.precision = system.carry_dtype
    return policy


def _read(overrides: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The solver's name, and values by key."""
    name, given = "", {}
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or key.lstrip("+").partition(".")[0] != "controller":
            raise ConfigError(
                f"override {override!r} does not fit an evaluation: wanted controller=NAME, or "
                "controller.KEY=VALUE of that; train anew for anything else"
            )
        if key == "controller":
            name = str(read_value(override))
        else:
            given[key] = read_value(override)
    if name not in SOLVERS:
        hint = "pick one with controller=NAME"
        if not name:
            raise ConfigError(f"controller is not chosen: wanted one of {', '.join(SOLVERS)}; {hint}")
        raise unknown("controller", name, list(SOLVERS), hint)
    return name, given


def _page(system: System, name: str) -> DictConfig:
    own, solver = system.controller, {"_target_": name, **SOLVERS[name]}
    if system.spaces.actions == "continuous" and name != "categorical_cem":
        solver["bounds"] = {"_target_": "wmkit.control.planners.Clamp"}
    page: dict[str, Any] = {
        "_target_": "wmkit.control.Planner",
        "_partial_": True,
        "horizon": HORIZON,
        "execute": 1,
        "prior": 0,
        "explore": False,
        "solver": solver,
        "cost": _cost(system),
    }
    if isinstance(own, Planner):
        page |= {"horizon": own.horizon, "prior": own.prior, "explore": own.explore}
    return OmegaConf.create({"controller": page})


def _cost(system: System) -> dict[str, Any]:
    own = system.controller
    cost: dict[str, Any] = {"_target_": "predicted_return", "gamma": 1.0, "value": "state"}
    known = getattr(own, "cost", None)
    if isinstance(known, PredictedReturn):
        names = ("rewards", "gamma", "value", "value_has_reward")
        return cost | {key: getattr(known, key) for key in names}
    if own is None or system.critic is None:
        return cost | {"value": "none", "rewards": {"reward": 1.0}}
    returns = own.returns
    state = isinstance(returns, StateReturns)
    if not state:
        cost["gamma"] = float(returns.gamma)
    elif "continuation" not in system.world_model.heads:
        cost["gamma"] = float(returns.discount)
    return cost | {"rewards": dict(own.outcome.rewards), "value_has_reward": state}
