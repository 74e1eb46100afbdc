"""How today's DreamerV3 learns: returns, weights, the critic on replay, one joint update."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import FakeCopyMode
from torchrl.data import Composite, OneHot, Unbounded
from torchrl.modules import PercentileValueNorm
from torchrl.objectives import DreamerV3ValueLoss
from torchrl.objectives.value import TDLambdaEstimator
from torchrl.objectives.value.functional import td_lambda_return_estimate

from wmkit import backbones
from wmkit.codecs import Decoder, Encoder
from wmkit.control import ActorCritic, AllStates, ReplayCritic, TransitionReturns
from wmkit.dynamics import RSSM, WorldModel, rollout
from wmkit.errors import ConfigError, SpecError
from wmkit.functional import lambda_return_jumpy, replay_lambda_return, symexp_bins, symlog
from wmkit.heads import ContinueHead, ContinuousActor, Critic, DiscreteActor, RewardHead
from wmkit.nn import STYLE_2024, Feature, SymexpTwoHot
from wmkit.objectives import HeadLosses, KLBalance, LambdaReturnJumpy, Reconstruction
from wmkit.optim import LaProp, Schedule
from wmkit.systems import System, build_from, compose
from wmkit.systems.spaces import Spaces

DISCOUNT = 1 - 1 / 333
WEIGHTS = {"actor": 1.0, "critic": 1.0, "replay_critic": 0.3}
JOINT = {
    "trains": ["world_model", "actor", "critic"],
    "learns_from": ["representation", "dynamics", "actor", "critic"],
}


def assemble(
    seed: int = 0, horizon: int = 5, actor: Any = DiscreteActor, today: bool = False, **laprop: Any
) -> System:
    """Today's learning over parts of 2023 or of today: what this file is about depends on neither."""
    torch.manual_seed(seed)
    trunk: dict[str, Any] = {"units": 16, "layers": 1}
    codec = trunk | {"images": [], "vectors": ["observation"], "depth": 4}
    gru, rssm, scalar = partial(backbones.build, "ln_gru"), {}, {}
    if today:
        codec, trunk = codec | {"style": STYLE_2024}, trunk | {"style": STYLE_2024}
        gru, scalar = partial(backbones.build, "block_gru", blocks=4), {"distribution": "symexp_two_hot"}
        rssm = {"style": STYLE_2024, "joint_input": False, "clip_action": True, "initial_state": "zeros"}
    heads = {
        "reward": partial(RewardHead, target="reward", **trunk, **scalar),
        "continuation": partial(ContinueHead, label="discount", discount=DISCOUNT, **trunk),
    }
    return System(
        "hand_made",
        Spaces({"observation": (6,)}, (), ("observation",), 3),
        world_model=partial(
            WorldModel,
            encoder=partial(Encoder, **codec),
            decoder=partial(Decoder, **codec),
            dynamics=partial(RSSM, backbone=gru, deter=16, groups=4, classes=4, hidden=16, **rssm),
            heads=heads,
        ),
        actor=partial(actor, **trunk),
        critic=partial(Critic, **trunk, **scalar),
        objectives={
            "reconstruction": Reconstruction({"observations": 1.0}),
            "heads": HeadLosses({"reward": 1.0, "continuation": 1.0}),
            "latents": KLBalance({"kl_dynamics": 1.0, "kl_representation": 0.1}, unimix=0.01),
        },
        controller=partial(
            ActorCritic,
            horizon=horizon,
            starts=AllStates(),
            rewards={"reward": 1.0},
            returns=TransitionReturns(estimator=LambdaReturnJumpy(gamma=1.0, lmbda=0.95), first="predicted"),
            return_norm=PercentileValueNorm(rate=0.01, quantiles=(0.05, 0.95), min_scale=1.0),
            also_to="slow_value",
            replay=ReplayCritic(gamma=DISCOUNT),
            weights=WEIGHTS,
        ),
        schedule=partial(
            Schedule,
            learners={"joint": {**JOINT, "optimizer": partial(LaProp, **laprop)}},
            order=[["joint"]],
            slow={"critic": {"fraction": 0.02}},
        ),
        batch={"size": 4, "length": 8, "context": 0},
    )


def rouse(system: System, scale: float = 1.0) -> None:
    """Heads that start at zero predict something."""
    for head in (system.world_model.heads["reward"], system.critic, system.schedule.slow_critic):
        nn.init.normal_(head.out.weight, std=scale)  # type: ignore[arg-type, union-attr]


