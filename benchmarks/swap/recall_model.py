"""Recall by a world model: what it imagines after the query.

The corridor of :mod:`corridor` as observations, one class each, and after the query one more: the cue.
Nothing else is learnt from than the world model's own loss. To answer, it observes up to the query,
imagines one step, and decodes it.

Beside the symbols two things differ from :mod:`worlds`: four categoricals, since a choice of eight needs
no more and a prior that holds them independent learns sixteen later; and narrow heads of transformers,
which in an RSSM keep keys and values of all steps at every step.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torchrl.data import Categorical, Composite

from swap import equal
from swap.corridor import INPUTS, SYMBOLS, sequences

SPEC = Composite(symbol=Categorical(INPUTS))
OVERRIDES = ["preset=quick", "size=tiny", "size.groups=4"]


def records(length: int, rows: int, seed: int) -> TensorDict:
    """Episodes ``[rows, length + 3]`` of cue, distraction, query and answer; one action, no reward."""
    symbols, cues = sequences(length, rows, seed)
    shown = torch.cat([symbols.argmax(-1), cues.unsqueeze(1)], 1)
    is_init = torch.zeros(*shown.shape, 1, dtype=torch.bool)
    is_init[:, 0] = True
    return TensorDict(
        {
            "symbol": shown,
            "previous_action": (~is_init).float(),
            "reward": torch.zeros(is_init.shape),
            "is_init": is_init,
            "terminated": torch.zeros_like(is_init),
            "done": is_init.roll(-1, 1),
        },
        shown.shape,
    )


def model(backbone: str, longest: int, seed: int, overrides: Sequence[str] = OVERRIDES) -> tuple[Any, dict]:
    """A system for corridors up to ``longest``, whose transformers see all of them; and what was counted."""
    narrow = ("+backbone.head_dim=8", f"backbone.window={longest + 3}")
    seeing = dict.fromkeys(("gpt", "transformer_xl"), equal.Recipe("+backbone.hidden", narrow))
    return equal.world_model(backbone, 1, overrides, seed, SPEC, equal.WORLD_MODEL | seeing)


def look_back(system: Any, steps: int) -> None:
    """Let a transformer hold no more tokens than there are: empty places cost time and change nothing."""
    backbone = system.world_model.dynamics.backbone
    if hasattr(backbone, "window"):
        backbone.window = steps


def run(
    backbone: str,
    *,
    lengths: list[int],
    updates: int,
    rows: int,
    tests: int,
    seed: int,
    overrides: Sequence[str] = OVERRIDES,
) -> dict:
    """Train one world model on all lengths mixed, and ask it at each.

    Lengths are drawn as in :func:`corridor.run`: of each as many symbols are seen.

    Args:
        backbone: a name of ``wmkit list backbone``.
        lengths: L.
        updates: of ``rows`` episodes of one length each.
        rows: in a batch.
        tests: episodes per length that accuracies are of.
        seed: of weights, episodes and samples; the same episodes for all backbones.
        overrides: of the system, for all backbones alike.

    Returns:
        Among the rest ``accuracy`` by L, of the likeliest state, ``sampled``, of one sample of it, and
        ``losses``, the mean of each twenty updates.
    """
    system, counted = model(backbone, max(lengths), seed, overrides)
    order = random.Random(seed).choices(lengths, [1 / length for length in lengths], k=updates)
    losses = []
    start, cpu = time.perf_counter(), time.process_time()
    for update, length in enumerate(order):
        batch = records(length, rows, seed=1_000_000 * (seed + 1) + update)
        look_back(system, batch.shape[1])
        losses.append(equal.learn_model(system, batch))
    spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    torch.manual_seed(seed)
    shares = {length: recalled(system, records(length, tests, seed=length), rows) for length in lengths}
    return {
        **counted,
        **spent,
        "chance": 1 / SYMBOLS,
        "accuracy": {length: likeliest for length, (likeliest, _) in shares.items()},
        "sampled": {length: sampled for length, (_, sampled) in shares.items()},
        "losses": [round(float(x.mean()), 3) for x in torch.stack(losses).split(20)],
    }


@torch.no_grad()
def recalled(system: Any, episodes: TensorDict, rows: int) -> tuple[float, float]:
    """Shares of episodes whose imagined answer is the cue, the most probable of all cues.

    Args:
        system: with the world model.
        episodes: of :func:`records`.
        rows: taken at once.

    Returns:
        Of the likeliest state that is imagined, and of one sample of it.
    """
    look_back(system, episodes.shape[1])
    world_model, right = system.world_model, torch.zeros(2)
    dynamics = world_model.dynamics
    for batch in episodes.split(rows):
        _, latent = world_model.open_loop(system.fill(batch), episodes.shape[1] - 1)
        sampled = latent.map(lambda x: x[:, -1:])
        state, classes = dynamics.latent.mode(dynamics.prior_logits(sampled.belief))
        answers = [
            world_model.decoder.predict(world_model.read(world_model.decoder, latent))["symbol"]
            .logits[:, 0, :SYMBOLS]
            .argmax(-1)
            for latent in (sampled._replace(state=state, classes=classes), sampled)
        ]
        right += (torch.stack(answers) == batch["symbol"][:, -1]).sum(1)
    likeliest, sample = (right / len(episodes)).tolist()
    return likeliest, sample
