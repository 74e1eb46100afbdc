"""Acting, with weights on one device and environments on another, as far as it can be shown without a GPU.

Policies act on tensors without memory (PyTorch's FakeTensorMode), which refuse to meet across devices. The
collector and the evaluation play with numbers: a tensor of class :class:`Away` says that it lies on CUDA, and
meets none that does not.
"""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torchrl.data import Composite, OneHot, Unbounded, UnboundedDiscrete
from torchrl.envs import SerialEnv, TensorDictPrimer

import wmkit
from wmkit.affordance import SmallUNet, save_affordance
from wmkit.envs.counting import CountingEnv
from wmkit.optim import CapturedUpdate
from wmkit.systems import compose
from wmkit.training import Trainer, affordance_stage
from wmkit.training.affordance_stage import prepare_affordance
from wmkit.training.collect import Collection, with_carry
from wmkit.training.devices import for_env, policy_weights
from wmkit.training.evaluate import evaluate
from wmkit.training.protocol import EvaluationProtocol

SPACES = {
    "proprio": Composite(observation=Unbounded((3,))),
    "vision": Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8)),
    "reward": Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8), reward=Unbounded((1,))),
}
SYSTEMS = {
    "dreamer_v3": ("proprio",),
    "ls_imagine": ("reward",),
    "twm": ("vision", "batch.length=4", "controller.starts.count=2"),
    "storm": ("vision", "batch.length=12"),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_policies_with_weights_on_cuda_act_for_environments_on_the_cpu(name):
    space, *overrides = SYSTEMS[name]
    system = wmkit.build(
        name, observation_spec=SPACES[space], action_spec=OneHot(4), overrides=["size=tiny", *overrides]
    )
    policy, env = system.policy, SimpleNamespace(device=None)
    assert for_env(policy, env) is policy
    primers = policy.make_tensordict_primer()
    seen = system.example_batch()[0, 0].select(*policy.in_keys, strict=False)
    seen = {key: (value.shape, value.dtype) for key, value in seen.items()}
    for primer in primers if isinstance(primers, list) else [primers]:
        seen |= {key: (spec.shape, spec.dtype) for key, spec in primer.primers.items()}
    with warnings.catch_warnings(), FakeTensorMode():
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        there = {}
        for x in policy_weights(policy):
            y = torch.empty(x.shape, dtype=x.dtype, device="cuda")
            there[id(x)] = nn.Parameter(y) if isinstance(x, nn.Parameter) else y
        policy = copy.deepcopy(policy, there)
        here = TensorDict({k: torch.zeros(2, *shape, dtype=dtype) for k, (shape, dtype) in seen.items()}, [2])
        with pytest.raises(RuntimeError, match="device"):
            policy(here.clone())
        for reward in ({}, {"arrival_reward": torch.zeros(2, 1)}):  # not every environment shows it
            acted = for_env(policy, env)(here.update(reward))
            assert acted is here and acted["action"].shape == (2, 4)
            written = [acted[key].device.type for key in policy.out_keys]
            assert written == ["cpu"] * len(policy.out_keys)


class Away(Tensor):
    """Real numbers that say they lie on CUDA."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func == Tensor.device.__get__:
            return torch.device("cuda", 0)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if not all(isinstance(x, Away) for x in tensors):
            raise RuntimeError(f"{func} meets two devices")
        return super().__torch_function__(func, types, args, kwargs)


class Moves(TorchFunctionMode):
    """Inside, ``to`` goes to CUDA and back."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.device)]
        if func is Tensor.to and device:
            kind = Away if device[0].type == "cuda" else Tensor
            with torch._C.DisableTorchFunctionSubclass():
                return args[0].clone().as_subclass(kind)
        return func(*args, **kwargs)


class Steps(TensorDictModuleBase):
    """Counts the steps of an episode in what it carries."""

    def __init__(self) -> None:
        super().__init__()
        self.in_keys, self.out_keys = ["is_init", "belief"], ["action", "belief", ("next", "belief")]
        self.register_buffer("one", torch.ones(1).as_subclass(Away))

    def make_tensordict_primer(self):
        return TensorDictPrimer({"belief": Unbounded((1,))}, default_value=0.0, expand_specs=True)

    def forward(self, tensordict):
        belief = tensordict["belief"].masked_fill(tensordict["is_init"], 0) + self.one
        action = torch.cat([self.one.expand(2, 1), 0 * belief, 0 * belief], -1)
        tensordict.set("action", action).set("belief", belief)
        return tensordict.set(("next", "belief"), belief)


def test_the_collector_and_the_evaluation_bring_the_carry_back():
    def env():
        return with_carry(SerialEnv(2, lambda: CountingEnv(length=3)), policy)

    policy = Steps()
    with Moves():
        collection = Collection(env(), policy, 4)
        batches = [collection.collect().clone(), collection.collect(random=True).clone()]
        collection.close()
        found = evaluate(policy, env(), EvaluationProtocol("counting", 4), record=1)
    batch = torch.cat(batches, 1)
    assert not any(isinstance(x, Away) for x in batch.values(True, True))
    assert batch["belief"][0, :, 0].tolist() == [1, 2, 3, 1, 2, 3, 1, 2]
    assert batch["next", "belief"][0, :, 0].tolist() == [1, 2, 3, 1, 2, 3, 1, 2]
    assert [episode.length for episode in found.episodes] == [3] * 4
    assert not any(isinstance(x, Away) for x in found.trajectories[0].values(True, True))


def test_the_affordance_model_lies_on_the_runs_device(tmp_path, monkeypatch):
    monkeypatch.setattr(affordance_stage, "find_device", lambda config: torch.device(config.device))
    unet = SmallUNet(widths=(8, 8), depths=(0, 1), image_size=(32, 32), text_dim=4, blur=(3, 3))
    save_affordance(tmp_path, unet, torch.ones(4), "a tree")
    config = compose("ls_imagine", [f"affordance.model={tmp_path}", "device=meta"])
    tools = prepare_affordance(config, SimpleNamespace(path=tmp_path), None)
    assert {x.device.type for x in tools.model.parameters()} == {"meta"}


def test_nobody_acts_while_an_update_is_recorded():
    """PyTorch refuses random numbers that another thread draws on a device under a recording."""
    system = nn.Linear(1, 1)
    system.update = lambda batch: batch
    update, order = CapturedUpdate(system, warm_up=2), []
    update._stream = object()
    states = []
    for done in range(3):
        update._done[None] = done
        states.append(update.records_next)
    update._recordings[None] = None
    assert [*states, update.records_next] == [False, False, True, False]

    def learn(batch):
        order.append("update")
        learn.records_next = len(order) == 1
        return TensorDict({"loss": torch.zeros(())})

    trainer = SimpleNamespace(
        interrupt=SimpleNamespace(requested=False),
        memory=SimpleNamespace(ready=lambda: True, sample=lambda uniform: None, sample_dreams=lambda: ()),
        update=learn,
        updates=0,
        deadline=SimpleNamespace(),
        guard=SimpleNamespace(add=lambda metrics: None),
        collection=SimpleNamespace(settle=lambda: order.append("settle")),
    )
    Trainer._update(trainer, 3)
    assert order == ["update", "settle", "update", "update"]
