"""DreamerV3 beside its own code (danijar/dreamerv3 e3f0224, JAX 0.4.33, float32): three whole updates.

Size 1m, 4 windows of 16 records and one of context, vectors, continuous and discrete actions, learning rate
1e-3 and a warm-up of two updates. The original's uniforms go through both samplers, the same at every step.
Tensors are recorded whole where they are small; gradients, the optimiser's state and parameters as *probes*:
the norm and four random sums. The first update changes no trained parameter (its rate is zero), so updates 1
and 2 are compared to rounding and the third a little more loosely.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded, Composite, OneHot, Unbounded

import wmkit
from support.originals import Recorded, kept, rows_first
from wmkit.control import TransitionReturns, actor_critic, losses
from wmkit.objectives import episode_ends
from wmkit.systems import System
from wmkit.systems.convert import dreamerv3_jax

WINDOWS, LENGTH, ACTIONS, CLASSES, HORIZON, UPDATES = 4, 16, 6, 4, 15, 3
MOMENTS = ("square", "momentum")
VECTORS = {"height": 1, "orientations": 14, "velocity": 9}
TERMS = {key: key for key in VECTORS} | {
    "rew": "reward",
    "con": "continuation",
    "dyn": "kl_dynamics",
    "rep": "kl_representation",
}
METRICS = {
    "loss/policy": "loss_actor",
    "loss/value": "loss_critic",
    "loss/repval": "loss_replay_critic",
    "opt/loss": "loss_joint",
    "opt/grad_norm": "grad_norm_joint",
}


# -- what is called inside ---------------------------------------------------------------------------------


def fix_noise(system: System, states: Tensor, imagined: Tensor, actions: Tensor) -> None:
    """Uniforms of posterior ``[B, G]`` and prior ``[N, G]``, and the policy's noise, alike at every step."""

    def noise(*lead: int, device: Any = None) -> Tensor:
        drawn = states[:, None] if lead == (WINDOWS, LENGTH) else imagined[None]
        return drawn.expand(*lead, -1).unsqueeze(-1).contiguous()

    def action_noise(*lead: int, device: Any = None) -> Tensor:
        return actions[None].expand(*lead, -1).contiguous()

    system.world_model.dynamics.latent.noise, system.actor.noise = noise, action_noise


def watch(patch: pytest.MonkeyPatch, system: System) -> dict[str, Any]:
    """What an update makes on its way, by name, filled anew by every update."""
    seen: dict[str, Any] = {"terms": {}}
    controller, model = system.controller, system.world_model

    def keep(owner: Any, name: str, put: Callable[..., Any]) -> None:
        kept(patch, owner, name, lambda *args, **kwargs: seen.update(put(*args, **kwargs)))

    keep(system, "scene", lambda out, *_: {"scene": out})
    keep(model.encoder, "encode", lambda out, *_: {"embed": out})
    keep(controller, "dream", lambda out, *_, **__: {"found": out})
    keep(model, "continuation", lambda out, *_: {"continuation": out})
    keep(TransitionReturns, "__call__", lambda out, *_: {"targets": out})
    keep(controller.return_norm, "normalize", lambda out, *_: {"advantage": out})
    keep(system.actor, "policy", lambda out, *_: {"policy": out})  # the last: of all steps at once
    keep(actor_critic, "total_loss", lambda out, online, target, slow: {"critic": out, "slow": slow})
    keep(losses, "replay_lambda_return", lambda out, *_, **__: {"replay_return": out})
    keep(
        losses,
        "total_loss",
        lambda out, online, _, slow: {"replay": out, "replay_value": online.mean, "replay_slow": slow},
    )
    for objective in system.objectives.values():
        keep(objective, "terms", lambda out, *_: {"terms": seen["terms"] | out})
    return seen


def optimiser_state(system: System) -> Mapping[Tensor, Mapping[str, Tensor]]:
    """``square`` and ``momentum`` of every trained parameter."""
    return system.schedule.learners["joint"].optimizer.state


