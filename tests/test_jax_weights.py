"""The official DreamerV3's weights: its networks written down again over its own mapping, and ours beside.

Every function over ``p`` is a part of the original in NumPy and double precision, slowly: its names, its
layouts (images ``[N, H, W, C]``, kernels in-out), one block, one tap, one gate after the other. Nothing of
it knows how ours is laid out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchrl.data import (
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    OneHot,
    TensorSpec,
    Unbounded,
    UnboundedDiscrete,
)

import wmkit
from wmkit.dynamics import Latent
from wmkit.envs import make_env
from wmkit.errors import CheckpointError
from wmkit.systems import System, dreamerv3_jax_parameters
from wmkit.systems.convert.dreamerv3_jax import COUNT
from wmkit.training.keeping import restore_system
from wmkit.training.parts import default_parts

SHAPES = json.loads((Path(__file__).parent / "dreamerv3_jax_parameters.json").read_text(encoding="utf-8"))
SIX, CLASSES, GROUPS = Bounded(-1, 1, (6,)), 4, 32
PROPRIO = Composite(height=Unbounded((1,)), orientations=Unbounded((14,)), velocity=Unbounded((9,)))
PIXELS = Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8))
WALKER = "size1m_proprio_walker"
SPACES = {
    WALKER: (PROPRIO, SIX),
    "size1m_vision_continuous": (PIXELS, SIX),
    "size1m_vision_discrete17": (PIXELS, OneHot(17)),
}
Params = dict[str, np.ndarray]


def build(spec: Composite, actions: TensorSpec, *overrides: str, size: str = "1m") -> System:
    chosen = [f"size={size}", "batch.size=2", "batch.length=3", *overrides]
    return wmkit.build("dreamer_v3", observation_spec=spec, action_spec=actions, overrides=chosen)


def drawn(shapes: dict[str, list[int]], seed: int = 0) -> Params:
    """Every number random: also biases, scales of norms and the layers that start at zero."""
    rng, made = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        x = rng.standard_normal(shape)
        if name.endswith("kernel"):  # sums of unit size
            x /= np.sqrt(np.prod(shape[:-1]) / (shape[0] if len(shape) == 3 else 1))
        elif name.endswith("scale"):
            x = 1 + 0.3 * x
        elif name.endswith("hi/value"):
            x = x + 7
        made[name] = np.asarray(x, np.float32)
    made[COUNT] = np.asarray(1234, np.int32)
    return made


@pytest.fixture(scope="module")
def walker() -> System:
    return build(*SPACES[WALKER])


# -- the original, slowly --------------------------------------------------------------------------------


def linear(p: Params, name: str, x: np.ndarray) -> np.ndarray:
    return x @ p[f"{name}/kernel"].astype(float) + p[f"{name}/bias"]


def norm(p: Params, name: str, x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * p[f"{name}/scale"]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def block_linear(p: Params, name: str, x: np.ndarray) -> np.ndarray:
    kernel = p[f"{name}/kernel"].astype(float)
    parts = np.split(x, len(kernel), -1)
    return np.concatenate([part @ k for part, k in zip(parts, kernel, strict=True)], -1) + p[f"{name}/bias"]


def conv(p: Params, name: str, x: np.ndarray) -> np.ndarray:
    """5 x 5, stride one, zeros around."""
    kernel, (_, height, width, _) = p[f"{name}/kernel"].astype(float), x.shape
    padded, out = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))), 0.0
    for i in range(5):
        for j in range(5):
            out = out + padded[:, i : i + height, j : j + width] @ kernel[i, j]
    return out + p[f"{name}/bias"]


def trunk(p: Params, name: str, x: np.ndarray, layers: int) -> np.ndarray:
    for i in range(layers):
        x = silu(norm(p, f"{name}/mlp/norm{i}", linear(p, f"{name}/mlp/linear{i}", x)))
    return x


def encode(p: Params, observations: dict[str, np.ndarray], classes: dict[str, int]) -> np.ndarray:
    vectors, images = [], []
    for key in sorted(observations):
        x = observations[key]
        if x.ndim == 4:
            images.append(x / 255 - 0.5)
        elif key in classes:
            vectors.append(np.eye(classes[key])[x].reshape(len(x), -1))
        else:
            vectors.append(np.sign(x) * np.log1p(np.abs(x)))
    token = []
    if vectors:
        x = np.concatenate(vectors, -1)
        for i in range(3):
            x = silu(norm(p, f"enc/mlp{i}norm", linear(p, f"enc/mlp{i}", x)))
        token.append(x)
    if images:
        x = np.concatenate(images, -1)
        for i in range(4):
            x = conv(p, f"enc/cnn{i}", x)
            n, height, width, c = x.shape
            x = x.reshape(n, height // 2, 2, width // 2, 2, c).max((2, 4))
            x = silu(norm(p, f"enc/cnn{i}norm", x))
        token.append(x.reshape(len(x), -1))
    return np.concatenate(token, -1)


def core(p: Params, deter: np.ndarray, stoch: np.ndarray, action: np.ndarray) -> np.ndarray:
    action = action / np.maximum(1, np.abs(action))
    inputs = [
        silu(norm(p, f"dyn/dynin{i}norm", linear(p, f"dyn/dynin{i}", x)))
        for i, x in enumerate((deter, stoch, action))
    ]
    blocks = len(p["dyn/dyngru/kernel"])
    mixed = np.concatenate([y for part in np.split(deter, blocks, -1) for y in (part, *inputs)], -1)
    hidden = silu(norm(p, "dyn/dynhid0norm", block_linear(p, "dyn/dynhid0", mixed)))
    new = []
    gates = np.split(block_linear(p, "dyn/dyngru", hidden), blocks, -1)
    for part, gate in zip(np.split(deter, blocks, -1), gates, strict=True):
        reset, candidate, update = np.split(gate, 3, -1)
        update = sigmoid(update - 1)
        new.append(update * np.tanh(sigmoid(reset) * candidate) + (1 - update) * part)
    return np.concatenate(new, -1)


def posterior(p: Params, deter: np.ndarray, token: np.ndarray) -> np.ndarray:
    x = np.concatenate([deter, token], -1)
    return linear(p, "dyn/obslogit", silu(norm(p, "dyn/obs0norm", linear(p, "dyn/obs0", x))))


def prior(p: Params, deter: np.ndarray) -> np.ndarray:
    for i in range(2):
        deter = silu(norm(p, f"dyn/prior{i}norm", linear(p, f"dyn/prior{i}", deter)))
    return linear(p, "dyn/priorlogit", deter)


def decode_image(p: Params, deter: np.ndarray, stoch: np.ndarray, grid: int, channels: int) -> np.ndarray:
    blocks = len(p["dec/sp0/kernel"])
    parts = np.split(block_linear(p, "dec/sp0", deter), blocks, -1)
    parts = [part.reshape(-1, grid, grid, channels // blocks) for part in parts]
    hidden = silu(norm(p, "dec/sp1norm", linear(p, "dec/sp1", stoch)))
    dense = linear(p, "dec/sp2", hidden).reshape(-1, grid, grid, channels)
    x = silu(norm(p, "dec/spnorm", np.concatenate(parts, -1) + dense))
    for name in ("conv2", "conv1", "conv0", "imgout"):
        x = conv(p, f"dec/{name}", x.repeat(2, 1).repeat(2, 2))
        x = x if name == "imgout" else silu(norm(p, f"dec/{name}norm", x))
    return sigmoid(x)


def two_hot(value: np.ndarray) -> np.ndarray:
    half = -np.expm1(np.linspace(20, 0, 128))
    bins, code = np.concatenate([half, -half[-2::-1]]), np.zeros((len(value), 255))
    for row, y in enumerate(value):
        k = min(max(int(np.searchsorted(bins, y, side="right")) - 1, 0), 253)
        code[row, k + 1] = (y - bins[k]) / (bins[k + 1] - bins[k])
        code[row, k] = 1 - code[row, k + 1]
    return code


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


# -- ours beside it --------------------------------------------------------------------------------------


def close(ours: torch.Tensor, theirs: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(ours.detach().double().numpy(), theirs, atol=tolerance, rtol=tolerance)


def compare(system: System, p: Params, steps: int = 3, rows: int = 2) -> None:
    """Every network of ``system`` with the original's over ``p``, on random inputs."""
    torch.manual_seed(1)
    model, classes = system.world_model, system.spaces.classes
    batch = {key: value[:rows, :steps] for key, value in system.example_batch().items()}
    action = 1.5 * torch.randn(rows, steps, system.spaces.action_dim)  # above one too
    if system.spaces.actions == "discrete":
        action = torch.eye(system.spaces.action_dim)[torch.randint(system.spaces.action_dim, (rows, steps))]
    is_init = torch.zeros(rows, steps, dtype=torch.bool)
    is_init[0, 1] = True
    deter = torch.randn(rows, model.dynamics.belief_dim).tanh()
    stoch = torch.eye(CLASSES)[torch.randint(CLASSES, (rows, GROUPS))].flatten(1)

    # The encoder, and three steps of the RSSM with a reset; its samples are fed to the original.
    observations = {key: batch[key] for key in (*system.spaces.images, *system.spaces.vectors)}
    embed = model.encoder.encode(observations)
    record = {"previous_action": action, "is_init": is_init}
    seen = model.dynamics.observe(embed, record, model.dynamics.unpack({"state": stoch, "belief": deter}))
    for t in range(steps):
        shown = {key: value[:, t].numpy() for key, value in observations.items()}
        shown |= {key: shown[key].transpose(0, 2, 3, 1) for key in system.spaces.images}
        token = encode(p, shown, classes)
        close(embed[:, t], token)
        keep = 1.0 - is_init[:, t, None].double().numpy()
        before = core(p, deter.double().numpy() * keep, stoch.numpy() * keep, action[:, t].numpy() * keep)
        close(seen.latent.belief[:, t], before)
        close(seen.posterior_logits[:, t].flatten(1), posterior(p, before, token), 3e-5)
        close(seen.prior_logits[:, t].flatten(1), prior(p, before), 3e-5)
        deter, stoch = seen.latent.belief[:, t].detach(), seen.latent.state[:, t].detach().round()

    # Whatever reads a feature.
    z, h = stoch.double().numpy(), deter.double().numpy()
    latent, theirs = Latent(stoch, deter), np.concatenate([h, z], -1)
    decoded = model.decoder.predict(model.read(model.decoder, latent))
    for key in system.spaces.images:
        grid, channels = 4, p["dec/spnorm/scale"].shape[0]
        close(decoded[key].mean, decode_image(p, h, z, grid, channels).transpose(0, 3, 1, 2))
    for key in system.spaces.vectors:
        hidden = trunk(p, "dec", np.concatenate([z, h], -1), 3)
        if key in classes:
            logits = linear(p, f"dec/vec/{key}/logits", hidden)
            close(decoded[key].logits.flatten(1), logits)
        else:
            close(decoded[key].mean, linear(p, f"dec/vec/{key}/pred", hidden))
    scalars = (("rew", 1, model.heads["reward"]), ("val", 3, system.critic))
    targets = np.array([-3.7, 120.0][:rows])
    for name, layers, head in (*scalars, ("slowval", 3, system.schedule.slow_critic)):
        logits = linear(p, f"{name}/head/logits", trunk(p, name, theirs, layers))
        prediction = head.predict(model.read(head, latent))
        close(prediction.logits, logits)
        loss = -(two_hot(targets) * log_softmax(logits)).sum(-1)
        close(prediction.loss(torch.from_numpy(targets).float().unsqueeze(-1)), loss)
    logit = linear(p, "con/head/logit", trunk(p, "con", theirs, 1))
    close(model.continuation(latent), sigmoid(logit))
    hidden, policy = trunk(p, "pol", theirs, 3), system.actor.policy(model.read(system.actor, latent))
    if system.spaces.actions == "discrete":  # without a share of uniform
        close(policy.log_probs, log_softmax(linear(p, "pol/head/action/logits", hidden)))
    else:
        close(policy.mean, np.tanh(linear(p, "pol/head/action/mean", hidden)))
        close(policy.std, 0.9 * sigmoid(linear(p, "pol/head/action/stddev", hidden) + 2) + 0.1)
    low, high = p["retnorm/lo/value"], p["retnorm/hi/value"]
    close(system.controller.return_norm.scale(), np.maximum(1.0, [high - low]))
    assert system.controller.return_norm.low == low