def weights_of(system: System) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in system.named_parameters()}


# -- what the host reads ----------------------------------------------------------------------


def test_joint_update_reads_nothing_back() -> None:
    fake = FakeTensorMode()
    with FakeCopyMode(fake):
        system = copy.deepcopy(assemble(today=True, actor=ContinuousActor))
    with fake:
        batch = {"observation": torch.empty(4, 8, 6), "previous_action": torch.empty(4, 8, 3)}
        batch |= {key: torch.zeros(4, 8, 1, dtype=torch.bool) for key in ("is_init", "terminated", "done")}
        batch |= {"reward": torch.empty(4, 8, 1)}
        metrics = system.update(TensorDict(batch, [4, 8]))
        assert metrics["grad_norm_joint"].shape == ()


# -- returns ----------------------------------------------------------------------------------


def window(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reward, bootstrap, terminated, last: ``[6, 9, 1]``, with ends and time limits."""
    generator = torch.Generator().manual_seed(seed)
    reward, bootstrap = torch.randn(2, 6, 9, 1, generator=generator)
    last = torch.rand(6, 9, 1, generator=generator) < 0.3
    terminated = last & (torch.rand(6, 9, 1, generator=generator) < 0.5)
    assert (last & ~terminated).any() and terminated.any()
    return reward, bootstrap, terminated, last


def test_replay_return_is_the_recursion() -> None:
    reward, bootstrap, terminated, last = window()
    got = replay_lambda_return(reward, bootstrap, terminated, last, gamma=DISCOUNT, lmbda=0.95)
    for b in range(6):
        following = bootstrap[b, 8, 0].item()
        for t in reversed(range(8)):
            live = 0.0 if terminated[b, t + 1] else DISCOUNT
            mix = 0.0 if last[b, t + 1] else 0.95
            following = reward[b, t + 1, 0].item() + live * (
                (1 - mix) * bootstrap[b, t + 1, 0].item() + mix * following
            )
            assert got[b, t, 0].item() == pytest.approx(following, abs=1e-5)
    oracle = TDLambdaEstimator(gamma=DISCOUNT, lmbda=0.95, value_network=None)
    following = {"reward": reward[:, 1:], "done": last[:, 1:], "terminated": terminated[:, 1:]}
    batch = TensorDict({"next": following}, [6, 8])
    expected = oracle.value_estimate(batch, next_value=bootstrap[:, 1:])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_nothing_leaks_across_an_episode_border() -> None:
    reward, bootstrap, terminated, last = window()
    last, terminated = torch.zeros_like(last), torch.zeros_like(terminated)
    last[:, 4] = True  # a time limit
    other = reward.clone()
    other[:, 5:] += 7
    targets = partial(replay_lambda_return, last=last, gamma=DISCOUNT, lmbda=0.95)
    before, after = targets(reward, bootstrap, terminated), targets(other, bootstrap, terminated)
    assert torch.equal(before[:, :4], after[:, :4]) and not torch.equal(before[:, 4:], after[:, 4:])
    torch.testing.assert_close(before[:, 3], reward[:, 4] + DISCOUNT * bootstrap[:, 4])
    terminated[:, 4] = True  # a true end: not even its own bootstrap
    torch.testing.assert_close(targets(reward, bootstrap, terminated)[:, 3], reward[:, 4])
    with pytest.raises(SpecError, match=r"wanted 2 or more"):
        replay_lambda_return(*(torch.ones(2, 1, 1),) * 4, gamma=1.0, lmbda=1.0)


def test_discount_may_stand_in_the_continuation() -> None:
    torch.manual_seed(0)
    reward, value = torch.randn(2, 4, 15, 1)
    continuation, one, zero = torch.rand(4, 15, 1), torch.ones(4, 15, 1), torch.zeros(4, 15, 1)
    got = lambda_return_jumpy(reward, value, continuation, one, zero, gamma=1.0, lmbda=0.95)
    never = torch.zeros(4, 15, 1, dtype=torch.bool)
    expected = td_lambda_return_estimate(continuation, 0.95, value, reward, never, never)
    torch.testing.assert_close(got, expected)
    reward, zero = torch.full((1, 6000, 1), 0.5), torch.zeros(1, 6000, 1)
    one = torch.ones_like(zero)
    endless = lambda_return_jumpy(reward, zero, DISCOUNT * one, one, zero, gamma=1.0, lmbda=1.0)
    assert endless[0, 0].item() == pytest.approx(333 * 0.5, rel=1e-4)


# -- the critic on replay ---------------------------------------------------------------------


class SymlogValue:
    """A scalar prediction scored in symlog space, as TorchRL's loss does by default."""

    def __init__(self, mean: Tensor) -> None:
        self.mean = mean

    def loss(self, target: Tensor) -> Tensor:
        return (symlog(self.mean) - symlog(target)).square().squeeze(-1)


def symexp_two_hot(logits: Tensor) -> SymexpTwoHot:
    return SymexpTwoHot(logits, symexp_bins(20.0, 255))


class LinearCritic(nn.Module):
    def __init__(self, core: nn.Linear, prediction: Any) -> None:
        super().__init__()
        self.core, self.prediction = core, prediction

    def predict(self, features: Any) -> Any:
        return self.prediction(self.core(features.dense if isinstance(features, Feature) else features))


@pytest.mark.parametrize("scored", ["symlog_mse", "two_hot"])
def test_replay_loss_equals_torchrl(scored: Any) -> None:
    reward, bootstrap, terminated, last = window()
    torch.manual_seed(0)
    width, prediction = (1, SymlogValue) if scored == "symlog_mse" else (255, symexp_two_hot)
    core, slow = nn.Linear(5, width), nn.Linear(5, width)
    x = torch.randn(6, 9, 5, requires_grad=True)
    batch = {"reward": reward, "is_init": last.roll(1, 1), "terminated": terminated, "done": last}
    batch["is_init"][:, 0] = False
    features = Feature(x[..., :2], x[..., 2:])
    critics = LinearCritic(core, prediction), LinearCritic(slow, prediction)
    loss = ReplayCritic(gamma=DISCOUNT)
    got = loss(*critics, features, batch, bootstrap)

    value = TensorDictSequential(
        TensorDictModule(core, in_keys=["state"], out_keys=["state_value_logits"]),
        TensorDictModule(lambda y: prediction(y).mean, ["state_value_logits"], ["state_value"]),
    )
    oracle = DreamerV3ValueLoss(value, value_loss=scored, slow_critic_regularization=1.0)
    lagging = oracle.target_value_model_params["module", "0", "module"]
    lagging["weight"].data.copy_(slow.weight.data)
    lagging["bias"].data.copy_(slow.bias.data)
    following = {"reward": reward, "done": last, "terminated": terminated}
    replay = TensorDict({"state": x, "bootstrap": bootstrap, "next": following}, [6, 9])
    expected = oracle.replay_value_loss(replay)["loss_replay_value"]
    torch.testing.assert_close(got.loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, x)[0] for y in (got.loss, expected)))

    # The seam to the next episode says as much as `done`; the window's last record is never scored.
    del batch["done"]
    again = loss(*critics, features, batch, bootstrap)
    torch.testing.assert_close(again.loss, got.loss)
    assert not torch.autograd.grad(again.loss, x)[0][:, -1].any()