def parts(system: System, seen: Mapping[str, Any]) -> dict[str, Tensor]:
    """What was seen, under the original's names and with its axes: rows before steps."""
    scene, found, targets, policy = (seen[name] for name in ("scene", "found", "targets", "policy"))
    norm, weight = system.controller.return_norm, rows_first(targets.critic_weight)[..., 0]
    log_probs, entropies = rows_first(policy.log_prob(found.actions)), rows_first(policy.entropy)
    advantage = rows_first(seen["advantage"])
    actor = -weight * (log_probs * advantage[..., 0] + system.controller.entropy * entropies)
    ended = episode_ends(scene.batch)[:, :-1, 0]
    made = {
        "posterior_class": scene.observed.latent.classes,
        "imagined_class": rows_first(found.latent.classes),
        "losses/policy": actor.mean(1),
        "losses/value": (weight * seen["critic"].t()).mean(1),
        "losses/repval": torch.where(ended, 0.0, seen["replay"]),
        "scalar/x/lo": norm.low,
        "scalar/x/scale": norm.scale(),
        "imagined_ret": rows_first(targets.critic),
        "tokens": seen["embed"],
        "posterior_logits": scene.observed.posterior_logits,
        "prior_logits": scene.observed.prior_logits,
        "imagined_belief_every_16th": rows_first(found.latent.belief)[::16, ::5],
        "imagined_action": rows_first(found.actions),
        "imagined_rew": rows_first(targets.reward),
        "imagined_con": rows_first(seen["continuation"]),
        "imagined_val": rows_first(targets.baseline),
        "imagined_slowval": rows_first(seen["slow"]),
        "imagined_logp": log_probs,
        "imagined_ent": entropies,
        "imagined_adv": advantage,
        "imagined_weight": weight,
        "replay_ret": seen["replay_return"],
        "replay_val": seen["replay_value"],
        "replay_slow": seen["replay_slow"],
    }
    return made | {f"losses/{theirs}": seen["terms"][ours].value for theirs, ours in TERMS.items()}


# Recorded with one step more than ours, at the end or, of rewards, at the start.
LONGER = {
    "imagined_rew": slice(1, None),
    **dict.fromkeys(
        (f"imagined_{name}" for name in ("action", "val", "slowval", "logp", "ent", "weight")),
        slice(None, -1),
    ),
    **dict.fromkeys(("replay_val", "replay_slow"), slice(None, -1)),
}


# -- the checks --------------------------------------------------------------------------------------------


def built(kind: str) -> System:
    return wmkit.build(
        "dreamer_v3",
        observation_spec=Composite({key: Unbounded((width,)) for key, width in VECTORS.items()}),
        action_spec=Bounded(-1, 1, (ACTIONS,)) if kind == "continuous" else OneHot(ACTIONS),
        overrides=[
            *("size=1m", f"batch.size={WINDOWS}", f"batch.length={LENGTH}"),
            *("learning_rate.joint=0.001", "schedule.learners.joint.optimizer.warmup=2"),
        ],
    )


def weights(recorded: Recorded, kind: str) -> dict[str, np.ndarray]:
    """The kinds differ in the actor's last layers."""
    known = recorded.weights()
    if kind == "discrete":
        known = {name: x for name, x in known.items() if not name.startswith("pol/head/")}
        known |= recorded.weights("weight_discrete:")
    return known


def records(recorded: Recorded, kind: str) -> TensorDict:
    """The recorded batch, arrival-aligned."""

    def given(name: str) -> Tensor:
        return recorded(f"{kind}/in:{name}")

    action = given("action")
    if kind == "discrete":
        action = F.one_hot(action.long(), ACTIONS).float()
    flags = {"is_init": "is_first", "terminated": "is_terminal", "done": "is_last"}
    batch = {ours: given(theirs)[..., None] for ours, theirs in flags.items()}
    batch |= {key: given(key) for key in VECTORS} | {"reward": given("reward")[..., None]}
    batch["previous_action"] = torch.cat([torch.zeros_like(action[:, :1]), action[:, :-1]], 1)
    batch["state"] = F.one_hot(given("dyn/stoch").long(), CLASSES).float().flatten(2)
    batch["belief"] = given("dyn/deter")
    return TensorDict(batch, [WINDOWS, LENGTH + 1])


def probes(name: str, x: Any) -> np.ndarray:
    """Norm and four random sums of a tensor."""
    flat = np.asarray(x, np.float64).ravel()
    random = np.random.RandomState(zlib.crc32(f"probe/{name}".encode()))
    rows = random.standard_normal((4, flat.size)) / np.sqrt(max(flat.size, 1))
    return np.concatenate([[np.linalg.norm(flat)], rows @ flat])