@pytest.mark.parametrize("name", SHAPES)
def test_every_network_computes_what_the_original_does(name: str) -> None:
    system, p = build(*SPACES[name]), drawn(SHAPES[name])
    before = {key: value.clone() for key, value in system.named_parameters()}
    wmkit.load_dreamerv3_jax(system, p)
    assert not [key for key, value in system.named_parameters() if torch.equal(value, before[key])]
    compare(system, p)
    back = dreamerv3_jax_parameters(system)  # and everything can be had again
    assert {key: list(value.shape) for key, value in back.items()} == SHAPES[name]
    assert all(np.array_equal(back[key], p[key]) for key in p if key != COUNT)
    assert system.update(system.example_batch())["loss_joint"].isfinite()


def test_images_and_vectors_and_classes_together() -> None:
    """The order of an embedding, and keys that hold classes."""
    spec = Composite(
        pixels=UnboundedDiscrete((1, 64, 64), dtype=torch.uint8),
        inventory=MultiCategorical([5, 5]),
        held=Categorical(7),
        velocity=Unbounded((3,)),
    )
    system = build(spec, OneHot(3))
    shapes = {key: list(value.shape) for key, value in dreamerv3_jax_parameters(system).items()}
    assert shapes["enc/mlp0/kernel"] == [7 + 2 * 5 + 3, 64] and shapes["dyn/obs0/kernel"] == [
        512 + 64 + 256,
        64,
    ]
    assert shapes["dec/vec/inventory/logits/kernel"] == [64, 10]
    p = drawn(shapes)
    wmkit.load_dreamerv3_jax(system, p)
    compare(system, p)


