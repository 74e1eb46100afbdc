"""Steps of an environment by hand, and its pictures as other packages make them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image


def act(env, current, action: int):
    """The next step, by the number of an action."""
    size = env.action_spec.shape[-1]
    return env.step(current.set("action", torch.nn.functional.one_hot(torch.tensor(action), size)))["next"]


def small(screen: np.ndarray, side: int) -> np.ndarray:
    """uint8 ``[H, W, 3]`` to ``[side, side, 3]`` by Pillow."""
    return np.asarray(Image.fromarray(screen).resize((side, side), Image.BILINEAR))
