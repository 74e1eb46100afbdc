"""A toy system that learns a line, for tests of the training loop."""

from __future__ import annotations

import json
import os
import time

import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torchrl.data import Unbounded
from torchrl.envs import SerialEnv
from torchrl.envs.transforms import TensorDictPrimer

from wmkit.envs.counting import CountingEnv
from wmkit.training.parts import Parts, make_memory

LENGTH = 7  # steps per counting episode


class ToyPolicy(TensorDictModuleBase):
    """Random one-hot actions and a latent that counts how often it acted."""

    def __init__(self, actions: int):
        super().__init__()
        self.in_keys, self.out_keys = (
            ["observation", "belief", "is_init"],
            ["action", "belief", ("next", "belief")],
        )
        self.actions = actions

    def make_tensordict_primer(self):
        return TensorDictPrimer({"belief": Unbounded((1,)), "state": Unbounded((1,))}, expand_specs=True)

    def forward(self, tensordict):
        belief = torch.where(tensordict["is_init"], 0, tensordict["belief"]) + 1
        index = torch.randint(self.actions, tensordict.batch_size)
        tensordict["action"] = torch.nn.functional.one_hot(index, self.actions).float()
        tensordict["belief"] = belief
        tensordict["next", "belief"] = belief
        return tensordict


class ToySystem(torch.nn.Module):
    """Fits a line through rewards; fails, sleeps or reports on request."""

    batch_shape, context = (2, 5), 1

    def __init__(self, width=1, nan_at=None, pause=0.0, drawn=None):
        super().__init__()
        self.line = torch.nn.Linear(1, width)
        self.policy = ToyPolicy(3)
        self.nan_at, self.pause, self.count, self.drawn = nan_at, pause, 0, drawn
        self.optimiser = torch.optim.Adam(self.line.parameters(), lr=0.01)

    def update(self, batch):
        self.count += 1
        time.sleep(self.pause)
        if self.drawn is not None:  # where each window starts, a line per update and process
            with self.drawn.open("a") as file:
                file.write(json.dumps([os.getpid(), batch["index"][:, 0].tolist()]) + "\n")
        assert torch.equal(batch["observation"], batch["reward"]), "records are shifted"
        loss = (self.line(batch["observation"]) - batch["reward"]).square().mean()
        if self.nan_at is not None and self.count >= self.nan_at:
            loss = loss * float("nan")
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        metrics = {"loss": {"line": loss.detach(), "total": loss.detach()}}
        metrics["replay_context"] = {"belief": (0 * loss.detach() - 1).expand_as(batch["reward"])[:, 1:]}
        return TensorDict(metrics)

    def state_dict(self, *args, **kwargs):
        return {"line": dict(self.line.state_dict()), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state):
        self.line.load_state_dict(state["line"])
        self.optimiser.load_state_dict(state["optimiser"])


def toy_env(config, affordance, *, seed, evaluation=False):
    return SerialEnv(2, lambda: CountingEnv(length=LENGTH))


def toy_parts(**options):
    return Parts(toy_env, lambda config, env, device: ToySystem(**options), make_memory, lambda *_: None)


def toy_config(folder, **training):
    settings = {
        "steps": 160,
        "prefill": 24,
        "train_ratio": 4.0,
        "collect_length": 4,
        "log_every": 40,
        "check_every": 3,
        "evaluate_every": 80,
        "evaluate_episodes": 3,
        "final_episodes": 3,
        "checkpoint_every": 40,
        "report": False,
        "replay": {"capacity": 1000},
    }
    config = {"system": "toy", "seed": 0, "threads": 1, "run_dir": str(folder), "env": {"name": "counting"}}
    return OmegaConf.create({**config, "training": {**settings, **training}})


def queued_config(folder, steps):
    """An update of two windows for 16 steps, which bring more than three new ones: all drawn are fresh."""
    replay = {"capacity": 20_000, "sampler": "online"}
    return toy_config(folder, steps=steps, checkpoint_every=16, log_every=16, train_ratio=0.5, replay=replay)
