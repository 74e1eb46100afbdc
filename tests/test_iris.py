"""IRIS as a system: counts, several tokens per frame, an actor with a memory, learners that begin in turn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchrl.data import OneHot
from torchrl.envs import InitTracker, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

import wmkit
from support.iris import ATARI, build
from support.tokens import parameters
from wmkit.dynamics import Latent, rollout
from wmkit.envs.counting import CountingEnv
from wmkit.errors import ConfigError, SpecError
from wmkit.objectives import Perceptual, Scene
from wmkit.systems import System, released_parameters

EXACT = {"atol": 1e-5, "rtol": 0}


def test_parameter_counts_and_published_numbers() -> None:
    with torch.device("meta"):
        system = wmkit.build("iris", observation_spec=ATARI, action_spec=OneHot(18))
    model, dynamics = system.world_model, system.world_model.dynamics
    tokenizer = parameters(model.encoder, dynamics.posterior, dynamics.latent, model.decoder)
    agent = parameters(system.actor, system.critic)
    assert (tokenizer, parameters(model) - tokenizer, agent) == (4_027_523, 8_451_077, 3_225_139)
    assert (system.batch_shape, system.dream_windows) == ((64, 20), (64, 21))
    assert system.own_windows == {"frames": (256, 1)}
    for name, learner in system.schedule.learners.items():
        for group in learner.optimizer.param_groups:
            assert (group["lr"], group["eps"], group["betas"]) == (1e-4, 1e-8, (0.9, 0.999))
        decays = {group["weight_decay"] for group in learner.optimizer.param_groups}
        assert decays == ({0.01, 0.0} if name == "dynamics" else {0})
        assert learner.clip == 10
    assert [phase.updates for phase in system.schedule.phases] == [4000, 5000]


def test_released_weights_go_there_and_back() -> None:
    teacher, pupil = build(), build()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.normal_()
    weights: dict[str, Any] = released_parameters(teacher)
    computed = {"world_model.transformer.blocks.0.attn.mask": torch.ones(2, 2), "tokenizer.lpips.lin0": None}
    wmkit.load_released(pupil, weights | computed)
    for one, other in zip(teacher.parameters(), pupil.parameters(), strict=True):
        assert torch.equal(one, other)


def known(system: System, rows: int, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Classes of frames, and records among which episodes begin."""
    dynamics = system.world_model.dynamics
    classes = torch.randint(dynamics.latent.rows, (rows, count, dynamics.latent.groups))
    action = torch.nn.functional.one_hot(torch.randint(5, (rows, count)), 5).float()
    return classes, {"previous_action": action, "is_init": torch.rand(rows, count) < 0.2}


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["gpt", "lstm"])
def test_record_by_record_is_the_whole_window(backbone: str) -> None:
    """Outputs of a window equal those of its records one after another, wherever an episode begins."""
    system = build(*([] if backbone == "gpt" else [f"backbone={backbone}"]))
    dynamics = system.world_model.eval().dynamics
    classes, record = known(system, 4, 6)
    state = dynamics.latent.of(classes)
    whole, _ = dynamics.run(state, classes, record)
    latent, found = None, []
    for t in range(6):
        one = {key: value[:, t : t + 1] for key, value in record.items()}
        out, carry = dynamics.run(state[:, t : t + 1], classes[:, t : t + 1], one, latent)
        latent = Latent(state[:, t], out[:, 0, 0], carry, classes[:, t])
        found.append(out)
    torch.testing.assert_close(torch.cat(found, 1), whole, **EXACT)


@torch.no_grad()
def test_a_state_packed_and_restarted_goes_on_as_it_would_have() -> None:
    system = build()
    dynamics = system.world_model.eval().dynamics
    classes, record = known(system, 4, 3)
    embed = torch.zeros(4, 3, system.world_model.encoder.out_dim)
    start = dynamics.observe(embed, record).last
    action, noise = torch.eye(5)[:4], dynamics.noise(4)
    after = dynamics.step(start, action, noise=noise)
    again = dynamics.step(dynamics.unpack(dynamics.pack(start)), action, noise=noise)
    assert torch.equal(after.classes, again.classes)
    torch.testing.assert_close(after.belief, again.belief, **EXACT)
    other = Latent(dynamics.latent.of(classes[:, 0]), start.belief, None, classes[:, 0])
    mask = torch.tensor([True, False, True, False])
    mixed = dynamics.step(dynamics.restart(start, mask, other), action, noise=noise)
    fresh = dynamics.step(other, action, noise=noise)
    expected = torch.where(mask[:, None], fresh.belief, after.belief)
    torch.testing.assert_close(mixed.belief, expected, **EXACT)
    assert torch.equal(mixed.classes, torch.where(mask[:, None], fresh.classes, after.classes))