def test_the_environments_own_vectors_take_the_official_weights() -> None:
    """dmc_proprio joins its vectors unless told; apart, they are the original's, names and order."""
    pytest.importorskip("dm_control")
    p = drawn(SHAPES[WALKER])
    joined, apart = (make_env("dmc_proprio/walker_walk", joined=joined) for joined in (True, False))
    assert {key: apart.observation_spec[key].shape for key in apart.observation_spec.keys()} == {
        "height": (1,), "orientations": (14,), "velocity": (9,)
    }  # fmt: skip
    refused(build(joined.observation_spec, joined.action_spec), p, "unknown dec/vec/height", "joined=false")
    system = build(apart.observation_spec, apart.action_spec)
    wmkit.load_dreamerv3_jax(system, p)
    compare(system, p)
    world = default_parts().carry(apart, system)
    assert world.rollout(2, system.policy)["action"].isfinite().all()
    for env in (joined, apart):
        env.set_seed(3)
    shown = apart.reset()
    together = torch.cat([shown[key] for key in ("height", "orientations", "velocity")])
    assert torch.equal(joined.reset()["observation"], together)


def test_no_share_of_uniform_survives_a_checkpoint() -> None:
    loaded, resumed, older = (build(PROPRIO, OneHot(3)) for _ in range(3))
    wmkit.load_dreamerv3_jax(loaded, dreamerv3_jax_parameters(older))
    state = loaded.state_dict()
    restore_system(resumed, state, "run")
    assert loaded.actor.unimix == resumed.actor.unimix == 0.0
    del state["actor._extra_state"]  # as checkpoints were before
    restore_system(older, dict(state), "old run")
    older.load_state_dict(state)
    assert older.actor.unimix == 0.01
    del state["schedule._extra_state"]  # what optimisers know cannot stay as built
    with pytest.raises(CheckpointError, match=r"'run' does not fit: .*schedule\._extra_state"):
        restore_system(older, state, "run")


