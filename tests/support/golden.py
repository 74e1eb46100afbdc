"""What every system computes at a small size, as it was recorded once: the net under a redesign.

``python tests/support/golden.py record --out tests/golden`` writes a file for each case with the ``wmkit``
that is imported; ``tests/test_golden.py`` holds the present code to these files. A tensor is kept as a
*digest*: its norm, its sum and four sums under fixed random weights, the latter five divided by the root of
its size.

Phases of a case, each under its own seed, so that a draw more or less in one does not show in the others:

* ``initial``: the weights as they are made. All are then shifted by fixed numbers that depend on their names
  only: no layer is zero any more, and the next phases do not add up what differs here.
* ``dream``: :meth:`System.imagine`. ``acting``: twelve steps of the policy on random observations, sampled,
  with a reset. ``open_loop``: :meth:`System.open_loop`.
* ``update 1`` to ``3``: what three updates return. ``parameters``: the change they make to every weight.

What a redesign may rename stands in the tables at the top, and nowhere else.
"""

from __future__ import annotations

import argparse
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.data import Bounded, Categorical, Composite, OneHot, Unbounded, UnboundedDiscrete
from torchrl.envs.utils import ExplorationType, set_exploration_type

import wmkit

# --- what may be renamed ----------------------------------------------------------------------------------

RENAMED: dict[str, dict[str, str]] = {
    # by phase ("update" for all three): pattern of a name today -> the name it was recorded under
    "initial": {},
    "parameters": {},
    "update": {r"^(grad_norm|loss)_joint$": r"\1"},
    "dream": {},
    "acting": {},
    "open_loop": {},
}
GONE: dict[str, str] = {
    # by phase: pattern of recorded names that are not looked for any more
    "dream": "weight",
}

SMALL = [f"size.{name}" for name in ("deter=32", "hidden=24", "units=24", "groups=4", "classes=4", "depth=4")]
GROUPS = CLASSES = 4
DETER = 32
BATCH = ("batch.size=3", "batch.length=6")
WINDOW = ("batch.size=3", "batch.length=14")  # of systems that take a context out of it
PAPER, QUICK = "preset=paper", "preset=quick"  # the page's own numbers, and a run's usual ones
# The published warm-up and rate leave a change of three updates at the size of rounding.
JOINT = ("schedule.learners.joint.optimizer.warmup=2", "learning_rate.joint=0.0001")
RELEASED = "compat=released"

# --- cases ------------------------------------------------------------------------------------------------

PIXELS = {"pixels": (3, 64, 64)}
VECTORS = {"speed": (3,), "hint": (1,)}
STEPS, ROWS, HORIZON, CONTEXT, UPDATES = 12, 3, 5, 2, 3
BINS = 255  # of two-hot predictions


class Case(NamedTuple):
    """A system, what it sees, how many actions it has (negative: numbers), and overrides."""

    system: str
    observations: dict[str, tuple[int, ...]]
    actions: int
    overrides: tuple[str, ...]
    classes: dict[str, int] = {}  # noqa: RUF012 (of a tuple's field)


def _cases() -> Iterator[tuple[str, Case]]:
    seen = {"images": PIXELS, "vectors": VECTORS}
    for system in ("dreamer_v1", "dreamer_v2", "dreamer_v3", "dreamer_v3_2024", "dreamer_v3_2023"):
        for kind, preset, actions in (
            ("images", PAPER, 5),
            ("images", QUICK, -2),
            ("vectors", QUICK, 5),
            ("vectors", PAPER, -2),
        ):
            if actions < 0 and system == "dreamer_v3_2023":
                continue
            joint = JOINT if system in ("dreamer_v3", "dreamer_v3_2024") else ()
            classes = {"heading": 4} if (kind, actions) == ("vectors", 5) else {}
            small = [one for one in SMALL if system != "dreamer_v1" or "classes" not in one]
            name = f"{system}-{kind}-{'continuous' if actions < 0 else 'discrete'}"
            yield name, Case(system, seen[kind], actions, (preset, *small, *BATCH, *joint), classes)
    views = PIXELS | {"affordance": (1, 64, 64), "reward": (1,)}
    # The first state had no gradient yet.
    jumping = (*SMALL, *BATCH, "world_model.dynamics.dynamics.initial_gradient=false")
    jumping = ("size=tiny", *jumping)  # preset=paper brings its own
    yield "ls_imagine", Case("ls_imagine", views, 5, (PAPER, *jumping))
    yield "ls_imagine-quick", Case("ls_imagine", views, 5, (QUICK, *jumping))
    yield "ls_imagine-released", Case("ls_imagine", views, 5, (PAPER, *jumping, RELEASED))
    little = ("size.blocks=2", "size.heads=2", "controller.starts.count=6", "controller.horizon=6")
    # Dropout was drawn for memories of 52 tokens; no case is long enough to fill one.
    for system, extra in (("twm", (*little, "backbone.window=53")), ("storm", little)):
        overrides = (*SMALL, *WINDOW, *extra)
        yield f"{system}-images", Case(system, PIXELS, 5, (PAPER, *overrides))
        yield f"{system}-vectors", Case(system, VECTORS, 5, (QUICK, *overrides))
        yield f"{system}-released", Case(system, {"pixels": (1, 64, 64)}, 5, (PAPER, *overrides, RELEASED))
    restarting = (*SMALL, *WINDOW, *little, "backbone.window=53", "controller.starts.restart_states=8")
    yield "twm-restarts", Case("twm", VECTORS, 5, (PAPER, *restarting))