# -- actor and critic on roll-outs ------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "actor"),
    [("predicted", DiscreteActor), ("replay", DiscreteActor), ("predicted", ContinuousActor)],
)
def test_losses_on_roll_outs_by_hand(first: str, actor: type[nn.Module]) -> None:
    system = assemble(horizon=15, actor=actor)
    rouse(system, 3.0)
    controller, model, slow = system.controller, system.world_model, system.schedule.slow_critic
    controller.returns.first = first
    batch = system.example_batch()
    batch["terminated"] = torch.rand(4, 8, 1) < 0.2  # ends are starts like any other
    scene = system.scene(batch)
    start = controller.starts(scene)
    torch.manual_seed(7)
    out = controller.learn(scene, system.schedule.slow)
    torch.manual_seed(7)
    found = rollout(model, start.latent, system.actor, 15)
    feature = found.latent.feature.dense  # [16, 32, F]
    with torch.no_grad():
        reward, con = model.heads["reward"].predict(feature).mean, model.continuation(found.latent)
        value, lagging = system.critic.predict(feature).mean, slow.predict(feature).mean
    target, following = [], value[15]
    for i in reversed(range(15)):
        following = reward[i + 1] + con[i + 1] * (0.05 * value[i + 1] + 0.95 * following)
        target.append(following)
    returns = torch.stack(target[::-1])
    going = 1 - batch["terminated"].float().flatten(0, 1)
    weight = torch.cat([con[:1] if first == "predicted" else going[None], con[1:15]])
    weight = weight.cumprod(0).squeeze(-1)
    ordered = returns.flatten().sort().values

    def percentile(share: float) -> Tensor:  # linear between the two neighbours
        place = share * (len(ordered) - 1)
        low = math.floor(place)
        return torch.lerp(ordered[low], ordered[low + 1], place - low)

    scale = 0.01 * (percentile(0.95) - percentile(0.05))  # from zero, no debias, used at once
    assert scale > 1
    policy = system.actor.policy(feature[:15])
    log_prob, entropy = policy.log_prob(found.actions), policy.entropy
    if actor is ContinuousActor:  # the plain normal's, of what was drawn: neither squashed nor clipped
        assert found.actions.abs().max() > 1 and found.actions.std(-1).min() > 0
        normal = torch.distributions.Normal(policy.mean, policy.std)
        log_prob, entropy = normal.log_prob(found.actions).sum(-1), normal.entropy().sum(-1)
    advantage = ((returns - value[:15]) / scale).squeeze(-1)
    scored = system.critic.predict(feature[:15])
    replayed = controller.replay(
        system.critic, slow, scene.observed.latent.feature, scene.batch, returns[0].unflatten(0, (4, 8))
    )
    expected = {
        "actor": -(weight * (log_prob * advantage + 3e-4 * entropy)).mean(),
        "critic": (weight * (scored.loss(returns) + scored.loss(lagging[:15]))).mean(),
        "replay_critic": 0.3 * replayed.loss,
    }
    torch.testing.assert_close(out.metrics["return_scale"], scale, rtol=1e-4, atol=1e-4)
    for name, loss in expected.items():
        torch.testing.assert_close(out.terms[name].loss, loss, rtol=1e-4, atol=1e-4)