def test_tokens_of_frames_that_end_an_episode_teach_nothing() -> None:
    system = build()
    batch = system.example_batch()
    batch["terminated"][:] = False
    batch["terminated"][:, 2] = True
    batch["is_init"][:] = False
    batch["is_init"][:, 3] = True
    changed = batch.clone()
    changed["pixels"][:, 2] = 0
    losses = []
    for one in (batch, changed):
        scene = Scene(system.world_model.eval(), system.fill(one))
        losses.append({name: term.loss for name, term in system.objectives["tokens"].terms(scene).items()})
        losses[-1] |= {
            name: term.loss for name, term in system.objectives["reconstruction"].terms(scene).items()
        }
    assert losses[0] == losses[1]


def test_at_once_is_two_passes_a_step_and_learns() -> None:
    system, passes = build("at_once=true"), []
    dynamics = system.world_model.dynamics
    scan = type(dynamics.backbone.bind()).scan

    def counted(self: Any, x: Tensor, *rest: Any) -> Any:
        passes.append(x.shape[1])
        return scan(self, x, *rest)

    system.schedule.updates = 2
    system.update(*system.example_batches())
    with pytest.MonkeyPatch.context() as patch:
        start = dynamics.initial(2)._replace(classes=torch.zeros(2, 16, dtype=torch.int64))
        carried = start._replace(carry=dynamics._carry(start))
        patch.setattr(type(dynamics.backbone.bind()), "scan", counted)
        dynamics.step(carried, torch.zeros(2, 5))
    assert passes == [2, 15]


def test_the_memory_learns_through_time_and_from_the_dream_alone() -> None:
    """Gradients of actor and critic reach the memory through all steps, none reaches the world model."""
    system = build()
    batch, dreams, _ = system.example_batches()
    scene = system.scene(batch, dreams)
    terms = system.controller.learn(scene).terms
    for name, term in terms.items():
        system.zero_grad()
        term.loss.backward(retain_graph=True)
        assert system.actor.memory.image.layers[0].weight.grad.abs().sum() > 0, name
        assert system.actor.memory.backbone.recurrent.weight.grad.abs().sum() > 0, name
        assert all(p.grad is None for p in system.world_model.parameters()), name


