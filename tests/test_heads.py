"""Heads and actors: what they are made of, read, write and mean; under TorchRL's losses."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import ClipPPOLoss

from wmkit.errors import ConfigError
from wmkit.heads import (
    Actor,
    ActorChoice,
    ContinueHead,
    ContinuousActor,
    Critic,
    DiscreteActor,
    Head,
    JumpFlagHead,
    JumpReturnHead,
    JumpSpanHead,
    RewardHead,
    TanhNormalActor,
    TruncatedNormalActor,
    TwoHotBins,
    in_keys_of,
)
from wmkit.nn import MLP, STYLE_2024, Bernoulli, Feature, LayerStyle, SymexpTwoHot, SymlogTwoHot

TRUNK: dict[str, Any] = dict(units=8, layers=2)
BARE = LayerStyle(norm="none", activation="elu", bias=True, init="glorot")
TWM: dict[str, Any] = dict(
    trunk=partial(MLP, dropout=0.1, activate_input=True),
    style=LayerStyle(norm="none", bias=True, init="kaiming"),
)
STORM: dict[str, Any] = dict(
    style=LayerStyle(eps=1e-5, activation="relu", init="default"), in_keys=["belief"]
)
ACTORS = [DiscreteActor, ContinuousActor, TanhNormalActor, TruncatedNormalActor]

# -- numbers that must not change --------------------------------------------------------------------------
# Recorded from the classes of d1d1ae5, of seed 0: a digest of the initial weights in their order; means
# and losses of three inputs.

HEADS: dict[str, tuple[Any, float, list[float], list[float]]] = {
    "reward of 2023": (
        partial(RewardHead, outscale=1.0),
        6.148416,
        [-0.11487288, 0.12485337, 0.10728347],
        [5.6153531, 5.3700867, 5.3755388],
    ),
    "reward of 2024": (
        partial(RewardHead, outscale=0.5, distribution="symexp_two_hot", style=STYLE_2024),
        -12.82423,
        [-145429.3125, -1726783.125, -441389.0],
        [5.4460630, 5.4792948, 5.2994246],
    ),
    "span": (
        partial(JumpSpanHead, outscale=1.0),
        6.148416,
        [-0.11487288, 0.12485337, 0.10728347],
        [5.6153531, 5.3700867, 5.3755388],
    ),
    "jump": (
        JumpFlagHead,
        2.183967,
        [0.44238290, 0.65092522, 0.64007884],
        [0.58408272, 0.42936051, 1.02187014],
    ),
    "end": (
        partial(ContinueHead, label="end"),
        2.183967,
        [0.44238290, 0.65092522, 0.64007884],
        [0.58408272, 0.42936051, 1.02187014],
    ),
    "discount": (
        partial(ContinueHead, label="discount", discount=0.9, style=STYLE_2024),
        -0.4527637,
        [0.19350322, 0.38346675, 0.61708422],
        [1.49972057, 0.48364303, 0.53046882],
    ),
    "reward of 2020": (
        partial(RewardHead, distribution="normal", transform="tanh", style=BARE),
        1.680098,
        [-0.51246172, -0.86242104, -0.68916994],
        [1.24196506, 2.58689594, 0.96724564],
    ),
    "reward of TWM": (
        partial(RewardHead, distribution="normal", transform="sign", **TWM),
        1.416152,
        [-0.01265556, -0.17251010, -0.16124591],
        [1.43167424, 1.60632849, 1.27069271],
    ),
    "discount of TWM": (
        partial(ContinueHead, label="discount", discount=0.9, initial="discount", **TWM),
        0.943453,
        [0.89885527, 0.88336760, 0.88452315],
        [0.32509026, 2.14872837, 0.32630450],
    ),
    "discount of the released TWM": (
        partial(ContinueHead, label="discount", discount=0.9, initial="value", **TWM),
        1.222531,
        [0.70834190, 0.67425418, 0.67672330],
        [0.43356293, 1.12163794, 0.46436817],
    ),
    "reward of STORM": (
        partial(RewardHead, outscale=1.0, **STORM),
        5.548676,
        [-0.70758629, -0.31820452, -0.34120104],
        [5.69047165, 5.89434719, 5.18819332],
    ),
    "going on of STORM": (
        partial(ContinueHead, discount=0.9, readout="mode", trunk=MLP, **STORM),
        1.424439,
        [0.33372623, 0.30384329, 0.33873969],
        [1.09743428, 0.36218047, 1.08252335],
    ),
}
POLICIES: dict[str, tuple[Any, float, list[float], list[float]]] = {  # samples and entropies instead
    "discrete": (DiscreteActor, 0.7826259, [0.0, 0.0, 1.0], [1.0935669, 0.9834183, 1.0131983]),
    "continuous": (
        partial(ContinuousActor, style=STYLE_2024),
        -1.337313,
        [1.3947202, -0.2027902, 0.2611255],
        [3.9187379, 3.9189250, 3.9174643],
    ),
    "tanh": (
        partial(TanhNormalActor, style=BARE),
        -1.504513,
        [0.9911753, -0.6509470, 0.8299955],
        [-8.3769808, -9.4742804, -9.5753555],
    ),
    "truncated": (
        partial(TruncatedNormalActor, style=BARE),
        1.013484,
        [0.2549905, -0.8531061, -0.9162521],
        [1.9874009, 2.0365617, 2.0277171],
    ),
}


def inputs() -> tuple[Tensor, dict[str, Tensor]]:
    y = torch.tensor([[0.3], [2.0], [-7.0]])
    flags = {"terminated": y > 1, "jump": y > 1}
    return torch.linspace(-1, 1, 36).view(3, 12), flags | {"reward": y, "jump_steps": y}


def digest(module: nn.Module) -> float:
    weights = torch.cat([parameter.detach().flatten() for parameter in module.parameters()]).double()
    return float((weights * torch.arange(len(weights), dtype=torch.double).cos()).sum())


@pytest.mark.parametrize("name", HEADS)
def test_weights_and_predictions_are_what_they_were(name: str) -> None:
    maker, weights, means, losses = HEADS[name]
    torch.manual_seed(0)
    head = maker(12, **TRUNK).eval()
    assert digest(head) == pytest.approx(weights, abs=1e-5)
    x, batch = inputs()
    prediction = head.predict(x)
    torch.testing.assert_close(prediction.mean, torch.tensor(means)[:, None], rtol=1e-4, atol=1e-5)
    loss = prediction.loss(head.label(batch))
    torch.testing.assert_close(loss, torch.tensor(losses), rtol=1e-5, atol=1e-5)
    last = [key.rpartition(".")[0] for key in head.state_dict()][-1]
    in_trunk = {"reward of TWM": "trunk.5", "going on of STORM": "trunk.2"}
    assert last == in_trunk.get(name, "trunk.5" if "TWM" in name else "out")


@pytest.mark.parametrize("name", POLICIES)
def test_weights_and_policies_are_what_they_were(name: str) -> None:
    maker, weights, sample, entropies = POLICIES[name]
    torch.manual_seed(0)
    actor = maker(12, 3, **TRUNK)
    noise = actor.noise(3)
    policy = actor.policy(inputs()[0])
    assert digest(actor) == pytest.approx(weights, abs=1e-5)
    torch.testing.assert_close(policy.sample(noise)[0], torch.tensor(sample), rtol=1e-4, atol=1e-5)
    if name != "tanh":
        torch.testing.assert_close(policy.entropy, torch.tensor(entropies), rtol=1e-4, atol=1e-5)


# -- what is read and written --------------------------------------------------------------------------------


def record(*lead: int, following: bool = True) -> TensorDict:
    one = TensorDict({"state": torch.randn(*lead, 8), "belief": torch.randn(*lead, 4)}, list(lead))
    return one.set("next", one.apply(torch.randn_like)) if following else one


def test_a_head_reads_the_keys_it_is_given_and_says_so_before_it_is_made() -> None:
    widths = {"state": 8, "belief": 4, ("next", "state"): 8, ("next", "belief"): 4}
    makers = {
        "reward": partial(RewardHead, **TRUNK),
        "early": partial(RewardHead, in_keys=["belief"], **TRUNK),
        "span": partial(JumpSpanHead, **TRUNK),
        "backwards": partial(partial(JumpReturnHead, **TRUNK), in_keys=[["next", "belief"], "state"]),
    }
    wanted = [["state", "belief"], ["belief"], list(widths), [("next", "belief"), "state"]]
    for (name, maker), keys in zip(makers.items(), wanted, strict=True):
        assert in_keys_of(maker) == keys
        head = maker(sum(widths[key] for key in keys), outscale=1.0).named(name)
        assert head.in_keys == keys and head.out_keys == [("predicted", name)]
        batch = record(2, 5)
        given = torch.cat([batch[key] for key in keys], -1)
        torch.testing.assert_close(head(batch)["predicted", name], head.predict(given).mean)
        short = record(2, 5, following=False)  # a record does not hold what comes next
        assert (("predicted", name) in head(short).keys(True)) == (name in ("reward", "early"))
    assert in_keys_of(partial(DiscreteActor, in_keys=["state"])) == ["state"]
    assert RewardHead(4, out_keys=["mine"], **TRUNK).named("other").out_keys == ["mine"]
    assert Critic(12, **TRUNK).out_keys == ["state_value"]
    with pytest.raises(KeyError, match="'state' is missing"):
        RewardHead(12, **TRUNK)(TensorDict({"belief": torch.zeros(2, 4)}, [2]))


@pytest.mark.parametrize("maker", [Critic, partial(RewardHead, **TWM), partial(RewardHead, trunk=MLP)])
@pytest.mark.parametrize("layers", [0, 1])
def test_features_in_parts_are_features_side_by_side(maker: Any, layers: int) -> None:
    classes = torch.randint(0, 4, (3, 2))
    state = nn.functional.one_hot(classes, 4).flatten(-2).float()
    parts = Feature(state, torch.randn(3, 4), classes=[classes, None])
    head = maker(12, units=8, layers=layers, outscale=1.0).eval()
    torch.testing.assert_close(head.predict(parts).mean, head.predict(parts.dense).mean, rtol=1e-4, atol=1e-5)
    actor = DiscreteActor(12, 3, units=8, layers=layers)
    torch.testing.assert_close(actor.policy(parts).probs, actor.policy(parts.dense).probs)


def test_heads_and_actors_stand_in_a_row_and_are_compiled() -> None:
    torch.manual_seed(0)
    head = ContinueHead(12, label="end", **TRUNK)
    actor = ContinuousActor(
        12, 2, out_keys=[("agent", "action"), ("agent", "logp")], return_log_prob=True, **TRUNK
    )
    both = TensorDictSequential(head, actor)
    batch = both(record(3))
    prediction = head.predict(torch.cat([batch["state"], batch["belief"]], -1))
    torch.testing.assert_close(batch["predicted", "continuation"], 1 - prediction.mean)
    assert batch["agent", "action"].shape == (3, 2) and batch["agent", "logp"].shape == (3,)
    assert {key.split(".", 2)[2] for key in both.state_dict()} == {*head.state_dict(), *actor.state_dict()}
    compiled = torch.compile(head.predict, fullgraph=True, backend="eager")
    x = torch.randn(3, 12)
    torch.testing.assert_close(compiled(x).mean, head.predict(x).mean)
    with pytest.raises(ConfigError, match="out_keys"):
        ContinuousActor(12, 2, out_keys=["action"], return_log_prob=True, **TRUNK)


# -- what predictions mean ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        dict(label="continue", discount=1.0),
        dict(label="continue"),
        dict(label="end"),
        dict(label="discount"),
        dict(label="discount", readout="mode"),
        dict(label="continue", readout="mode"),
        dict(label="end", readout="mode"),
    ],
)
def test_a_continuation_is_the_discount_of_what_was_learned_whatever_the_label(options: Any) -> None:
    """A prediction that equals its label means ``discount * (1 - terminated)``."""
    options = dict(discount=0.9) | options
    head = ContinueHead(12, **options, **TRUNK)
    terminated = torch.tensor([[True], [False]])
    sure = Bernoulli(torch.logit(head.label({"terminated": terminated}), eps=1e-7))
    torch.testing.assert_close(head.continuation(sure), options["discount"] * (1 - terminated.float()))


@pytest.mark.parametrize("initial", ["value", "discount"])
def test_a_continue_head_learns_a_soft_label(initial: Any) -> None:
    torch.manual_seed(0)
    head = ContinueHead(4, label="discount", discount=0.99, units=8, layers=1, initial=initial, trunk=MLP)
    first = 0.99 if initial == "discount" else 1 / (1 + math.exp(-0.99))
    assert head.predict(torch.zeros(1, 4)).mean.item() == pytest.approx(first, abs=0.02)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
    going_on = {"terminated": torch.zeros(64, 1, dtype=torch.bool)}
    for _ in range(400):
        optimizer.zero_grad()
        head.predict(torch.randn(64, 4)).loss(head.label(going_on)).mean().backward()
        optimizer.step()
    assert head.predict(torch.randn(64, 4)).mean.mean().item() == pytest.approx(0.99, abs=2e-3)


def test_two_hot_heads_differ_in_their_code_alone() -> None:
    feature, target = torch.randn(4, 16), torch.tensor([[1.0], [5.0], [-3.0], [1e4]])
    heads = []
    for distribution in ("symlog_two_hot", "symexp_two_hot"):
        torch.manual_seed(0)
        heads.append(RewardHead(16, outscale=1.0, distribution=distribution, **TRUNK))
    assert heads[0].out.weight.equal(heads[1].out.weight)
    both = [head.predict(feature) for head in heads]
    assert [type(p) for p in both] == [SymlogTwoHot, SymexpTwoHot]
    assert both[1].loss(target).sub(both[0].loss(target)).abs().min() > 1e-6
    assert (both[1].mean.abs() > both[0].mean.abs()).all()  # spread mass: the raw mean follows the outer bins
    few = Head(16, distribution=TwoHotBins(bins=41, limit=5.0), **TRUNK)  # any other is a part
    assert few.out.weight.shape == (41, 8) and not few.predict(feature).mean.any()


def test_labels_are_transformed_and_a_critic_has_none() -> None:
    batch = {"reward": torch.tensor([[-100.0], [0.5]])}
    wanted = {"none": batch["reward"], "tanh": batch["reward"].tanh(), "sign": batch["reward"].sign()}
    for transform, label in (*wanted.items(), (torch.exp, batch["reward"].exp())):
        assert RewardHead(4, transform=transform, **TRUNK).label(batch).equal(label)
    with pytest.raises(ConfigError, match="target"):
        Critic(4, **TRUNK).label(batch)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (partial(RewardHead, distribution="raw"), "distribution"),
        (partial(RewardHead, transform="log"), "transform"),
        (partial(RewardHead, out_keys=["a", "b"]), "out_keys"),
        (partial(ContinueHead, label="stop"), "label"),
        (partial(ContinueHead, readout="median"), "readout"),
        (partial(ContinueHead, initial="zero"), "initial"),
        (partial(ContinueHead, initial="discount"), "initial"),  # the logit of one
        (partial(ContinueHead, discount=1.5), "discount"),
        (lambda _, **trunk: TwoHotBins(bins=40), "bins"),
        (partial(DiscreteActor, action_dim=2, unimix=-1.0), "unimix"),
        (partial(ContinuousActor, action_dim=2, low="much"), "low"),
        (partial(TanhNormalActor, action_dim=2, colour=1.0), "colour"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_name_of_the_argument(make: Any, argument: str) -> None:
    with pytest.raises(ConfigError) as error:
        make(4, **TRUNK)
    assert str(error.value).startswith(argument) and "\n" not in str(error.value)


# -- actors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ACTORS)
def test_an_actor_samples_what_its_noise_says_and_scores_it(kind: type[Actor]) -> None:
    torch.manual_seed(0)
    actor = kind(12, 3, return_log_prob=True, **TRUNK)
    x = torch.randn(2, 5, 12)
    batch = TensorDict({"state": x[..., :8], "belief": x[..., 8:]}, [2, 5])
    policy = actor.policy(x)
    with set_exploration_type(ExplorationType.RANDOM):
        torch.manual_seed(1)
        drawn = actor(batch.clone())
    torch.manual_seed(1)
    noise = actor.noise(2, 5)
    torch.testing.assert_close(drawn["action"], policy.sample(noise))
    torch.testing.assert_close(drawn["action_log_prob"], policy.log_prob(drawn["action"]))
    if kind is not TanhNormalActor:  # whose mode is drawn
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            torch.testing.assert_close(actor(batch.clone())["action"], policy.mode)

    dist = actor.get_dist(batch)
    samples = dist.rsample()
    scored = dist.log_prob(samples)
    assert scored.shape == dist.entropy().shape == dist.batch_shape == (2, 5)
    (gradient,) = torch.autograd.grad(samples.square().sum(), actor.trunk[0].linear.weight)
    assert gradient.any()
    many = dist.sample((2000,))
    assert many.shape == (2000, 2, 5, 3) and not many.requires_grad
    estimate = -dist.log_prob(many).mean(0)  # sampling and scoring fit together
    torch.testing.assert_close(
        estimate, dist.entropy(), atol=0.15 if kind is not TanhNormalActor else 3.0, rtol=0.1
    )


@pytest.mark.parametrize("kind", [DiscreteActor, ContinuousActor])
def test_torchrls_ppo_learns_an_actor_and_a_critic(kind: type[Actor]) -> None:
    torch.manual_seed(0)
    actor, critic = kind(12, 3, return_log_prob=True, **TRUNK), Critic(12, distribution="normal", **TRUNK)
    batch = record(6)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        actor(batch)
    advantage, target = torch.randn(6, 1), torch.randn(6, 1)
    batch.update({"advantage": advantage, "value_target": target})
    batch["next"].update({"reward": torch.randn(6, 1), "done": torch.zeros(6, 1, dtype=torch.bool)})
    batch["next", "terminated"] = batch["next", "done"]
    loss = ClipPPOLoss(actor, critic, entropy_coeff=0.01, loss_critic_type="l2")
    out = loss(batch)
    policy = actor.policy(torch.cat([batch["state"], batch["belief"]], -1))
    torch.testing.assert_close(out["loss_objective"], -advantage.mean())  # a ratio of one
    torch.testing.assert_close(out["loss_entropy"], -0.01 * policy.entropy.mean())
    value = critic(batch.clone())["state_value"]
    torch.testing.assert_close(out["loss_critic"], (value - target).square().mean())
    sum(out[name] for name in ("loss_objective", "loss_entropy", "loss_critic")).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in loss.parameters())


def test_a_choice_of_actors_makes_the_one_that_is_asked_for() -> None:
    choice = ActorChoice(discrete=DiscreteActor, continuous=ContinuousActor)
    for kind in choice.actions:
        assert kind in choice.of(kind)(4, 2, **TRUNK).actions


def test_a_hook_of_the_last_layer_sees_every_call():
    head, seen = RewardHead(4, units=4, layers=1), []
    head.out.register_forward_hook(lambda *call: seen.append(len(call[1][0])))
    for rows in (2, 4096):
        assert head.predict(torch.zeros(rows, 4)).mean.shape == (rows, 1)
    assert seen == [2, 4096]
