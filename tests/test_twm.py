"""TWM as a system: counts, token alignment, masks, losses by hand, dreams against a slow oracle, phases."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchrl.data import OneHot
from torchrl.envs import ExplorationType, InitTracker, TransformedEnv, set_exploration_type
from wmkit.objectives.token_latents import entropy_hinge

import wmkit
from support.tokens import cut, make_start, parameters, steps
from support.twm import ATARI, TINY, build
from wmkit.data.samplers import VisitBalanced, Windows
from wmkit.dynamics import DreamStart, dream
from wmkit.dynamics.token_dynamics import Steps
from wmkit.envs.counting import CountingEnv
from wmkit.errors import ConfigError, SpecError
from wmkit.nn import Feature
from wmkit.systems import System, compose


def paper(*overrides: str, device: str = "meta") -> System:
    with torch.device(device):
        return wmkit.build(
            "twm",
            observation_spec=ATARI,
            action_spec=OneHot(18),
            overrides=["size=paper", "batch.size=100", "batch.length=18", *overrides],
        )


# ---- sizes --------------------------------------------------------------------------------------------


def test_parameter_counts_of_every_part() -> None:
    system = paper()
    model, dynamics = system.world_model, system.world_model.dynamics
    assert parameters(model, system.actor, system.critic) == 21_652_281
    parts = [
        (model.encoder, dynamics.posterior),
        (model.decoder,),
        (dynamics.backbone, dynamics.tokens, dynamics.prior, *model.heads.values()),
        (dynamics.backbone,),
        (dynamics.tokens,),
        (dynamics.prior,),
        (model.heads["reward"],),
        (model.heads["continuation"],),
        (system.actor,),
        (system.critic,),
    ]
    counts = [3_126_992, 5_107_540, 10_782_466, 8_543_232, 267_520, 1_444_864, 263_425, 263_425]
    assert [parameters(*part) for part in parts] == [*counts, 1_322_002, 1_313_281]
    learners = system.schedule.learners
    grouped = {name: sum(p.numel() for p in learner.parameters) for name, learner in learners.items()}
    assert grouped["representation"] == 3_126_992 + 5_107_540 and grouped["dynamics"] == 10_782_466
    assert system.batch_shape == (100, 21)


def test_published_optimisers() -> None:
    found = {}
    for name, learner in paper("preset=full").schedule.learners.items():
        (group,) = learner.optimizer.param_groups
        assert type(learner.optimizer) is torch.optim.Adam  # whose decay is added to the gradient
        assert (group["eps"], group["weight_decay"], group["betas"]) == (1e-5, 1e-6, (0.9, 0.999))
        found[name] = group["lr"], learner.clip
    assert found == {
        "representation": (1e-4, 100),
        "dynamics": (1e-4, 100),
        "critic": (1e-5, 1),  # a tenth of the actor's
        "actor": (1e-4, 1),
    }


def maps(layers: nn.Module, kind: type, x: Tensor) -> list[int]:
    sides = []
    hooks = [
        m.register_forward_hook(lambda m, i, o: sides.append(o.shape[-1]))
        for m in layers.modules()
        if isinstance(m, kind)
    ]
    layers(x)
    for hook in hooks:
        hook.remove()
    return sides


def test_shapes() -> None:
    system = paper()
    model, dynamics = system.world_model, system.world_model.dynamics
    assert maps(model.encoder.image, nn.Conv2d, torch.zeros(1, 4, 64, 64, device="meta")) == [31, 14, 6, 2]
    state = torch.zeros(1, 1024, device="meta")
    assert maps(model.decoder.image, nn.ConvTranspose2d, state) == [5, 13, 30, 64]
    scanned, original = [], dynamics.backbone.scan
    dynamics.backbone.scan = lambda x, *rest: scanned.append(x.shape) or original(x, *rest)
    batch = system.example_batch()[:2].to("meta")
    filled = {k: v[:, system.context :] for k, v in system.fill(batch).items()}
    observed = model.observe(filled)
    assert scanned == [(2, 50, 256)]
    assert observed.latent.belief.shape == (2, 18, 256) and observed.latent.state.shape == (2, 18, 1024)


# ---- tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["transformer_xl", "gru"])
def test_a_cached_walk_is_the_full_pass(backbone: str) -> None:
    """One step at a time with a memory equals all tokens at once, episodes that begin anywhere included."""
    dynamics = build(f"backbone={backbone}").world_model.eval().dynamics
    walk = steps(dynamics, 6, 16, torch.rand(6, 16) < 0.2)
    full, _ = dynamics.advance(walk, None)
    carry, beliefs, loop = None, [], dynamics.loop()
    for t in range(16):
        belief, carry = dynamics.advance(cut(walk, t, t + 1), carry, loop)
        beliefs.append(belief)
    torch.testing.assert_close(torch.cat(beliefs, 1), full, atol=1e-5, rtol=0)


def test_a_reward_is_late_and_an_episode_sees_nothing_before_it() -> None:
    dynamics = build().world_model.eval().dynamics
    init = torch.zeros(1, 9, dtype=torch.bool)
    init[0, 5] = True
    walk = steps(dynamics, 1, 9, init)

    def beliefs(reward_at: int | None = None, state_at: int | None = None) -> Tensor:
        reward, classes = walk.reward.clone(), walk.state.classes.clone()
        if reward_at is not None:
            reward[:, reward_at] += 3
        if state_at is not None:
            classes[:, state_at] = (classes[:, state_at] + 1) % dynamics.classes
        state = dynamics.one_hot(classes)
        return dynamics.advance(
            Steps(Feature(state, state[..., :0], classes), walk.action, reward, init), None
        )[0]

    base = beliefs()
    changed = (beliefs(reward_at=2) != base).any(-1)[
        0
    ]  # r received on arriving at step 2: known from there on
    assert changed.tolist() == [False] * 2 + [True] * 3 + [False] * 4
    changed = (beliefs(state_at=4) != base).any(-1)[0]
    assert changed.tolist() == [False] * 4 + [True] + [False] * 4
    assert torch.equal(beliefs(reward_at=5), base)  # an episode's first record was not arrived at
    assert torch.equal(beliefs(reward_at=0), base)  # nor a window's


def records(length: int = 7, rows: int = 8, time: int = 40) -> TensorDict:
    """The counting world, ``length + 1`` records an episode; a reward of 2 on arriving at 1, 4 and 7."""
    count = (torch.arange(time) + torch.arange(rows).unsqueeze(1)) % (length + 1)
    value, last = count.unsqueeze(-1).float(), (count == length).unsqueeze(-1)
    action = F.one_hot(torch.randint(3, (rows, time)), 3).float() * (count > 0).unsqueeze(-1)
    return TensorDict(
        {
            "observation": value,
            "reward": 2.0 * (value % 3 == 1),
            "is_init": (count == 0).unsqueeze(-1),
            "terminated": last,
            "done": last,
            "previous_action": action,
        },
        [rows, time],
    )


def test_counting_world_has_no_off_by_one() -> None:
    """Reward, end and next observation are those of the next record, not of the one before or after it."""
    env = CountingEnv()
    system = wmkit.build(
        "twm",
        observation_spec=env.observation_spec,
        action_spec=env.action_spec,
        overrides=[
            *TINY,
            *("size.deter=32", "size.classes=8", "size.hidden=32", "size.units=32", "batch.size=8"),
            *(
                "learning_rate.world_model=3e-3",
                "learning_rate.dynamics=3e-3",
                "backbone.dropout=0",
            ),
        ],
    )
    torch.manual_seed(0)
    for _ in range(300):
        begin = int(torch.randint(0, 16, ()))
        out = system.world_model_loss(system.world_model, system.fill(records()[:, begin : begin + 16]))
        system.schedule.learners["dynamics"].step(out.dynamics)
        system.schedule.learners["representation"].step(out.representation)
    batch = system.fill(records()[:, 3:21])
    model = system.world_model.eval()
    with torch.no_grad():
        observed = model.observe(batch)
        reward, discount = model.outcome(observed.latent.belief)
        expected, seen = (decoded_mode(model, x) for x in (observed.prior_logits, observed.posterior_logits))
    within, goes_on = ~batch["is_init"][..., 0], ~batch["done"][..., 0]
    label = 0.99 * (1 - batch["terminated"].float())
    for prediction, truth, mask, share in (
        (reward[..., 0], torch.tanh(batch["reward"])[..., 0], within, 0.4),
        (discount[..., 0], label[..., 0], within, 0.4),
        (expected, seen, within & goes_on, 0.7),
    ):
        error = [
            (prediction[:, 2:-1] - truth[:, 2 + shift : 17 + shift])[mask[:, 2:-1]].abs().mean()
            for shift in (-1, 0, 1)
        ]
        assert error[1] < share * min(error[0], error[2])


def decoded_mode(model: nn.Module, logits: Tensor) -> Tensor:
    """What the likeliest states ``[B, T]`` look like."""
    return model.decoder(model.dynamics.one_hot(logits.argmax(-1)))["observation"].mean.squeeze(-1)


# ---- world-model losses -------------------------------------------------------------------------------


def test_losses_are_those_of_the_paper_computed_by_hand() -> None:
    """Every term from the model's own outputs, record by record in plain loops."""
    system = build()
    model = system.world_model.eval()
    batch = system.fill(system.example_batch(3))
    batch = {k: v[:, system.context :] for k, v in batch.items()}
    batch["is_init"][0, 4] = batch["is_init"][1, 2] = True  # among them: seen, arrived at, both
    batch["terminated"][0, 3] = batch["done"][0, 3] = True
    torch.manual_seed(1)
    out = system.world_model_loss(model, batch)
    torch.manual_seed(1)
    seen = model.observe(batch)
    q, p = seen.posterior_logits.softmax(-1), seen.prior_logits.softmax(-1)
    decoded = model.decoder(seen.latent.state)["pixels"].mean
    reward, _ = model.outcome(seen.latent.belief)
    chance = model.heads["continuation"](seen.latent.belief).mean
    rows, last = 3, 7  # records 0..7: 0 is context, 7 only arrived at
    terms: dict[str, list[Tensor]] = {
        k: [] for k in ("pixels", "consistency", "state", "reward", "continuation")
    }
    entropies = []
    for b in range(rows):
        for t in range(last + 1):
            init = bool(batch["is_init"][b, t])
            ended = bool(batch["done"][b, t]) or (t < last and bool(batch["is_init"][b, t + 1]))
            if 1 <= t < last:
                terms["pixels"].append((decoded[b, t] - batch["pixels"][b, t]).square().sum())
                entropies.append(-(q[b, t] * q[b, t].log()).sum() / (4 * math.log(4)))
                if not init:
                    terms["consistency"].append(-(p[b, t] * q[b, t].log()).sum())
            if t >= 2 and not init:
                if not ended:
                    terms["state"].append(-(q[b, t] * p[b, t].log()).sum())
                r, c = torch.tanh(batch["reward"][b, t, 0]), chance[b, t, 0]
                terms["reward"].append(0.5 * (reward[b, t, 0] - r) ** 2 + 0.5 * math.log(2 * math.pi))
                label = 0.99 * (1 - batch["terminated"][b, t, 0].float())
                terms["continuation"].append(-(label * c.log() + (1 - label) * (1 - c).log()))
    for name, values in terms.items():
        torch.testing.assert_close(out.metrics[f"loss_{name}"], torch.stack(values).mean().detach())
    hinge = torch.relu(0.1 - torch.stack(entropies).mean())
    mean = {name: torch.stack(values).mean() for name, values in terms.items()}
    torch.testing.assert_close(
        out.representation, 0.5 * mean["pixels"] + 5 * hinge + 0.01 * mean["consistency"]
    )
    torch.testing.assert_close(out.dynamics, mean["state"] + 10 * mean["reward"] + 50 * mean["continuation"])


