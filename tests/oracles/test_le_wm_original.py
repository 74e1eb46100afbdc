"""LeWorldModel beside its own code (lucas-maes/le-wm), small, without dropout, with its weights."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded, Composite

import wmkit
from support.originals import Recorded, near, weighed, without_dropout
from wmkit.dynamics import Latent
from wmkit.systems import System, released_parameters

SIZES = {"deter": 24, "projection": 32, "layers": 2, "heads": 3, "patch": 14}
SIZES |= {"blocks": 2, "predictor_heads": 4, "head": 8, "feed_forward": 40}


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded("le_wm")


@pytest.fixture
def system(recorded: Recorded) -> System:
    system = wmkit.build(
        "le_wm",
        observation_spec=Composite(pixels=Bounded(0.0, 1.0, (3, 28, 28))),
        action_spec=Bounded(-1.0, 1.0, (6,)),
        overrides=["size=paper", "batch.size=5", *(f"size.{name}={size}" for name, size in SIZES.items())],
    )
    wmkit.load_released(system, recorded.weights())
    without_dropout(system)
    image = system.world_model.encoder.image  # pixels are recorded behind this
    image.mean.zero_()
    image.std.fill_(1)
    return system


def window(pixels: Tensor, action: Tensor) -> TensorDict:
    """The records of frames and of the actions that were chosen there; that of the last one is not read."""
    lead = list(pixels.shape[:2])
    before = torch.cat([torch.zeros(lead[0], 1, 6), action], 1)[:, : lead[1]]
    never = torch.zeros(*lead, 1, dtype=torch.bool)
    flags = {"is_init": never, "terminated": never, "done": never, "reward": torch.zeros(*lead, 1)}
    return TensorDict(flags | {"pixels": pixels, "previous_action": before}, lead)


def test_parts_with_running_statistics(system: System, recorded: Recorded) -> None:
    system.eval()
    model, pixels, action = system.world_model, recorded("in:pixels"), recorded("in:action")
    near(recorded("out:eval_cls"), model.encoder.encode({"pixels": pixels}).flatten(0, 1))
    near(recorded("out:eval_act_emb"), model.dynamics.tokens.action(action))
    seen = model.observe(window(pixels, action))
    near(recorded("out:eval_emb"), seen.latent.state)
    near(recorded("out:eval_predictor_raw"), seen.latent.belief[:, 1:])
    near(recorded("out:eval_pred"), seen.prior_logits[:, 1:])
    backbone = model.dynamics.backbone
    token = recorded("out:eval_emb")[:, :3] + backbone.places
    condition = torch.nn.functional.silu(recorded("out:eval_act_emb")[:, :3])
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    near(recorded("out:eval_block0"), backbone.layers[0](token, condition, mask))


@pytest.mark.parametrize("frames", [1, 3])
def test_plans(system: System, recorded: Recorded, frames: int) -> None:
    """From one frame the window grows to three; from three it moves."""
    system.eval()
    model, name = system.world_model, f"roll{frames}"
    pixels, candidates = recorded(f"in:{name}_pixels"), recorded("in:roll_cand")  # [E, S, H, A]
    history = recorded("in:roll3_hist") if frames == 3 else torch.zeros(2, 0, 6)
    rows, samples, horizon = candidates.shape[:3]
    with torch.no_grad():
        seen = model.observe(window(pixels, history))
        latent: Latent = seen.last.map(lambda x: x.repeat_interleave(samples, 0))
        states = [x.repeat_interleave(samples, 0) for x in seen.latent.state.unbind(1)]
        for t in range(horizon):
            latent = model.step(latent, candidates[:, :, t].flatten(0, 1))
            states.append(latent.state)
        goal = model.dynamics.represent(model.encoder.encode({"pixels": recorded(f"in:{name}_goal")[:, 0]}))
    found = torch.stack(states, 1).unflatten(0, (rows, samples))
    near(recorded(f"out:{name}_pred"), found)
    near(recorded(f"out:{name}_cost"), (found[:, :, -1] - goal.state.unsqueeze(1)).square().sum(-1))


def test_an_update(system: System, recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the batch's statistics: losses, gradients, and the running statistics afterwards."""
    monkeypatch.setattr(type(system.objectives["apart"]), "drawn", lambda *_: recorded("in:directions"))
    system.train()
    scene = system.scene(window(recorded("in:pixels"), recorded("in:action")))
    losses = weighed(system, scene)
    near(recorded("out:train_emb"), scene.observed.latent.state)
    near(recorded("out:train_pred"), scene.observed.prior_logits[:, 1:])
    near(recorded("out:train_pred_loss"), losses["prediction"])
    near(0.09 * recorded("out:train_sigreg"), losses["sigreg"])
    near(recorded("out:train_loss"), sum(losses.values()))
    now = released_parameters(system)
    for name, value in recorded.weights("after:").items():
        near(torch.tensor(value), torch.tensor(now[name]))
    sum(losses.values()).backward()
    with torch.no_grad():  # under the original's names too
        for parameter in system.parameters():
            parameter.copy_(torch.zeros(()) if parameter.grad is None else parameter.grad)
    grads = released_parameters(system)
    for name, value in recorded.weights("grad:").items():
        near(torch.tensor(value), torch.tensor(grads[name]), 1e-4)
