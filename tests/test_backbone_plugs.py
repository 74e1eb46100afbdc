"""Backbones as TensorDict modules: windows, steps, collectors, other keys, and the compiler."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.envs import Compose, GymEnv, InitTracker, TransformedEnv

import wmkit
from wmkit import backbones
from wmkit.errors import ConfigError

B, T, D, U = 2, 6, 4, 8
NAMES = [name for name in wmkit.available("backbone") if not name.startswith("doctest")]


def make(name: str, **keys: object) -> backbones.SequenceModel:
    torch.manual_seed(0)
    return backbones.build(name, D, U, **keys).eval()


def window() -> TensorDict:
    torch.manual_seed(1)
    reset = torch.zeros(B, T, 1, dtype=torch.bool)
    reset[1, 3] = True
    return TensorDict({"x": torch.randn(B, T, D), "is_init": reset}, [B, T])


@pytest.mark.parametrize("name", NAMES)
def test_steps_with_the_carry_as_numbers_are_a_window(name: str) -> None:
    model, batch = make(name), window()
    u, _ = model.scan(batch["x"], None, batch["is_init"].squeeze(-1))
    with torch.no_grad():
        torch.testing.assert_close(model(batch)["u"], u)
        carry, outputs = None, []
        for t in range(T):
            step = TensorDict({key: batch[key][:, t] for key in ("x", "is_init")}, [B])
            if carry is not None:
                step["carry"] = carry
            model(step)
            outputs.append(step["u"])
            carry = step["next", "carry"]
            assert carry.shape == (B, model.carry_dim)
            if t == 2:  # a window goes on from the carry at its first step
                rest = batch[:, 3:].clone().set("carry", torch.zeros(B, T - 3, model.carry_dim))
                rest["carry"][:, 0] = carry
        torch.testing.assert_close(torch.stack(outputs, 1), u)
        torch.testing.assert_close(model(rest)["u"], u[:, 3:])


def test_keys_can_be_renamed_and_nested() -> None:
    model = make("gru", in_keys=[("agent", "x"), "first"], out_keys=[("agent", "u"), ("next", "agent", "h")])
    step = TensorDict({"agent": {"x": torch.randn(B, D)}, "first": torch.ones(B, 1, dtype=torch.bool)}, [B])
    assert model.carry_key == ("agent", "h")
    after = model(step)
    torch.testing.assert_close(after["agent", "u"], after["next", "agent", "h"])
    batch = window().rename_key_("is_init", "first").rename_key_("x", ("agent", "x"))
    model.set_plug([("agent", "x"), "first", "memory"], model.out_keys)
    batch["memory"] = torch.ones(B, T, model.carry_dim)
    u, _ = model.scan(batch["agent", "x"], batch["memory"][:, 0], batch["first"].squeeze(-1))
    torch.testing.assert_close(model(batch)["agent", "u"], u)


def test_numbers_of_keys_are_checked() -> None:
    for keys in ({"in_keys": ["x"]}, {"out_keys": ["u"]}):
        with pytest.raises(ConfigError, match=next(iter(keys))):
            make("gru", **keys)


def policy(name: str) -> tuple[TransformedEnv, TensorDictSequential, backbones.SequenceModel]:
    """CartPole with a carry, and a policy that reads a backbone."""
    model = make(name, in_keys=["observation", "is_init"])
    choose = TensorDictModule(
        lambda u: torch.nn.functional.one_hot((u.sum(-1) > 0).long(), 2), ["u"], ["action"]
    )
    env = TransformedEnv(GymEnv("CartPole-v1"), Compose(InitTracker(), model.make_tensordict_primer()))
    return env, TensorDictSequential(model, choose), model


@pytest.mark.parametrize("name", ["gru", "transformer_xl", "s5"])
def test_a_rollout_carries_what_a_window_computes(name: str) -> None:
    """Through the end of an episode, and in a collector."""
    env, module, model = policy(name)
    env.set_seed(0)

    def recomputed(batch: TensorDict) -> Tensor:
        return model(batch.select("observation", "is_init", "carry"))["u"]

    with torch.no_grad():
        batch = env.rollout(40, module, break_when_any_done=False).unsqueeze(0)
        assert batch["is_init"].sum() > 1
        torch.testing.assert_close(recomputed(batch), batch["u"])
        batch = next(iter(Collector(env, module, frames_per_batch=12, total_frames=12))).unsqueeze(0)
        torch.testing.assert_close(recomputed(batch), batch["u"])


@pytest.mark.parametrize("name", ["gru", "ln_gru", "gpt"])
def test_a_scan_compiles_without_a_break(name: str) -> None:
    model, batch = make(name), window()
    x, reset = batch["x"], batch["is_init"].squeeze(-1)
    scan = torch.compile(lambda x, reset: model.scan(x, None, reset)[0], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(scan(x, reset), model.scan(x, None, reset)[0])