CASES = dict(_cases())


def build(case: Case) -> Any:
    """The system of a case, its weights as they are made under seed 0."""
    spec: dict[str, Any] = {}
    for key, shape in case.observations.items():
        spec[key] = UnboundedDiscrete(shape, dtype=torch.uint8) if len(shape) == 3 else Unbounded(shape)
    spec |= {key: Categorical(count, shape=(1,)) for key, count in case.classes.items()}
    actions: Any = OneHot(case.actions) if case.actions > 0 else Bounded(-1.0, 1.0, (-case.actions,))
    torch.manual_seed(0)
    return wmkit.build(
        case.system, observation_spec=Composite(spec), action_spec=actions, overrides=list(case.overrides)
    )


# --- numbers that depend on names only --------------------------------------------------------------------


def draw(name: str, *shape: int) -> np.ndarray:
    """Uniforms in [0, 1) that are the same on every machine."""
    return np.random.default_rng(zlib.crc32(name.encode())).random(shape)


def digest(name: str, x: Tensor) -> np.ndarray:
    """Norm, sum and four weighted sums of a tensor, all of the order of its norm."""
    flat = x.detach().double().numpy().ravel()
    weights = np.sqrt(12) * (draw(f"digest/{name}", 4, flat.size) - 0.5)
    size = max(np.sqrt(flat.size), 1.0)
    return np.concatenate([[np.linalg.norm(flat), flat.sum() / size], weights @ flat / size])