def test_a_starts_continuation_counts_once() -> None:
    released = LambdaReturnJumpy(gamma=0.997, lmbda=0.95, continuation_at="current")
    for options in ({"weigh": "current"}, {"weigh": "next"}):  # the weights hold it, or the returns do
        with pytest.raises(ConfigError, match="first is 'predicted': wanted"):
            TransitionReturns(estimator=released, first="predicted", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="first is 'none': wanted"):
        TransitionReturns(estimator=released, first="none")  # type: ignore[arg-type]


# -- the joint update -------------------------------------------------------------------------


def test_a_joint_loss_is_the_weighted_sum_of_its_terms() -> None:
    system = assemble()
    metrics = system.update(system.example_batch())
    weights = {name: w for objective in system.objectives.values() for name, w in objective.weights.items()}
    model = sum(weight * metrics[f"loss_{name}"] for name, weight in weights.items())
    assert set(weights) == {"observation", "reward", "continuation", "kl_dynamics", "kl_representation"}
    torch.testing.assert_close(metrics["loss_world_model"], model)
    whole = model + sum(weight * metrics[f"loss_{name}"] for name, weight in WEIGHTS.items())
    torch.testing.assert_close(metrics["loss_joint"], whole)


def test_every_loss_reaches_its_parts_and_no_others() -> None:
    system = assemble()
    rouse(system)
    scene, model = system.scene(system.example_batch()), system.world_model
    modelled = [
        objective.weights[name] * term.loss
        for objective in system.objectives.values()
        for name, term in objective.terms(scene).items()
    ]
    terms = system.controller.learn(scene, system.schedule.slow).terms
    filtering = (model.encoder, model.dynamics, system.critic)
    owners = (
        (sum(modelled), (model,), ()),
        (terms["actor"].loss, (system.actor,), ()),
        (terms["critic"].loss, (system.critic,), ()),
        (terms["replay_critic"].loss, filtering, tuple(model.dynamics.prior.parameters())),
    )  # no prior in a posterior
    names = {id(p): name for name, p in system.named_parameters()}
    trained = [p for p in system.parameters() if p.requires_grad]
    for loss, parts, without in owners:
        grads = torch.autograd.grad(loss, trained, allow_unused=True, retain_graph=True)
        reached = {id(p) for p, g in zip(trained, grads, strict=True) if g is not None and g.any()}
        wanted = {id(p) for part in parts for p in part.parameters()} - {id(p) for p in without}
        assert reached <= wanted, {names[i] for i in reached - wanted}
        assert {names[i] for i in wanted - reached} <= {"world_model.dynamics.backbone.initial_belief"}