class Foreign:
    """An array of another library, read-only as JAX's are."""

    def __init__(self, value: np.ndarray) -> None:
        self.value, self.shape = value, value.shape
        self.value.flags.writeable = False

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.value if dtype is None else self.value.astype(dtype)


MAKES = {
    "numpy16": lambda x: x.astype(np.float16),
    "numpy64": lambda x: x.astype(np.float64),
    "torch16": lambda x: torch.from_numpy(x).half(),
    "bfloat16": lambda x: torch.from_numpy(x).bfloat16().requires_grad_(),
    "foreign": lambda x: Foreign(x.astype(np.float16)),
    "reversed": lambda x: x[..., ::-1] if x.ndim else x,
}


def test_arrays_of_any_make(walker: System) -> None:
    p = drawn(SHAPES[WALKER])
    for kind, make in MAKES.items():
        given = {key: make(x) if key != COUNT else x for key, x in p.items()}
        wmkit.load_dreamerv3_jax(walker, given)
        for key, loaded in dreamerv3_jax_parameters(walker).items():
            value = given[key]
            expected = value.detach().float().numpy() if torch.is_tensor(value) else np.asarray(value)
            assert key == COUNT or np.array_equal(loaded, expected.astype(np.float32)), (kind, key)


# -- what does not fit -----------------------------------------------------------------------------------