def shift(system: nn.Module) -> None:
    """Move every weight by fixed numbers, a tenth of its size but not less than 0.02.

    Two-hot predictions are drawn to the middle of their bins: the outer ones would leave a sum of rounding.
    """
    with torch.no_grad():
        for name, x in named(system):
            scale = max(0.1 * float(x.double().square().mean().sqrt()), 0.02)
            x += torch.from_numpy((scale * (2 * draw(f"shift/{name}", *x.shape) - 1)).astype(np.float32))
            if x.shape == (BINS,):
                x -= (torch.arange(BINS) - BINS // 2).square() / 200


def named(system: nn.Module) -> list[tuple[str, Tensor]]:
    """The weights under the names they were recorded under."""
    return [(recorded("parameters", name), x) for name, x in system.named_parameters()]


def recorded(phase: str, name: str) -> str:
    """The name that something of today was recorded under."""
    for pattern, old in RENAMED[phase.split()[0]].items():
        name = re.sub(pattern, old, name)
    return name


def fill(name: str, batch: TensorDictBase, case: Case) -> TensorDictBase:
    """A batch like another, with numbers that do not depend on the order of its keys."""
    lead = tuple(batch.batch_size)
    first = draw(f"{name}/is_init", *lead, 1) < 0.1
    done = np.concatenate([first[:, 1:], draw(f"{name}/last", lead[0], 1, 1) < 0.1], 1)
    ended = done & (draw(f"{name}/terminated", *lead, 1) < 0.5)
    flags = {"is_init": first, "done": done, "terminated": ended}
    for key, value in batch.items(True, True):
        path = key if isinstance(key, str) else "/".join(key)
        u = draw(f"{name}/{path}", *value.shape)
        if path in flags:
            new = flags[path]
        elif path == "previous_action" and case.actions > 0:
            new = np.eye(case.actions)[(u[..., 0] * case.actions).astype(int)] * ~first
        elif path == "previous_action":
            new = 3 * (u - 0.5) * ~first
        elif value.dtype == torch.uint8:
            new = 255 * u
        elif path == "reward":
            new = u.round() * ~first
        elif path == "jump_steps":
            new = 1 + np.floor(50 * u)
        elif value.dtype == torch.bool:
            new = u < 0.15
        else:
            new = u * case.classes.get(path, 1)
        batch.set(key, torch.from_numpy(np.asarray(new)).to(value.dtype))
    return batch


# --- phases -----------------------------------------------------------------------------------------------


def averaged(system: str) -> dict[str, str]:
    """By phase: metrics that are means over other steps than they were; no loss is among them."""
    return {"update": "imagined_value|policy_entropy"} if system in ("dreamer_v1", "dreamer_v2") else {}


def run(case: Case) -> dict[str, dict[str, Tensor]]:
    """All that is recorded of a case: tensors by phase and name."""
    system, out = build(case), {}
    out["initial"] = {name: x.detach().clone() for name, x in named(system)}
    shift(system)
    for phase in (dream, acting, open_loop):
        torch.manual_seed(1)
        out[phase.__name__] = phase(system, case)
    before = {name: x.detach().clone() for name, x in named(system)}
    for i in range(1, UPDATES + 1):
        batches = [fill(f"batch {i}/{j}", b, case) for j, b in enumerate(system.example_batches(i))]
        torch.manual_seed(i)
        if case.system == "twm":
            same_draws(system)
        out[f"update {i}"] = flat(system.update(*batches))
    out["parameters"] = {name: x.detach() - before[name] for name, x in named(system)}
    return {phase: {recorded(phase, n): x for n, x in some.items()} for phase, some in out.items()}


def same_draws(system: Any) -> None:
    """While TWM's autoencoder learns alone: chance for the records that were encoded then."""
    latent, length = system.world_model.dynamics.latent, system.batch_shape[1] - system.context
    if system.schedule.now.name != "representation":
        return

    def noise(*lead: int, device: torch.device | None = None) -> Tensor:
        if lead[1:] != (length,):
            return type(latent).noise(latent, *lead, device=device)
        inner = type(latent).noise(latent, lead[0], length - 2, device=device)
        return torch.nn.functional.pad(inner, (0, 0, 0, 0, 1, 1), value=0.5)

    latent.noise = noise


def dream(system: Any, case: Case) -> dict[str, Tensor]:
    """A short dream from random latents."""
    if case.system == "dreamer_v1":
        state = torch.from_numpy(draw("dream/state", ROWS, GROUPS) - 0.5)
    else:
        state = torch.eye(CLASSES)[(draw("dream/state", ROWS, GROUPS) * CLASSES).astype(int)].flatten(1)
    start = {"state": state.float()}
    if case.system not in ("twm", "storm"):
        start["belief"] = torch.from_numpy(2 * draw("dream/belief", ROWS, DETER) - 1).float()
    kept = flat(system.imagine(TensorDict(start, [ROWS]), HORIZON))
    return {name: x for name, x in kept.items() if not name.endswith("carry")}


def acting(system: Any, case: Case) -> dict[str, Tensor]:
    """Actions and latents of an episode on random observations, an environment reset in its midst."""
    policy = system.policy
    primers = policy.make_tensordict_primer()
    specs = [primer.primers for primer in (primers if isinstance(primers, list) else [primers])]
    carried = {key: value for spec in specs for key, value in spec.zero().items()}
    carried = {key: value.expand(ROWS, *value.shape) for key, value in carried.items()}
    out: dict[str, list[Tensor]] = {}
    for t in range(STEPS):
        root = TensorDict(dict(carried), [ROWS])
        for key, shape in case.observations.items():
            u = draw(f"acting/{t}/{key}", ROWS, *shape)
            value = torch.from_numpy(255 * u).byte() if len(shape) == 3 else torch.from_numpy(u).float()
            root["arrival_reward" if key == "reward" else key] = value
        for key, count in case.classes.items():
            root[key] = torch.from_numpy(draw(f"acting/{t}/{key}", ROWS, 1) * count).long()
        root["is_init"] = torch.tensor([[t == 0], [t in (0, 6)], [t == 0]])
        with set_exploration_type(ExplorationType.RANDOM):
            root = policy(root)
        for key in ("action", "state", "belief"):
            if key in root.keys():
                out.setdefault(key, []).append(root[key].float())
        carried = {key: root.get(("next", key), root.get(key, None)) for key in carried}
    return {key: torch.stack(values) for key, values in out.items()}


def open_loop(system: Any, case: Case) -> dict[str, Tensor]:
    """A window from its first steps and the actions that were taken."""
    batch = fill("open loop", system.example_batch(), case)
    return flat(system.open_loop(batch, CONTEXT + system.context))


def flat(tensors: Any) -> dict[str, Tensor]:
    """Every tensor of a nested mapping, under its path."""
    tensors = tensors if isinstance(tensors, TensorDictBase) else TensorDict(tensors)
    leaves = ((key if isinstance(key, str) else "/".join(key), x) for key, x in tensors.items(True, True))
    return {key: x.detach().float() for key, x in leaves}


# --- files ------------------------------------------------------------------------------------------------


def save(path: Path, tensors: dict[str, dict[str, Tensor]]) -> None:
    """Write the digests of a case."""
    index, rows = [], []
    for phase, some in tensors.items():
        for name, x in some.items():
            index.append([phase, name, list(x.shape)])
            rows.append(digest(name, x))
    text = np.frombuffer(json.dumps(index).encode(), np.uint8)
    np.savez_compressed(path, index=text, digests=np.array(rows))


def load(path: Path) -> list[tuple[str, str, tuple[int, ...], np.ndarray]]:
    """What was recorded: phase, name, shape and digest of every tensor."""
    with np.load(path) as kept:
        index = json.loads(kept["index"].tobytes())
        return [
            (phase, name, tuple(shape), row)
            for (phase, name, shape), row in zip(index, kept["digests"], strict=True)
        ]


class Difference(NamedTuple):
    """How far off one tensor is, as a share of its size."""

    phase: str
    name: str
    share: float
    what: str = ""


# Of a tensor's size, where a size below the second number counts as that. Processors differ by a fifth of
# this at most: an actor's loss is a small difference of large numbers, small gradients decide Adam's steps.
TOLERANCE = {
    "initial": (1e-6, 1e-6),
    "dream": (1e-5, 1e-2),
    "acting": (3e-6, 1e-2),
    "open_loop": (3e-6, 1e-2),
    "update": (2e-5, 1e-1),
    "parameters": (1e-3, 1e-6),
}


def compare(
    tensors: dict[str, dict[str, Tensor]],
    kept: list[tuple[str, str, tuple[int, ...], np.ndarray]],
    system: str,
) -> list[Difference]:
    """Every recorded tensor of a system beside today's, the furthest off first."""
    out, gone = [], GONE | averaged(system)
    for phase, name, shape, row in kept:
        kind = phase.split()[0]
        if kind in gone and re.fullmatch(gone[kind], name):
            continue
        x = tensors[phase].get(name)
        if x is None:
            out.append(Difference(phase, name, np.inf, "is missing"))
        elif tuple(x.shape) != shape:
            out.append(Difference(phase, name, np.inf, f"has shape {tuple(x.shape)}, recorded {shape}"))
        else:
            share = np.abs(digest(name, x) - row).max() / max(row[0], TOLERANCE[kind][1])
            out.append(Difference(phase, name, float(np.nan_to_num(share, nan=np.inf))))
    known = {(phase, name) for phase, name, *_ in kept}
    for phase in ("initial", "parameters"):
        for name in tensors[phase]:
            if (phase, name) not in known:
                out.append(Difference(phase, name, np.inf, "was not there"))
    return sorted(out, key=lambda difference: -difference.share)


def off(differences: list[Difference]) -> list[Difference]:
    """Those beyond the tolerance of their phase."""
    return [one for one in differences if not one.share <= TOLERANCE[one.phase.split()[0]][0]]


def main() -> None:
    """Record the cases, or compare with what was recorded and print the worst of every phase."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "golden")
    parser.add_argument("cases", nargs="*", default=[])
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    for name in arguments.cases or CASES:
        path = arguments.out / f"{name}.npz"
        tensors = run(CASES[name])
        if arguments.what == "record":
            save(path, tensors)
            print(name, {phase: len(some) for phase, some in tensors.items()}, flush=True)
            continue
        worst: dict[str, Difference] = {}
        for one in compare(tensors, load(path), CASES[name].system):
            worst.setdefault(one.phase, one)
        print(
            name,
            *(f"{p} {o.share:.0e} {o.name} {o.what}" for p, o in worst.items()),
            sep="\n    ",
            flush=True,
        )


if __name__ == "__main__":
    main()