def test_gradients_stay_on_their_side() -> None:
    system = build()
    model = system.world_model
    batch = {k: v[:, system.context :] for k, v in system.fill(system.example_batch()).items()}
    out = system.world_model_loss(model, batch)
    learners = system.schedule.learners
    for loss, own, other in (
        (out.representation, "representation", "dynamics"),
        (out.dynamics, "dynamics", "representation"),
    ):
        grads = torch.autograd.grad(loss, learners[own].parameters, retain_graph=True, allow_unused=True)
        assert all(g is not None and g.isfinite().all() for g in grads)
        grads = torch.autograd.grad(loss, learners[other].parameters, retain_graph=True, allow_unused=True)
        assert all(g is None for g in grads)


def test_compat_scores_what_was_expected_before_an_episode_began() -> None:
    batch = None
    masked = []
    for override in ([], ["compat=released"]):
        system = build(*override)
        if batch is None:
            batch = {k: v[:, system.context :] for k, v in system.fill(system.example_batch()).items()}
            batch["is_init"][:, 3] = True
        loss = system.world_model_loss
        spans = loss.spans(batch)
        logits = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0))
        term = loss.latents(logits, logits + 1, spans)[0]["consistency"]
        masked.append(term.mask)
    assert masked[1] is None and not masked[0][:, 2].any()


