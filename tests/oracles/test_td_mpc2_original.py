"""TD-MPC2 beside its own code (nicklashansen/tdmpc2 e9f5932), small, with its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchrl.data import Bounded, Composite, Unbounded

import wmkit
from support.originals import Recorded, near
from wmkit.control.planners import MPPI
from wmkit.dynamics import Latent
from wmkit.functional import symexp, symmetric_bins, two_hot
from wmkit.heads import TwoHotBins
from wmkit.nn import SimNormLatent
from wmkit.systems import System
from wmkit.systems.convert import released_parameters

RECORDED = Recorded("td_mpc2")
BINS, LIMIT = 11, 3.0
SMALL = (
    *("size=micro", "size.encoder=16", "size.units=24", "size.latent=16", "size.members=5"),
    *(f"{head}.distribution.bins={BINS}" for head in ("world_model.heads.reward", "critic")),
    *(f"{head}.distribution.limit={LIMIT}" for head in ("world_model.heads.reward", "critic")),
    *("controller.prior=4", "controller.solver.samples=32", "controller.solver.iterations=4"),
    *("controller.solver.elites=8", "discount=0.95"),
)


@pytest.fixture
def system() -> System:
    spec = Composite(observation=Unbounded((7,)))
    made = wmkit.build(
        "td_mpc2", observation_spec=spec, action_spec=Bounded(-1.0, 1.0, (3,)), overrides=SMALL
    )
    wmkit.load_released(made, RECORDED.weights())
    return made


def seen(system: System, observation: Tensor) -> Latent:
    model = system.world_model
    state = model.dynamics.represent(model.encoder.encode({"observation": observation})).state
    return Latent(state, state.new_zeros(len(state), model.dynamics.belief_dim))


def test_codes_are_those_of_the_original() -> None:
    latent, x = SimNormLatent(16, simplex=8), RECORDED("simnorm_in")
    near(RECORDED("simnorm_out"), latent.sample(latent.statistics(x), latent.noise(len(x)))[0])
    head, logits, scalar = TwoHotBins(bins=BINS, limit=LIMIT), RECORDED("logits"), RECORDED("symlog_scalar")
    near(RECORDED("two_hot_inv"), head(logits).mean)
    near(RECORDED("soft_ce"), head(logits).loss(scalar))
    index, mass = two_hot(torch.sign(scalar) * scalar.abs().log1p(), symmetric_bins(LIMIT, BINS))
    code = torch.zeros(len(scalar), BINS).scatter(1, index.squeeze(1), mass.squeeze(1))
    near(RECORDED("two_hot"), code)
    assert torch.allclose(symexp(torch.log1p(torch.tensor(1.0))), torch.tensor(1.0))


@torch.no_grad()  # nothing is dropped where nothing learns
def test_every_network_computes_what_it_does_there(system: System) -> None:
    model, action = system.world_model, RECORDED("act")
    latent = seen(system, RECORDED("obs"))
    near(RECORDED("z"), latent.state)
    after = model.step(latent, action)
    near(RECORDED("z_next"), after.state)
    near(RECORDED("reward_logits"), model.predict("reward", after).logits)
    near(RECORDED("q_all"), system.critic.predict(model.read(system.critic, after)).logits)
    released = released_parameters(system)
    theirs = RECORDED.weights()
    assert all(torch.equal(torch.from_numpy(released[name]), RECORDED(f"weight:{name}")) for name in released)
    assert set(theirs) - set(released) == {"log_std_min", "log_std_dif"}


def test_weights_under_their_older_names_are_the_same(system: System) -> None:
    kinds, older = ("weight", "bias", "ln.weight", "ln.bias"), dict[str, Any]()
    for name, value in RECORDED.weights().items():
        if name.startswith("_target_Qs_params."):
            continue  # which begin as copies
        if name.startswith("_Qs.params."):
            layer, _, kind = name.removeprefix("_Qs.params.").partition(".")
            name = f"_Qs.params.{4 * int(layer) + kinds.index(kind)}"
        older[name] = value
    wanted = {name: p.clone() for name, p in system.critic.named_parameters()}
    nn.init.zeros_(system.critic.trunk.out.weight)
    wmkit.load_released(system, older)
    for part in (system.critic, system.schedule.slow["critic"]):
        assert all(torch.equal(p, wanted[name]) for name, p in part.named_parameters())


def test_one_plan_is_that_of_the_original(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    planner: Any = system.controller
    drawn = [RECORDED(f"plan_pi_noise_{i}") for i in range(7)]
    later = iter(drawn[3:])
    perms = iter(RECORDED("plan_q_perms"))
    normals = RECORDED("plan_noise").transpose(1, 2).unsqueeze(1)  # [I, 1, N - P, H, A]
    noise = torch.cat([torch.zeros_like(normals[:, :, :4]), normals], 2)
    monkeypatch.setattr(system.actor, "noise", lambda *lead, device=None: torch.stack(drawn[:3]))
    sample = type(system.actor.policy(torch.zeros(1, 16))).sample
    monkeypatch.setattr(
        "wmkit.nn.SquashedNormal.sample",
        lambda self, normal=None: sample(self, next(later) if normal is None else normal),
    )
    monkeypatch.setattr(torch, "randperm", lambda count, device=None: next(perms))
    monkeypatch.setattr(planner.solver, "noise", lambda start: noise)
    monkeypatch.setattr(MPPI, "draw", staticmethod(lambda weight: RECORDED("plan_gumbel_index")))
    plan = planner.plan(system.world_model, seen(system, RECORDED("obs")[:1]))
    near(RECORDED("plan_mean"), plan.mean[0])
    near(RECORDED("plan_action"), plan.actions[0, 0])
