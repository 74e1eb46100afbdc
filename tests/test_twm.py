"""TWM as a system: counts, token alignment, masks, losses by hand, phases, acting."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.envs import ExplorationType, InitTracker, TransformedEnv, set_exploration_type

import wmkit
from support.tokens import parameters, watch
from support.twm import TINY, build, outcome, paper
from wmkit.data.samplers import VisitBalanced, Windows
from wmkit.envs.counting import CountingEnv
from wmkit.errors import ConfigError, SpecError
from wmkit.objectives.latent_terms import entropy_hinge
from wmkit.systems import compose

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


def grouped(losses: dict) -> dict[str, Tensor]:
    """Losses of the world model by what they teach."""
    return {
        group: torch.stack([loss.value for loss in losses.values() if loss.group == group]).sum()
        for group in ("representation", "dynamics")
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
    system.context = 0  # of vectors, which have no older frames
    for _ in range(300):
        begin = int(torch.randint(0, 16, ()))
        losses = system._score(system.scene(records()[:, begin : begin + 16]), {})
        system.schedule.learn(["dynamics", "representation"], losses)
    batch = system.fill(records()[:, 3:21])
    model = system.world_model.eval()
    with torch.no_grad():
        observed = model.observe(batch)
        reward, discount = outcome(model, observed.latent)
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
    return model.decoder.predict(model.dynamics.latent.mode(logits)[0])["observation"].mean.squeeze(-1)


# ---- world-model losses -------------------------------------------------------------------------------


def test_losses_are_those_of_the_paper_computed_by_hand() -> None:
    """Every term from the model's own outputs, record by record in plain loops."""
    system = build()
    model = system.world_model.eval()
    scene = system.scene(system.example_batch(3))
    batch = scene.batch
    batch["is_init"][0, 4] = batch["is_init"][1, 2] = True  # among them: seen, arrived at, both
    batch["terminated"][0, 3] = batch["done"][0, 3] = True
    torch.manual_seed(1)
    losses = system._score(scene, metrics := {})
    torch.manual_seed(1)
    seen = model.observe(batch)
    q, p = seen.posterior_logits.softmax(-1), seen.prior_logits.softmax(-1)
    decoded = model.decoder.predict(seen.latent.state)["pixels"].mean
    reward, chance = outcome(model, seen.latent)
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
        torch.testing.assert_close(metrics[f"loss_{name}"], torch.stack(values).mean().detach())
    hinge = torch.relu(0.1 - torch.stack(entropies).mean())
    mean = {name: torch.stack(values).mean() for name, values in terms.items()}
    out = grouped(losses)
    torch.testing.assert_close(
        out["representation"], 0.5 * mean["pixels"] + 5 * hinge + 0.01 * mean["consistency"]
    )
    torch.testing.assert_close(
        out["dynamics"], mean["state"] + 10 * mean["reward"] + 50 * mean["continuation"]
    )


def test_gradients_stay_on_their_side() -> None:
    system = build()
    out = grouped(system._score(system.scene(system.example_batch()), {}))
    learners = system.schedule.learners
    for own, other in (("representation", "dynamics"), ("dynamics", "representation")):
        loss = out[own]
        grads = torch.autograd.grad(loss, learners[own].parameters, retain_graph=True, allow_unused=True)
        assert all(g is not None and g.isfinite().all() for g in grads)
        grads = torch.autograd.grad(loss, learners[other].parameters, retain_graph=True, allow_unused=True)
        assert all(g is None for g in grads)


def test_compat_scores_what_was_expected_before_an_episode_began() -> None:
    masked = []
    for override in ([], ["compat=released"]):
        system = build(*override)
        scene = system.scene(system.example_batch())
        scene.batch["is_init"][:, 3] = True
        masked.append(system.objectives["latents"].terms(scene)["consistency"].mask)
    assert masked[1] is None and not masked[0][:, 2].any()


def test_entropy_hinge_has_no_gradient_above_its_threshold() -> None:
    for entropy, gradient in ((0.05, -1.0), (0.1, 0.0), (0.5, 0.0)):
        x = torch.tensor(entropy, requires_grad=True)
        entropy_hinge(x, 0.1).backward()
        assert x.grad == gradient
    system = build("controller.hooks.restart=null")
    scene = system.scene(system.example_batch())
    scene.observed  # noqa: B018 (drawn once)
    found, weights = [], list(system.actor.parameters())
    for entropy in (0.0, 1e6):  # a policy far above the threshold feels nothing of it
        system.controller.entropy = entropy
        torch.manual_seed(0)
        loss = system.controller.learn(scene).terms["actor"].loss
        found.append((loss, *torch.autograd.grad(loss, weights)))
    assert all(map(torch.equal, *found)) and any(grad.any() for grad in found[0][1:])


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
    phases = {phase.name: phase.updates for phase in system.schedule.phases}
    assert phases == {"representation": 6, "dynamics": 3, "behaviour": 1} and system.pretraining == 10
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
    slip = build("training.pretrain=10", "compat=released").schedule.phases[-1]
    assert (slip.name, slip.updates) == ("behaviour", 7)


def test_learners_step_in_order() -> None:
    system, order = build(), []
    for name, learner in system.schedule.learners.items():
        original = learner.step
        learner.step = lambda name=name, original=original: order.append(name) or original()
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
    seen = watch(system.world_model.encoder, "encode")
    env = TransformedEnv(CountingEnv(pixels=True), InitTracker())
    env.append_transform(system.policy.make_tensordict_primer())
    with set_exploration_type(ExplorationType.RANDOM):
        rollout = env.rollout(18, system.policy, break_when_any_done=False)
    acted = torch.cat([x["pixels"] for x in seen]) * 255  # [18, 4, 64, 64]
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
    read, actions = watch(system.actor, "policy"), []
    with set_exploration_type(ExplorationType.RANDOM):
        for _ in range(20):
            actions.append(system.policy(root.clone())["action"])
    assert all(torch.equal(features.dense, read[0].dense) for features in read)
    assert any(not torch.equal(action, actions[0]) for action in actions)


def test_open_loop_and_imagine() -> None:
    system = build(spec=CountingEnv(pixels=True).observation_spec, actions=3)
    batch = system.example_batch()
    opened = system.open_loop(batch, 4)
    assert opened["pixels"].shape == batch["pixels"].shape  # the newest frame, in every channel
    state = system.world_model.dynamics.latent.one_hot(torch.randint(4, (5, 4)))
    dreamt = system.imagine(TensorDict({"state": state}, [5]), 6)
    assert dreamt.batch_size == (5, 6) and dreamt["next", "reward"].shape == (5, 6, 1)
    assert torch.equal(dreamt["next", "state"][:, :-1], dreamt["state"][:, 1:])
    assert torch.equal(dreamt["next", "continuation"][:, :-1], dreamt["continuation"][:, 1:])


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="which the dynamics do not write"):
        build("actor.in_keys=[mood]")
    with pytest.raises(ConfigError, match="acts_on is 'mode'"):
        build("actor.in_keys=[state,belief]")
    with pytest.raises(ConfigError, match="wanted one of micro, paper, tiny"):
        compose("twm", ["size=huge"])
    with pytest.raises(SpecError, match="wanted 3 or more"):
        system = build()
        system.update(system.example_batch()[:, :4])