def test_entropy_hinge_has_no_gradient_above_its_threshold() -> None:
    for entropy, gradient in ((0.05, -1.0), (0.1, 0.0), (0.5, 0.0)):
        x = torch.tensor(entropy, requires_grad=True)
        entropy_hinge(x, 0.1).backward()
        assert x.grad == gradient
    system = build()
    batch = {k: v[:, system.context :] for k, v in system.fill(system.example_batch()).items()}
    records_ = system.world_model_loss(system.world_model, batch).records
    system.behaviour.restart = 0.0
    found, weights = [], list(system.actor.parameters())
    for entropy in (0.0, 1e6):  # a policy far above the threshold feels nothing of it
        system.behaviour.entropy = entropy
        torch.manual_seed(0)
        loss = system.behaviour(system.world_model, system.actor, system.critic, records_).actor_loss
        found.append((loss, *torch.autograd.grad(loss, weights)))
    assert all(map(torch.equal, *found)) and any(grad.any() for grad in found[0][1:])


# ---- dreams -------------------------------------------------------------------------------------------


def test_a_dream_is_what_full_passes_say() -> None:
    """Everything a dream returns, again without memory from the dreamt tokens."""
    system = build()
    model, dynamics = system.world_model.train(), system.world_model.dynamics
    start, horizon = make_start(system, context=2), 9
    pool = torch.randint(dynamics.classes, (3, dynamics.groups))
    with torch.no_grad():
        model.heads["continuation"].trunk[-1].bias.fill_(0.5)  # discounts small enough to restart
    dreamt = dream(model, system.actor, start, horizon, threshold=0.3, replacements=pool, learn=True)
    assert model.training and dreamt.restarts.any() and not dreamt.restarts.all()
    model.eval()
    classes = torch.cat([start.classes[:, :-1], dreamt.classes[:, :-1]], 1)
    arrived = torch.cat([start.reward, dreamt.rewards[:, :-1]], 1)
    init = torch.cat([start.is_init, dreamt.restarts[:, :-1, 0]], 1)
    state = dynamics.one_hot(classes)
    actions = torch.cat([start.action, dreamt.actions], 1)
    with torch.no_grad():
        belief, _ = dynamics.advance(
            Steps(Feature(state, state[..., :0], classes), actions, arrived, init), None
        )
        reward, discount = model.outcome(belief[:, 2:])
    torch.testing.assert_close(dreamt.rewards, reward, atol=1e-5, rtol=0)
    torch.testing.assert_close(dreamt.discounts, discount.masked_fill(dreamt.restarts, 0), atol=1e-5, rtol=0)
    for row in range(5):
        product = 1.0
        for t in range(horizon):
            assert dreamt.weights[row, t].item() == pytest.approx(product, abs=1e-5)
            product *= discount[row, t].item()
            assert bool(dreamt.restarts[row, t]) == (product < 0.3)
            if product < 0.3:
                product = 1.0
                assert (dreamt.classes[row, t + 1] == pool).all(-1).any()
    policy = system.actor(dynamics.view(dreamt.states[:, :-1], dreamt.beliefs[:, :-1]))
    torch.testing.assert_close(dreamt.log_probs, policy.log_prob(dreamt.actions))


