"""Transforms between a policy's continuous actions and the environment.

A policy of today's DreamerV3 (danijar/dreamerv3 e3f0224) draws from a normal, and what it drew is
what replay stores, the model remembers and the loss scores. Only the environment sees less of it::

    drawn a  ──▶  clip to [-1, 1]  ──▶  low + (a + 1) / 2 * (high - low)  ──▶  environment
       └──▶  replay, previous_action
"""

from __future__ import annotations

from torchrl.envs import ActionScaling, ClipTransform, Transform


def unit_actions() -> list[Transform]:
    """Transforms under which an environment of bounded actions takes any floats.

    Its action spec becomes [-1, 1]; what lies outside is clipped on the way in, out of the
    collector's sight. Append them in this order.

    >>> import torch
    >>> from torchrl.envs import GymEnv, TransformedEnv
    >>> env = TransformedEnv(GymEnv("Pendulum-v1"))
    >>> for transform in unit_actions():
    ...     _ = env.append_transform(transform)
    >>> env.action_spec.space.high, env.base_env.action_spec.space.high
    (tensor([1.]), tensor([2.]))
    >>> step = env.step(env.reset().set("action", torch.tensor([7.0])))
    >>> step["action"]
    tensor([7.])
    """
    return [ActionScaling(), ClipTransform(in_keys_inv=["action"], low=-1.0, high=1.0)]
