"""TransDreamer beside its own code (changchencc/TransDreamer 393007a): small, its weights and its samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Composite, OneHot, UnboundedDiscrete

import wmkit
from wmkit.nn import Feature
from wmkit.objectives import Scene
from wmkit.systems import System

B, T, PIXELS = 3, 8, 64 * 64
SIZE = {"width": 24, "blocks": 3, "deter": 72, "heads": 2, "head": 8, "feed_forward": 40, "groups": 4}
SIZE |= {"classes": 6, "hidden": 20, "units": 16, "layers": 4, "depth": 4}
SCALE = (T - 1) / 6 / (49 / 15)  # it divides a sum of seven steps by six; the page, of 49 by 15


def near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.reshape(theirs.shape), theirs, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / "transdreamer.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def out(recorded: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {
        name.removeprefix("out:"): torch.from_numpy(np.array(x))
        for name, x in recorded.items()
        if name.startswith("out:") and x.dtype == np.float32
    }


@pytest.fixture(scope="module")
def system(recorded: dict[str, np.ndarray]) -> System:
    """With the original's weights and samples: classes are drawn from uniform numbers that are given."""
    spec = Composite(pixels=UnboundedDiscrete((1, 64, 64), dtype=torch.uint8))
    sizes = [f"size.{name}={number}" for name, number in SIZE.items()]
    overrides = ["size=transdreamer/paper", *sizes, f"batch.size={B}", f"batch.length={T}"]
    overrides.append("controller.starts.most=3")
    system = wmkit.build("transdreamer", observation_spec=spec, action_spec=OneHot(5), overrides=overrides)
    marks = {name.removeprefix("weight:"): x for name, x in recorded.items() if name.startswith("weight:")}
    wmkit.load_released(system, marks)
    dynamics = system.world_model.dynamics
    sample, uniform = dynamics.sample, torch.from_numpy(recorded["in:u_posterior"]).unsqueeze(-1)
    dynamics.sample = lambda logits, noise=None: sample(logits, uniform)
    return system.eval()


@pytest.fixture(scope="module")
def scene(system: System, recorded: dict[str, np.ndarray]) -> Scene:
    done = torch.from_numpy(recorded["in:done"]).bool().unsqueeze(-1)
    batch = TensorDict(
        {
            "pixels": torch.from_numpy(recorded["in:image"]),
            "previous_action": torch.from_numpy(recorded["in:action"]),
            "reward": torch.from_numpy(recorded["in:reward"]).unsqueeze(-1),
            "is_init": torch.zeros_like(done),  # its windows never cross episodes
            "terminated": done,
            "done": done,
        },
        [B, T],
    )
    return system.scene(batch)


def test_states_and_beliefs_are_the_originals(scene: Scene, out: dict[str, Tensor]) -> None:
    near(scene.observed.posterior_logits, out["posterior_logits"])
    near(scene.observed.latent.state, out["posterior_sample"])
    near(scene.observed.latent.belief[:, 1:], out["deter"])
    near(scene.observed.prior_logits[:, 1:], out["prior_logits"])


def test_predictions_are_the_originals(system: System, scene: Scene, out: dict[str, Tensor]) -> None:
    latent, model = scene.observed.latent, system.world_model
    feature = Feature(latent.state[:, 1:], latent.belief[:, 1:])
    near(model.decoder.predict(feature)["pixels"].mean[:1, :2] - 0.5, out["image_mean"])
    near(model.heads["reward"].predict(feature).mean, out["reward_mean"])
    near(model.heads["continuation"].predict(feature).mean, out["continue_prob"])


def test_losses_and_gradients_are_the_originals(
    system: System, scene: Scene, recorded: dict[str, np.ndarray], out: dict[str, Tensor]
) -> None:
    """Of pixels but for a constant: there a normal of deviation 0.3, here of deviation one with a weight."""
    metrics: dict[str, Tensor] = {}
    losses = {name: SCALE * loss.value for name, loss in system._score(scene, metrics).items()}
    constant = PIXELS / 0.09 * 0.5 * np.log(2 * np.pi), PIXELS * (np.log(0.3) + 0.5 * np.log(2 * np.pi))
    image = losses["pixels"] + (T - 1) / 6 * (constant[1] - constant[0])
    torch.testing.assert_close(image, out["loss_image"], atol=0.05, rtol=0)  # of fifty thousand
    near(losses["reward"], out["loss_reward"])
    near(losses["continuation"], out["loss_continue_scaled"])
    near(losses["kl_dynamics"] + losses["kl_representation"], out["loss_kl_scaled"])
    slots = wmkit.systems.convert.transdreamer.slots(system)
    wanted = dict(zip(recorded["out:grad_names"], out["grad_norms"], strict=True))
    own = {name: x for name, x in slots.items() if name.startswith("world_model.")}
    gradients = torch.autograd.grad(sum(losses.values()), [slot.tensor for slot in own.values()])
    seen = 0
    for slot, gradient in zip(own.values(), gradients, strict=True):
        for name, part in zip(slot.names, slot.theirs(gradient), strict=True):
            norm = wanted[name.removeprefix("world_model.")]
            torch.testing.assert_close(part.norm(), norm, atol=1e-4, rtol=1e-4)
            seen += 1
    assert seen == len(wanted)