def test_losses_of_behaviour_by_hand() -> None:
    """Generalised advantages in a plain loop; what is scored is weighted, what restarts is cut."""
    system = build("behaviour.restart=0.5", "behaviour.entropy=0.01", "behaviour.horizon=6")
    batch = {k: v[:, system.context :] for k, v in system.fill(system.example_batch()).items()}
    records_ = system.world_model_loss(system.world_model, batch).records
    model, behaviour = system.world_model, system.behaviour
    with torch.no_grad():
        model.heads["continuation"].trunk[-1].bias.fill_(0.5)
        system.actor.out.weight.mul_(1000)  # nearly certain, so that the hinge speaks
    torch.manual_seed(2)
    out = behaviour(model, system.actor, system.critic, records_)
    torch.manual_seed(2)
    start = behaviour.starts(
        records_.classes, records_.previous_action, records_.reward, records_.is_init, records_.ended
    )
    dreamt = dream(
        model, system.actor, start, 6, threshold=0.5, replacements=start.classes[:, -1], learn=True
    )
    assert dreamt.restarts.any()
    value = system.critic(dreamt.states).mean.squeeze(-1).detach()  # [N, 7]
    reward, discount = dreamt.rewards.squeeze(-1), dreamt.discounts.squeeze(-1)
    advantage, later = torch.zeros_like(reward), torch.zeros(len(reward))
    for t in reversed(range(6)):
        delta = reward[:, t] + discount[:, t] * value[:, t + 1] - value[:, t]
        later = delta + 0.95 * discount[:, t] * later
        advantage[:, t] = later
    weight = dreamt.weights.squeeze(-1) * start.mask[:, None]
    count = start.mask.sum() * 6
    target = advantage + value[:, :-1]
    online = system.critic(dreamt.states[:, :-1]).mean.squeeze(-1)
    critic = (weight * (0.5 * (online - target) ** 2 + 0.5 * math.log(2 * math.pi))).sum() / count
    entropy = (weight * dreamt.entropies).sum() / count / math.log(5)
    actor = -(weight * dreamt.log_probs * advantage).sum() / count + 0.01 * torch.relu(0.1 - entropy)
    assert 1e-6 < entropy < 0.1
    torch.testing.assert_close(out.critic_loss, critic)
    torch.testing.assert_close(out.actor_loss, actor)