def test_first_update_changes_nothing_and_the_second_little() -> None:
    system = assemble()
    before = weights_of(system)
    metrics = system.update(system.example_batch())
    for name, value in system.named_parameters():
        assert torch.equal(value, before[name]), name
    # Zero logits: every code costs ln 255, from the target and from the slow critic alike.
    last = system.fill(system.example_batch())["done"][:, :-1].float().mean()
    expected = 2 * math.log(255) * (1 - last)
    torch.testing.assert_close(metrics["loss_replay_critic"], expected, atol=1e-4, rtol=1e-4)
    system.update(system.example_batch(1))
    moved = [(p - before[n]).abs().max() for n, p in system.named_parameters() if "slow" not in n]
    assert 0 < max(moved) < 1.3e-7  # 4e-8 times 1.22, and one rounding of a weight near one


@pytest.mark.parametrize("today", [False, True])
def test_joint_update_learns(today: bool) -> None:
    system = assemble(lr=3e-3, warmup=5, today=today, actor=ContinuousActor if today else DiscreteActor)
    batch = system.example_batch()
    losses = []
    for _ in range(30):
        torch.manual_seed(0)  # the same samples and roll-outs
        losses.append(system.update(batch)["loss_joint"].item())
    assert losses[0] == losses[1]  # learning rate zero
    assert losses[-1] < 0.9 * losses[0] and all(math.isfinite(x) for x in losses)


def test_slow_critic_follows() -> None:
    system = assemble(lr=1e-2, warmup=0)
    slow = system.schedule.slow_critic
    for p, q in zip(slow.parameters(), system.critic.parameters(), strict=True):
        assert torch.equal(p, q) and not p.requires_grad
    before = [p.clone() for p in slow.parameters()]
    system.update(system.example_batch())
    for p, old, q in zip(slow.parameters(), before, system.critic.parameters(), strict=True):
        torch.testing.assert_close(p.data, 0.98 * old + 0.02 * q.data)
    assert slow.out.weight.any()  # zero before


@pytest.mark.parametrize("older", [False, True])
def test_state_of_a_joint_update_survives(older: bool) -> None:
    first, second = assemble(0, lr=1e-2, warmup=10), assemble(1, lr=1e-2, warmup=10)
    rouse(first)
    for seed in range(3):
        first.update(first.example_batch(seed))
    state = copy.deepcopy(first.state_dict())  # as a file would
    if older:
        state = {name.replace("controller.", "behaviour."): value for name, value in state.items()}
    second.load_state_dict(state)
    assert second.controller.return_norm.high > 0
    for system in (first, second):
        torch.manual_seed(5)
        system.update(system.example_batch(5))
    for (name, p), q in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert torch.equal(first.controller.return_norm.high, second.controller.return_norm.high)


PAGE = """
controller:
  returns: {estimator: {gamma: 1.0}, first: predicted}
  replay: {_target_: wmkit.control.ReplayCritic, gamma: 0.996997, lmbda: 0.95}
  weights: {actor: 1.0, critic: 1.0, replay_critic: 0.3}
world_model: {heads: {continuation: {label: discount, discount: 0.996997}}}
schedule:
  _target_: wmkit.optim.Schedule
  _partial_: true
  learners:
    joint:
      trains: [world_model, actor, critic]
      learns_from: [representation, dynamics, actor, critic]
      optimizer: {_target_: wmkit.optim.LaProp, _partial_: true, lr: 4.0e-5, betas: [0.9, 0.999], agc: 0.3}
  order: [[joint]]
  slow: {critic: {fraction: 0.02}}
"""


def test_a_page_spells_it() -> None:
    config = compose("dreamer_v3_2023")
    OmegaConf.set_struct(config, False)
    changes = OmegaConf.create(PAGE)
    config.schedule = changes.pop("schedule")
    spec = Composite(observation=Unbounded((6,)))
    system = build_from(OmegaConf.merge(config, changes), spec, OneHot(3))
    metrics = system.update(system.example_batch()[:2, :5])
    assert {"loss_joint", "loss_replay_critic", "grad_norm_joint"} <= set(metrics.keys())


def test_a_controller_checks_its_weights() -> None:
    system = assemble()
    common: dict[str, Any] = {"horizon": 5, "rewards": {"reward": 1.0}, "starts": AllStates()}
    returns = TransitionReturns(estimator=LambdaReturnJumpy(gamma=1.0, lmbda=0.95))
    with pytest.raises(ConfigError, match="replay_critc"):
        ActorCritic(system.actor, system.critic, returns=returns, weights={"replay_critc": 0.3}, **common)
