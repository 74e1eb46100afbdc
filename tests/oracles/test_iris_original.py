"""IRIS beside its own code (eloialonso/iris 24326aa), small, without dropout, with its weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Composite, OneHot, UnboundedDiscrete

from support.originals import Recorded, loaded, near
from wmkit.dynamics import Latent
from wmkit.dynamics.token_dynamics import Represented
from wmkit.objectives import Scene
from wmkit.systems import System
from wmkit.systems.convert import iris

ACTIONS, GROUPS = 5, 16
SIZES = {
    **{"depth": 32, "width": 16, "classes": 64, "deter": 32, "hidden": 32, "units": 32, "blocks": 2},
    **{"heads": 2, "feed_forward": 128},
}


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded("iris")


@pytest.fixture
def system(recorded: Recorded) -> System:
    return loaded(
        "iris",
        recorded,
        Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8)),
        OneHot(ACTIONS),
        "size=paper",
        *(f"size.{name}={size}" for name, size in SIZES.items()),
        "backbone.window=68",
    )


def frames(recorded: Recorded) -> TensorDict:
    """Single frames of episodes that neither begin nor end."""
    pixels = recorded("in:pixels")
    lead = list(pixels.shape[:2])
    never = torch.zeros(*lead, 1, dtype=torch.bool)
    rest = {"reward": torch.zeros(*lead, 1), "previous_action": torch.zeros(*lead, ACTIONS)}
    flags = {"is_init": never, "terminated": never, "done": never}
    return TensorDict({"pixels": pixels, **rest, **flags}, lead)


def losses(system: System, scene: Scene, *names: str) -> dict[str, Tensor]:
    objectives = [system.objectives[name] for name in names]
    return {
        name: one.weights[name] * term.loss for one in objectives for name, term in one.terms(scene).items()
    }


def compare_gradients(system: System, recorded: Recorded, part: str) -> None:
    """The norm of the gradient of every parameter that the original has, in its own names."""
    names = [str(name) for name in recorded.arrays[f"out:{part}_grad_names"]]
    theirs = dict(zip(names, recorded(f"out:{part}_grad_norms").tolist(), strict=True))
    found: dict[str, float] = {}
    for slot in iris.slots(system).values():
        if slot.tensor.grad is None:
            continue
        for name, grad in zip(slot.names, slot.theirs(slot.tensor.grad), strict=True):
            found[name.removeprefix(f"{part}.")] = grad.norm().item()
    wanted = {name: norm for name, norm in theirs.items() if not name.startswith("lpips")}
    assert found.keys() == wanted.keys()
    names = list(wanted)
    near(torch.tensor([wanted[name] for name in names]), torch.tensor([found[name] for name in names]), 1e-4)


def test_the_tokenizer(system: System, recorded: Recorded) -> None:
    scene = Scene(system.world_model, system.fill(frames(recorded)))
    seen = scene.represented
    near(recorded("out:tokenizer_z").flatten(3).transpose(2, 3), seen.logits)
    assert torch.equal(recorded("out:tokenizer_tokens"), seen.classes)
    decoder = system.world_model.decoder
    picture = decoder.predict(system.world_model.read(decoder, scene.latent_for(decoder)))["pixels"].mean
    near(recorded("out:tokenizer_reconstruction_pm1"), 2 * picture - 1)
    found = losses(system, scene, "reconstruction", "quantization")
    near(recorded("out:tokenizer_reconstruction_loss"), found["pixels"])
    near(recorded("out:tokenizer_commitment_loss"), found["codebook"] + found["commitment"])
    total = sum(found.values(), torch.zeros(()))
    near(recorded("out:tokenizer_total_without_perceptual"), total)
    total.backward()
    compare_gradients(system, recorded, "tokenizer")


def window(system: System, recorded: Recorded) -> Scene:
    """The recorded tokens and, behind them, a record that is only arrived at."""
    tokens, actions = recorded("in:obs_tokens"), recorded("in:actions")
    rows, steps = actions.shape
    classes = torch.cat([tokens, torch.zeros_like(tokens[:, :1])], 1)
    before = F.one_hot(actions, ACTIONS).float()
    before = torch.cat([torch.zeros_like(before[:, :1]), before], 1)

    def arrived(x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x[:, :1]), x], 1).unsqueeze(-1)

    batch = {
        "previous_action": before,
        "is_init": torch.zeros(rows, steps + 1, 1, dtype=torch.bool),
        "reward": arrived(recorded("in:rewards")),
        "terminated": arrived(recorded("in:ends")).bool(),
    }
    model = system.world_model
    state, blank = model.dynamics.latent.of(classes), torch.zeros(rows, steps + 1, model.encoder.out_dim)
    given = Represented(state.unflatten(-1, (GROUPS, -1)), state, classes)
    seen = model.dynamics.observe(blank, model.record(batch), None, given)
    return Scene(system.world_model, batch, observed=seen)


def test_the_model_of_tokens(system: System, recorded: Recorded) -> None:
    scene = window(system, recorded)
    real = recorded("in:mask_padding")  # a step, its frame and what it led to
    frame, step = F.pad(real, (0, 1)), F.pad(real, (1, 0), value=True)
    seen = scene.observed
    logits = recorded("out:world_model_logits_observations").unflatten(
        1, (-1, GROUPS)
    )  # the action's is last
    near(logits[:, :, -1], seen.prior_logits[:, 1:, 0])
    near(logits[:, :, :-1], seen.prior_logits[:, :-1, 1:])
    outputs = recorded("out:world_model_output_sequence").unflatten(1, (-1, GROUPS + 1))
    near(outputs[:, :, -1], seen.latent.belief[:, 1:])
    system.objectives["tokens"].ahead = 1
    terms = system.objectives["tokens"].terms(scene) | system.objectives["heads"].terms(scene)
    total = torch.zeros(())
    names = {"tokens": "observations", "reward": "rewards", "continuation": "ends"}
    for ours, theirs in names.items():
        value, mask = terms[ours].value, terms[ours].mask
        counts = mask & (frame[..., None] if ours == "tokens" else step[:, -value.shape[1] :])
        if ours == "tokens":
            assert counts.sum() == (recorded("out:world_model_labels_observations") >= 0).sum()
        loss = (value * counts).sum() / counts.sum()
        near(recorded(f"out:world_model_loss_{theirs}"), loss)
        total = total + loss
    near(recorded("out:world_model_loss_total"), total)
    total.backward()
    compare_gradients(system, recorded, "world_model")
    decayed = {str(name) for name in recorded.arrays["out:world_model_decayed_parameters"]}
    slots, learner = iris.slots(system), system.schedule.learners["dynamics"]
    groups = [group for group in learner.optimizer.param_groups if group["weight_decay"]]
    ours = {id(p) for group in groups for p in group["params"]}
    found = {name for slot in slots.values() if id(slot.tensor) in ours for name in slot.names}
    assert {name.removeprefix("world_model.") for name in found} == decayed
    assert {group["weight_decay"] for group in learner.optimizer.param_groups} == {0.01, 0.0}


def test_dreams_draw_token_by_token_what_a_full_pass_says(system: System, recorded: Recorded) -> None:
    """A step's tokens, fed again, are drawn again from the logits of one pass over all of them."""
    scene = window(system, recorded)
    dynamics, tokens = system.world_model.dynamics, recorded("in:obs_tokens")
    start = Latent(dynamics.latent.of(tokens[:, 0]), torch.zeros(len(tokens), 32), None, tokens[:, 0])
    steps, noise, latents = dynamics.bind(), dynamics.noise(3, len(tokens)), [start]
    with torch.no_grad():
        for t in range(3):
            action = scene.batch["previous_action"][:, t + 1]
            latents.append(steps.step(latents[-1], action, None, noise[t]))
        classes = torch.stack([latent.classes for latent in latents], 1)
        record = {key: value[:, :4] for key, value in system.world_model.record(scene.batch).items()}
        outputs, _ = dynamics.run(dynamics.latent.of(classes), classes, record)
        again, _ = dynamics.latent.sample(dynamics.prior(outputs[:, 1:]), noise.transpose(0, 1))
    near(outputs[:, 1:, 0], torch.stack([latent.belief for latent in latents[1:]], 1))
    assert torch.equal(dynamics.latent.classes_of(again), classes[:, 1:])


def test_lambda_returns(system: System, recorded: Recorded) -> None:
    reward, value, ends = (recorded(f"returns:{name}") for name in ("rewards", "values", "ends"))
    going_on = (~ends[:, :-1]).float().unsqueeze(-1)
    after = {"reward": reward[:, :-1, None], "continuation": going_on}
    transitions = TensorDict({"next": after}, list(going_on.shape[:2]))
    returns = system.controller.returns.returns(transitions, value.T.unsqueeze(-1))
    near(recorded("returns:returns")[:, :-1], returns[..., 0].T)