def test_restarts_from_all_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """States drawn beside the batch, encoded anew with their older frames, are what dreams go on from."""
    system = build("behaviour.restart_states=40", "behaviour.horizon=6", "observations.frames.count=4")
    assert system.dream_windows == (40, 4) and build().dream_windows is None
    assert paper("preset=full").dream_windows == (64, 4)
    model = system.world_model
    with torch.no_grad():
        model.dynamics.posterior[-1].weight.mul_(1e4)  # a sample is the likeliest
        model.heads["continuation"].trunk[-1].weight.zero_()
        model.heads["continuation"].trunk[-1].bias.fill_(-3)  # every step restarts
    seen: list = []

    def watched(*args, **options):
        pool = model.dynamics.posterior_logits(model.encoder(last)).argmax(-1)
        seen.append((dream(*args, **options), pool))
        return seen[-1][0]

    monkeypatch.setattr("wmkit.objectives.dream_actor_critic.dream", watched)
    batch, dreams = system.example_batches()
    last = {key: value[:, -1] for key, value in system.fill(dreams).items()}
    assert last["pixels"].shape == (40, 4, 64, 64) and not last["pixels"][0, 0].equal(last["pixels"][0, 3])
    system.update(batch, dreams)
    ((dreamt, pool),) = seen
    assert dreamt.restarts.all() and len(set(map(tuple, pool.tolist()))) > 4
    went_on = dreamt.classes[:, 1:].flatten(0, 1)
    assert {*map(tuple, went_on.tolist())} == {*map(tuple, pool.tolist())}
    with pytest.raises(SpecError, match=r"windows for dreams are None: wanted \(40, 4\)"):
        system.update(batch)
    with pytest.raises(ConfigError, match=r"behaviour\.restart_states is -1"):
        build("behaviour.restart_states=-1")


def test_starts_are_pairs_without_repetition_and_not_at_ends() -> None:
    system = build("behaviour.starts.count=20")
    classes = torch.arange(4 * 7).view(4, 7, 1)
    ended = torch.zeros(4, 7, dtype=torch.bool)
    ended[:, 3] = True
    start = system.behaviour.starts(classes, torch.zeros(4, 7, 5), torch.zeros(4, 7, 1), ended, ended)
    last = start.classes[:, 1, 0]
    assert start.mask.all() and len(set(last.tolist())) == 20
    assert sorted(last.tolist()) == [i for i in range(28) if i % 7 not in (0, 3)]
    system.behaviour.starts.count = 400
    start = system.behaviour.starts(classes, torch.zeros(4, 7, 5), torch.zeros(4, 7, 1), ended, ended)
    assert len(start.mask) == 24 and int(start.mask.sum()) == 20