@torch.no_grad()
def test_what_the_memory_saw_before_an_episode_does_not_matter() -> None:
    system = build()
    batch, dreams, _ = system.example_batches()
    dreams["is_init"][:] = False
    dreams["is_init"][:, 2] = True
    changed = dreams.clone()
    changed["pixels"][:, :2] = 0
    carries = []
    for one in (dreams, changed):
        start = system.controller.starts(system.scene(batch, one))
        carries.append(system.controller._burnt_in(system.world_model, start))
    for one, other in zip(*carries, strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    changed["is_init"][:, -1] = True
    start = system.controller.starts(system.scene(batch, changed))
    assert all(not x.any() for x in system.controller._burnt_in(system.world_model, start))


@torch.no_grad()
def test_a_dream_is_remembered_as_a_scan_remembers_it() -> None:
    system = build()
    model, memory = system.world_model.eval(), system.actor.memory
    start = Latent(
        torch.zeros(2, model.dynamics.state_dim), torch.zeros(2, 16), None, torch.zeros(2, 16).long()
    )
    found = rollout(model, start, system.actor, 3)
    out, _ = memory.scan(found.seen.transpose(0, 1))
    torch.testing.assert_close(found.latent.memory.transpose(0, 1), out, **EXACT)
    picture = model.decoder.predict(model.read(model.decoder, found.latent))["pixels"].mean
    torch.testing.assert_close(found.seen, picture.flatten(2), **EXACT)


def test_learners_begin_one_after_another() -> None:
    system = build()
    parts = {
        "tokenizer": system.world_model.encoder,
        "dynamics": system.world_model.dynamics.backbone,
        "agent": system.actor,
    }
    moved = []
    for i in range(3):
        before = {name: [p.clone() for p in part.parameters()] for name, part in parts.items()}
        metrics = system.update(*system.example_batches(i))
        now = {name: list(part.parameters()) for name, part in parts.items()}
        moved.append(
            [n for n in parts if any((a != b).any() for a, b in zip(before[n], now[n], strict=True))]
        )
        assert ("loss_tokens" in metrics.keys()) == (i > 0) and ("loss_actor" in metrics.keys()) == (i > 1)
    assert moved == [["tokenizer"], ["tokenizer", "dynamics"], ["tokenizer", "dynamics", "agent"]]
    assert system.pretraining is None and system.schedule.phase[0] == "together"


def test_an_update_is_given_the_batches_that_it_asks_for() -> None:
    system = build()
    batch, dreams, frames = system.example_batches()
    with pytest.raises(SpecError, match="own batches"):
        system.update(batch, dreams, frames[:2])
    with pytest.raises(SpecError, match="own batches"):
        system.update(batch, dreams)


def test_acting_remembers_inside_an_episode_alone() -> None:
    """A policy in an environment equals its memory run over the frames that the decoder shows of each."""
    system = build()
    env = TransformedEnv(CountingEnv(pixels=True, length=4, num_actions=5), InitTracker())
    env = env.append_transform(system.policy.make_tensordict_primer())
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        played = env.rollout(10, system.policy, break_when_any_done=False)
    model, memory = system.world_model, system.actor.memory
    with torch.no_grad(), model.evaluating():
        seen = model.dynamics.represent(model.encoder.encode({"pixels": played["pixels"][None]}))
        latent = Latent(seen.state, seen.state[..., :0], None, seen.classes)
        shown = model.read(memory, latent).dense
        out, _ = memory.scan(shown, None, played["is_init"][None, :, 0])
        expected = system.actor.policy(out).mode[0]
    assert played["is_init"].sum() > 1
    assert torch.equal(played["action"].float(), expected)


def test_the_perceptual_loss(tmp_path: Any) -> None:
    """By hand from its definition; no file leaves it out, a wrong one is refused in a sentence."""
    widths, before, weights = (64, 64, 128, 128, *(256,) * 3, *(512,) * 6), 3, dict[str, Tensor]()
    for place, width in zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), widths, strict=True):
        weights[f"features.{place}.weight"] = torch.randn(width, before, 3, 3) / (3 * before**0.5)
        weights[f"features.{place}.bias"] = torch.randn(width) / 10
        before = width
    for k, width in enumerate((64, 128, 256, 512, 512)):
        weights[f"lin{k}.model.1.weight"] = torch.rand(1, width, 1, 1)
    torch.save(weights, tmp_path / "vgg.pt")
    path = str(tmp_path / "vgg.pt")
    x, y = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    one = Perceptual({"perceptual": 1.0}, path=path)
    torch.testing.assert_close(one.distance(x, x), torch.zeros(2))
    assert (one.distance(x, y) > 0).all()
    y.requires_grad_()
    (black,) = torch.autograd.grad(one.distance(x, 0 * y).sum(), y)
    assert black.isfinite().all()
    near = Perceptual({"perceptual": 1.0}, path=path, outside=True)
    torch.testing.assert_close(near.distance(x, y), one.distance(x, y))
    dropped = Perceptual({"perceptual": 1.0}, path=path, dropout=0.5)
    assert (dropped.distance(x, y) != dropped.distance(x, y)).any()
    system = build(f"perceptual.path={path}")
    assert "loss_perceptual" in system.update(*system.example_batches()).keys()
    assert "perceptual" not in build().objectives["perceptual"].weights
    del weights["lin3.model.1.weight"]
    torch.save(weights, path)
    for wrong in (path, str(tmp_path / "nothing.pt")):
        with pytest.raises(ConfigError, match="perceptual"):
            Perceptual({"perceptual": 1.0}, path=wrong)


def test_a_memory_reads_a_square_image_and_only_its_critic_may_share_it() -> None:
    with pytest.raises(ConfigError, match="square image"):
        build("+actor.memory.channels=5")
    with pytest.raises(ConfigError, match="memory"):
        build("actor.memory=null", "actor.in_keys=[state]")