class Off(dict[str, tuple[float, float]]):
    """Differences beyond their tolerance, as shares of the largest number: all, before a test fails."""

    def near(self, what: str, theirs: Any, ours: Any, tolerance: float) -> None:
        a, b = (np.asarray(torch.as_tensor(x).detach(), np.float64).ravel() for x in (theirs, ours))
        assert a.shape == b.shape, (what, a.shape, b.shape)
        self.share(what, np.abs(a - b).max() / max(np.abs(a).max(), 1e-30), tolerance)

    def probed(
        self, what: str, names: list[str], rows: np.ndarray, arrays: Mapping[str, Tensor], tolerance: float
    ) -> None:
        """Of every tensor as a share of its own norm."""
        for name, row in zip(names, rows, strict=True):
            if name in arrays:
                share = np.abs(row - probes(name, arrays[name])).max() / max(row[0], 1e-12)
                self.share(f"{what} of {name}", share, tolerance)

    def share(self, what: str, share: float, tolerance: float) -> None:
        if not share <= tolerance:
            self[what] = (share, tolerance)


def entropy_share(given: Callable[[str], np.ndarray]) -> float:
    """The factor on the entropy that the recorded losses imply: too small to show in them."""
    x = {
        name: given(f"imagined_{name}").astype(np.float64)[:, :HORIZON]
        for name in ("policy", "weight", "logp", "adv", "ent")
    }
    rest = x["policy"] / x["weight"] + x["logp"] * x["adv"]
    return float(-(rest * x["ent"]).sum() / (x["ent"] ** 2).sum())


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_three_whole_updates(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, system = Recorded("dreamer_v3"), built(kind)
    wmkit.load_released(system, weights(recorded, kind))
    noise = recorded(f"{kind}/in:noise_action")
    fix_noise(
        system,
        recorded("in:uniform_posterior"),
        recorded("in:uniform_prior"),
        noise if kind == "continuous" else noise[:, None],
    )
    batch, seen = records(recorded, kind), watch(monkeypatch, system)
    trained, named = ([str(name) for name in recorded.arrays[f"{kind}/{x}"]] for x in ("trained", "tensors"))
    slots = dreamerv3_jax.slots(system)
    learnt = {name: slots[name].tensor for name in trained}
    whole = {name: slots[name].tensor for name in named if name in slots}  # all but a count nothing reads

    def theirs(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors like the parameters, in the original's layout, as doubles."""
        return {name: slots[name].theirs(x.detach())[0].double() for name, x in tensors.items()}

    at_first = theirs(whole)
    for update in range(1, UPDATES + 1):
        off, rounding = Off(), 1e-5 if update < UPDATES else 1e-4

        def given(name: str, update: int = update) -> np.ndarray:
            return recorded.arrays[f"{kind}/s{update}:{name}"]

        metrics = system.update(batch)
        for name, ours in METRICS.items():
            off.near(ours, given(f"scalar/{name}"), metrics[ours], rounding)
        found = parts(system, seen)
        if kind == "discrete":
            found["imagined_action"] = found["imagined_action"].argmax(-1)
        for name, part in found.items():
            if f"{kind}/s{update}:{name}" in recorded.arrays:  # the first update's are all there
                wanted = given(name)[:, LONGER[name]] if name in LONGER else given(name)
                off.near(name, wanted, part, 0 if name.endswith("_class") else rounding)
        if update == 1:
            off.near("written back", given("belief"), metrics["replay_context", "belief"], rounding)
            off.near("share of the entropy", entropy_share(given), system.controller.entropy, 5e-3)
        state = optimiser_state(system)
        now = theirs(whole)
        gradients = theirs({name: x.grad for name, x in learnt.items()})
        off.probed(
            "gradient", trained, given("gradient_probes"), gradients, rounding if update < UPDATES else 1e-3
        )
        squares, momenta = (
            theirs({name: state[x][moment] for name, x in learnt.items()}) for moment in MOMENTS
        )
        off.probed("square", trained, given("square_probes"), squares, 1e-4)
        off.probed("momentum", trained, given("momentum_probes"), momenta, 1e-3)
        off.probed("parameter", named, given("parameter_probes"), now, 1e-5)
        change = {name: now[name] - x for name, x in at_first.items()}
        off.probed("change", named, given("change_probes"), change, 1e-4)
        assert not off, f"update {update}: {off}"