def test_a_dream_costs_less_than_a_gigaflop_per_start() -> None:
    """0.9 GFLOP at most, where running the whole sequence again each step would cost several times that."""
    system = paper()
    model, rows = system.world_model.requires_grad_(False), 400
    start = DreamStart(
        torch.zeros(rows, 2, 32, dtype=torch.int64, device="meta"),
        torch.zeros(rows, 2, 1, device="meta"),
        torch.zeros(rows, 2, dtype=torch.bool, device="meta"),
        torch.zeros(rows, 1, 18, device="meta"),
        torch.ones(rows, dtype=torch.bool, device="meta"),
    )
    with FlopCounterMode(display=False) as counter:
        dreamt = dream(model, system.actor, start, 15, threshold=0.1, replacements=start.classes[:, -1])
    assert dreamt.states.shape == (rows, 16, 1024) and dreamt.rewards.shape == (rows, 15, 1)
    assert 0.6e9 < counter.get_total_flops() / rows < 0.9e9


# ---- replay -------------------------------------------------------------------------------------------


def test_seldom_visited_starts_come_first() -> None:
    """Inclusion as in drawing one after another without replacement; only drawn starts count as visited."""
    windows = Windows(torch.tensor([0]), torch.tensor([8]), capacity=8, length=3)
    visits = torch.tensor([0, 10, 20, 30, 40, 60])
    generator = torch.Generator().manual_seed(0)
    found, wanted, draws = torch.zeros(6), torch.zeros(6), 4000
    for _ in range(draws):
        sampler = VisitBalanced(20.0)
        sampler.load_state_dict({"visits": F.pad(visits, (0, 2)).view(1, 8).int(), "seen": torch.tensor([8])})
        drawn = sampler.draw(windows, 3, generator)
        assert len(set(drawn.tolist())) == 3
        found[drawn] += 1 / draws
        counts = sampler.state_dict()["visits"].view(-1)[:6] - visits
        assert counts.sum() == 3 and (counts[drawn] == 1).all()
    weight = torch.softmax(-visits / 20, 0)
    for _ in range(draws):
        wanted[torch.multinomial(weight, 3, generator=generator)] += 1 / draws
    torch.testing.assert_close(found, wanted, atol=0.03, rtol=0)


def test_pages_sampler_reaches_replay() -> None:
    from wmkit.training.parts import make_memory

    config, system = compose("twm", TINY), build()

    class Run:
        def folder(self, name: str) -> None:
            return None

    memory = make_memory(config, Run(), system, 2)  # type: ignore[arg-type]
    assert isinstance(memory.streams.sampler, VisitBalanced) and memory.streams.sampler.temperature == 20
    assert memory.context == 3  # windows keep their flags and bring older frames


# ---- the whole update ---------------------------------------------------------------------------------


def test_phases_train_what_they_name() -> None:
    system = build("training.pretrain=10", "learning_rate.critic=1e-3")
    assert (
        system.schedule.phases == {"representation": 6, "dynamics": 3, "behaviour": 1}
        and system.pretraining == 10
    )
    groups = {name: learner.parameters for name, learner in system.schedule.learners.items()}
    batch = system.example_batch()
    expected = [{"representation"}] * 6 + [{"dynamics"}] * 3 + [{"critic", "actor"}] + [set(groups)] * 2
    for wanted in expected:
        before = {name: [p.detach().clone() for p in part] for name, part in groups.items()}
        metrics = system.update(batch)
        moved = {
            name
            for name, part in groups.items()
            if any(not torch.equal(a, b) for a, b in zip(before[name], part, strict=True))
        }
        assert moved == wanted and all(torch.isfinite(v).all() for v in metrics.values())
    assert "replay_context" not in metrics.keys()
    slip = build("training.pretrain=10", "compat=released")
    assert slip.schedule.phases["behaviour"] == 7


def test_learners_step_in_order() -> None:
    system, order = build(), []
    for name, learner in system.schedule.learners.items():
        original = learner.step
        learner.step = lambda loss, name=name, original=original: order.append(name) or original(loss)
    system.update(system.example_batch())
    assert order == ["dynamics", "representation", "critic", "actor"]


