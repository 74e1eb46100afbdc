"""Parts in any arrangement: chains by key, lone losses, plain code, dreams as environments, other cells."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictSequential
from torchrl.data import Bounded, Composite, OneHot, Unbounded
from torchrl.envs.utils import check_env_specs
from torchrl.modules import CEMPlanner

import wmkit
from support import golden, images, iris, transdreamer
from wmkit import fast
from wmkit.systems import System

NUMBERS = Composite(speed=Unbounded((3,)), hint=Unbounded((1,)))
SYSTEMS = {
    name: partial(golden.build, golden.CASES[case])
    for name, case in (
        ("dreamer_v1", "dreamer_v1-vectors-continuous"),
        ("dreamer_v2", "dreamer_v2-vectors-discrete"),
        ("dreamer_v3", "dreamer_v3-vectors-discrete"),
        ("dreamer_v3 images", "dreamer_v3-images-continuous"),
        ("dreamer_v3_2023", "dreamer_v3_2023-vectors-discrete"),
        ("dreamer_v3_2024", "dreamer_v3_2024-vectors-continuous"),
        ("ls_imagine", "ls_imagine-quick"),
        ("storm", "storm-vectors"),
        ("twm", "twm-vectors"),
    )
} | {"transdreamer": partial(transdreamer.build, spec=NUMBERS)}


def td_mpc2() -> System:
    torch.manual_seed(0)
    small = ("size=micro", "batch.size=2", "batch.length=6", "controller.prior=2")
    solver = ("samples=8", "iterations=1", "elites=4")
    return wmkit.build(
        "td_mpc2",
        observation_spec=NUMBERS,
        action_spec=Bounded(-1.0, 1.0, (2,)),
        overrides=[*small, *(f"controller.solver.{one}" for one in solver)],
    )


MEANS = [
    f"world_model.heads.{name}.readout=mean" for name in ("reward", "continuation")
]  # they draw as published
SYSTEMS |= {"iris": partial(iris.build, *MEANS), "td_mpc2": td_mpc2}


def embedded(name: str, *overrides: str) -> System:
    """One that learns embeddings alone."""
    torch.manual_seed(0)
    overrides = ("batch.size=3", "batch.length=5", "size=tiny", *overrides)
    return wmkit.build(name, observation_spec=NUMBERS, action_spec=OneHot(5), overrides=overrides)


SYSTEMS |= {"le_wm": partial(embedded, "le_wm", "backbone.dropout=0.0"), "pldm": partial(embedded, "pldm")}
OBSERVED = ("state", "belief", "posterior_logits", "prior_logits")
every_system = pytest.mark.parametrize("name", SYSTEMS)


def test_every_system_is_here() -> None:
    assert {name.partition(" ")[0] for name in SYSTEMS} == set(wmkit.available())


def parts_of(model: Any) -> list[Any]:
    """In the order in which they write; a decoder may be absent."""
    return [part for part in (model.encoder, model.dynamics, model.decoder, *model.heads.values()) if part]


def window(system: System, seed: int = 0) -> TensorDict:
    """What :meth:`System.fill` makes of a random batch: the layout that the parts read."""
    batch = system.example_batch(seed)
    for key in batch.keys() & {"is_zoomed", "jump_resolved"}:
        batch[key] = torch.ones_like(batch[key])  # every head has something to learn
    return TensorDict(system.fill(batch), batch.shape).exclude(*OBSERVED)


@every_system
def test_parts_in_a_row_write_all_that_one_record_allows(name: str) -> None:
    system = SYSTEMS[name]()
    model = system.world_model.eval()
    chain = TensorDictSequential(*parts_of(model))
    torch.manual_seed(1)
    out = chain(window(system))
    torch.manual_seed(1)
    seen = model.observe(window(system))
    assert out["embed"].shape == (*out.batch_size, model.encoder.out_dim)
    written = (*seen.latent[:2], seen.posterior_logits, seen.prior_logits)
    for key, value in zip(OBSERVED, written, strict=True):
        torch.testing.assert_close(out[key], value)
    expected = {head for head, part in model.heads.items() if not model.reads_transition(part)}
    decoded = model.decoder.targets if model.decoder is not None else ()
    assert set(out.get("predicted", {}).keys()) == expected | set(decoded)
    assert (expected != set(model.heads)) == (name == "ls_imagine")  # a jump has two ends
    for head in expected:
        prediction = model.predict(head, seen.latent)
        torch.testing.assert_close(out["predicted", head], model.heads[head].value(prediction))
    if model.decoder is None:
        return
    for key, prediction in model.decoder.predict(model.read(model.decoder, seen.latent)).items():
        torch.testing.assert_close(out["predicted", key], prediction.mean)


def test_keys_are_renamed_and_nested_all_along_a_chain() -> None:
    """The same numbers under other names, in the chain and in an update of the whole system."""
    read = "[[agent,state],[agent,belief]]"
    names = {
        "world_model.encoder.out_keys": "[[agent,embed]]",
        "world_model.dynamics.in_keys": "[[agent,embed],previous_action,is_init]",
        "world_model.dynamics.out_keys": "[[agent,state],[agent,belief],[agent,posterior],[agent,prior]]",
        "world_model.decoder.out_keys": "[[seen,hint],[seen,speed]]",
        "world_model.heads.reward.out_keys": "[[agent,expected]]",
        **{f"{part}.in_keys": read for part in ("world_model.decoder", "actor.discrete", "critic")},
        **{f"world_model.heads.{head}.in_keys": read for head in ("reward", "continuation")},
    }
    case = golden.CASES["dreamer_v3_2024-vectors-discrete"]
    renamed = case._replace(overrides=(*case.overrides, *(f"+{key}={value}" for key, value in names.items())))
    found = []
    for system in (golden.build(case._replace(classes={})), golden.build(renamed._replace(classes={}))):
        model = system.world_model
        chain = TensorDictSequential(model.encoder, model.dynamics, model.decoder, *model.heads.values())
        torch.manual_seed(1)
        out = chain(window(system))
        torch.manual_seed(len(found))  # nothing is drawn: what was observed is found under its name
        scored = [objective(out) for objective in system.objectives.values()]
        torch.manual_seed(1)
        found.append((out, scored, system.update(system.example_batch())))
    (plain, scores, updated), (nested, others, again) = found
    for one, other in zip(scores, others, strict=True):
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert set(nested["agent"].keys()) == {"embed", "state", "belief", "posterior", "prior", "expected"}
    for key, other in (("embed", "embed"), ("state", "state"), ("prior_logits", "prior")):
        assert torch.equal(plain[key], nested["agent", other])
    assert torch.equal(plain["predicted", "reward"], nested["agent", "expected"])
    assert torch.equal(plain["predicted", "continuation"], nested["predicted", "continuation"])
    assert torch.equal(plain["predicted", "speed"], nested["seen", "speed"])
    assert all(torch.equal(value, again[key]) for key, value in updated.items(True, True))


@every_system
def test_an_objective_is_a_torchrl_loss(name: str) -> None:
    system = SYSTEMS[name]()
    model, state = system.world_model, list(system.state_dict())
    assert not any(key.startswith("objectives.") for key in state)
    torch.manual_seed(1)
    observed = model(window(system))
    moved = observed.copy()
    for key in OBSERVED:
        moved.rename_key_(key, ("model", key))
    totals: list[torch.Tensor] = []
    for objective in system.objectives.values():
        torch.manual_seed(2)
        found = objective(observed)
        names = {f"loss_{term}" for term in objective.names(model)}
        assert set(objective.out_keys) == names == {key for key in found.keys() if key.startswith("loss_")}
        assert all(found[key].shape == () and found[key].isfinite() for key in names)
        totals += [found[key] for key in names]
        objective.set_keys(**{key: ("model", key) for key in OBSERVED})
        torch.manual_seed(2)
        again = objective(moved)
        assert all(torch.equal(found[key], again[key]) for key in names)
        alone = objective(window(system))  # which the world model observes first
        assert names <= set(alone.keys())
    torch.stack(totals).sum().backward()
    for part in parts_of(model):
        assert any(p.grad is not None and p.grad.any() for p in part.parameters())
    assert list(system.state_dict()) == state
    assert not list(system.objectives.parameters())


@every_system
def test_plain_code_gives_the_numbers_of_every_short_cut(name: str) -> None:
    found = []
    for _ in range(2):
        system = SYSTEMS[name]()
        golden.shift(system)  # heads that begin at zero say nothing
        torch.manual_seed(1)
        with fast.disabled() if found else nullcontext():
            found.append(system.update(*system.example_batches()))
    for key, value in found[0].items(True, True):
        torch.testing.assert_close(
            found[1][key], value, rtol=1e-5, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}"
        )


@every_system
@pytest.mark.parametrize("lead", [[], [3]])
def test_a_dream_is_an_environment(name: str, lead: list[int]) -> None:
    system = SYSTEMS[name]()
    env = system.dream_env(lead, ends="never")
    check_env_specs(env)
    dreamt = env.rollout(3)
    assert dreamt.batch_size == (*lead, 3) and dreamt["next", "reward"].shape == (*lead, 3, 1)
    assert not any(key.startswith("world_model") for key in env.state_dict())


@every_system
def test_a_planner_plans_in_it(name: str) -> None:
    system: Any = SYSTEMS[name]()
    env = system.dream_env([], ends="never", relaxed=True)
    planner = CEMPlanner(env, planning_horizon=3, optim_steps=2, num_candidates=6, top_k=2)
    found: TensorDictBase = env.rollout(2, planner)
    assert found["action"].shape == (2, system.spaces.action_dim) and found["next", "reward"].isfinite().all()


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("dreamer_v3", "s5"),
        ("ls_imagine", "transformer_xl"),
        ("dreamer_v1", "lstm"),
        ("dreamer_v3_2023", "gpt"),
    ],
)
def test_a_system_over_the_sequence_model_of_another(name: str, backbone: str) -> None:
    if name == "ls_imagine":
        system = images.build(name, f"backbone={backbone}")
    else:
        tiny = ["size=tiny", "batch.size=2", "batch.length=6", f"backbone={backbone}"]
        tiny += ["schedule.learners.joint.optimizer.warmup=0"] if name == "dreamer_v3" else []
        system = wmkit.build(name, observation_spec=NUMBERS, action_spec=OneHot(5), overrides=tiny)
    before = [p.clone() for p in system.world_model.dynamics.parameters()]
    metrics = system.update(*system.example_batches())
    assert all(value.isfinite().all() for value in metrics.values(True, True))
    after = system.world_model.dynamics.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