def refused(system: System, p: Any, *said: str) -> None:
    """Loading ``p`` fails with one sentence that says all of that."""
    with pytest.raises(CheckpointError) as error:
        wmkit.load_dreamerv3_jax(system, p)
    for part in said:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_what_does_not_fit_is_named_and_nothing_is_loaded(walker: System) -> None:
    before = {key: value.clone() for key, value in walker.state_dict().items() if torch.is_tensor(value)}
    good = drawn(SHAPES[WALKER], seed=1)
    names = list(good)
    for name, other in zip(names, names[1:] + names[:1], strict=True):  # strict to the last number
        bad = good | {f"{name}s": good[name], other: np.zeros((*good[other].shape, 2), np.float32)}
        del bad[name]
        wrong = f"{other} of shape {list(bad[other].shape)} instead of {list(good[other].shape)}"
        refused(
            walker, bad, f"do not fit system dreamer_v3: missing {name}, unknown {name}s, {wrong}, wanted"
        )
    turned = {"dyn/dyngru/kernel": good["dyn/dyngru/kernel"].transpose(0, 2, 1)}
    refused(walker, good | turned, "dyn/dyngru/kernel of shape [8, 192, 64] instead of [8, 64, 192], wanted")
    refused(walker, good | {"opt/step": good[COUNT]}, "unknown opt/step", "leave the optimiser's out")
    refused(walker, {}, " more, wanted exactly")
    scale = "val/mlp/norm2/scale"
    words = good | {scale: ["a"] * 64}
    refused(walker, words, f"'{scale}'", "is not an array of finite real numbers: found list, wanted")
    refused(walker, good | {scale: [[1.0], [2.0, 3.0]]}, f"'{scale}'", "found list, wanted")
    for number in (np.nan, np.inf, 1e300):
        refused(
            walker, good | {scale: np.full(64, number)}, f"'{scale}'", "found numbers that are NaN or inf"
        )
    for value in (np.ones(64, complex), torch.ones(64, dtype=torch.complex64)):
        refused(walker, good | {scale: value}, f"'{scale}'", "found complex numbers, wanted")
    refused(walker, {1: good[scale]} | good, "have the key 1 of type int: wanted names")
    for thing in (None, list(good)):
        refused(walker, thing, f"are a {type(thing).__name__}: wanted a mapping")
    after = walker.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_another_size_another_space_and_another_system_are_refused() -> None:
    p = drawn(SHAPES["size1m_vision_continuous"])
    narrow = build(PIXELS, OneHot(6), "size.units=32")
    refused(
        narrow, p, "missing pol/head/action/logits/bias, pol/head/action/logits/kernel, unknown pol/head/"
    )
    refused(narrow, p, "con/head/logit/kernel of shape [64, 1] instead of [32, 1]", " more, wanted exactly")
    small = ["preset=paper", "size.deter=16", "size.units=8", "size.depth=2"]
    for name, spec in (("dreamer_v3_2023", PIXELS), ("dreamer_v3_2024", PROPRIO)):  # the second has its names
        older = wmkit.build(name, observation_spec=spec, action_spec=OneHot(3), overrides=small)
        refused(older, p, f"system {name} is not the JAX DreamerV3", "built from dreamer_v3;")
    changed = build(PROPRIO, SIX, *small, "world_model.dynamics.joint_input=true")
    refused(changed, p, "system dreamer_v3 has a parameter 'world_model.", "built from dreamer_v3;")


@pytest.mark.parametrize(
    ("keys", "override", "found"),
    [
        ({"a": (1,), "b": (2,)}, "observations.vectors=[b,a]", "vectors in the order b, a"),
        ({"a": (1, 64, 64), "b": (1,)}, "world_model.encoder.vectors_first=false", "images before vectors"),
        ({"a": (1, 64, 64), "b": (1, 64, 64)}, "size.units=8", "images a, b"),
    ],
)
def test_columns_that_mean_something_else_are_refused(
    keys: dict[str, tuple[int, ...]], override: str, found: str
) -> None:
    spec = Composite(
        {k: UnboundedDiscrete(s, dtype=torch.uint8) if len(s) > 1 else Unbounded(s) for k, s in keys.items()}
    )
    refused(build(spec, SIX, "size.deter=16", override), {}, f"found {found}, wanted")