def test_an_update_learns_is_reproducible_and_resumes() -> None:
    systems = [build(), build()]
    batch = systems[0].example_batch()
    for system in systems:
        torch.manual_seed(5)
        first = system.update(batch)
        for _ in range(4):
            last = system.update(batch)
        assert last["loss_world_model"] < first["loss_world_model"]
    a, b = systems
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    other = build("seed=3")
    other.load_state_dict(copy.deepcopy(a.state_dict()))
    for system in (a, other):
        torch.manual_seed(6)
        system.update(batch)
    assert other.schedule.updates == 6
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), other.parameters(), strict=True))


def test_images_are_stacked_when_sampled_and_when_acting_alike() -> None:
    """What the policy sees while it acts is what training makes of the single frames in replay."""
    system = build(spec=CountingEnv(pixels=True).observation_spec, actions=3)
    assert system.spaces.images == ("pixels",) and system.world_model.encoder.image.layers[0].in_channels == 4
    seen: list[Tensor] = []
    encoder = system.world_model.encoder
    encoder.register_forward_pre_hook(lambda m, args: seen.append(args[0]["pixels"].clone()))
    env = TransformedEnv(CountingEnv(pixels=True), InitTracker())
    for transform in system.policy.make_tensordict_primer():
        env.append_transform(transform)
    with set_exploration_type(ExplorationType.RANDOM):
        rollout = env.rollout(18, system.policy, break_when_any_done=False)
    acted = torch.cat(seen) * 255  # [18, 4, 64, 64]
    system.frames.grey = True
    sampled = system.frames.window(rollout["pixels"][None], rollout["is_init"][None])[0] * 255
    torch.testing.assert_close(acted, sampled, atol=1e-3, rtol=0)
    assert acted[5, :, 0, 0].round().tolist() == [2, 3, 4, 5] and acted[8, :, 0, 0].round().tolist() == [
        0,
        0,
        0,
        1,
    ]


def test_the_policy_acts_on_the_mode_and_samples_actions() -> None:
    system = build()
    root = TensorDict(
        {
            "pixels": (torch.rand(6, 1, 64, 64) * 255).to(torch.uint8),
            "is_init": torch.ones(6, 1, dtype=torch.bool),
            "recent_frames": torch.zeros(6, 4, 64, 64),
        },
        [6],
    )
    with torch.no_grad():
        for layer in system.world_model.dynamics.posterior:
            if hasattr(layer, "linear"):
                layer.linear.weight.mul_(3)
    read: list[Tensor] = []
    system.actor.register_forward_pre_hook(lambda m, args: read.append(args[0].state.clone()))
    actions = []
    with set_exploration_type(ExplorationType.RANDOM):
        for _ in range(20):
            actions.append(system.policy(root.clone())["action"])
    assert all(torch.equal(state, read[0]) for state in read)
    assert any(not torch.equal(action, actions[0]) for action in actions)


def test_open_loop_and_imagine() -> None:
    system = build(spec=CountingEnv(pixels=True).observation_spec, actions=3)
    batch = system.example_batch()
    opened = system.open_loop(batch, 4)
    assert opened["pixels"].shape == batch["pixels"].shape  # the newest frame, in every channel
    dynamics = system.world_model.dynamics
    start = {"state": dynamics.one_hot(torch.randint(4, (5, 4)))}
    dreamt = system.imagine(start, 6)
    assert dreamt.batch_size == (5, 6) and dreamt["next", "reward"].shape == (5, 6, 1)
    assert torch.equal(dreamt["next", "state"][:, :-1], dreamt["state"][:, 1:])
    torch.testing.assert_close(
        dreamt["weight"][:, 1:], dreamt["next", "continuation"][:, :-1].cumprod(1), atol=1e-6, rtol=0
    )


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="policy_reads"):
        build("world_model.dynamics.policy_reads=belief")
    with pytest.raises(ConfigError, match="has no belief"):
        build("world_model.dynamics.policy_reads=feature")
    with pytest.raises(ConfigError, match="wanted one that reads the state"):
        build("world_model.decoder._target_=wmkit.codecs.Decoder")
    with pytest.raises(ConfigError, match="wanted one of micro, paper, tiny"):
        compose("twm", ["size=huge"])
    with pytest.raises(SpecError, match="wanted 3 or more"):
        system = build()
        system.update(system.example_batch()[:, :4])
