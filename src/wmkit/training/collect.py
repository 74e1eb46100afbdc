"""Runs the policy in the training environments, a few steps at a time.

    Collector (TorchRL)  ->  TensorDict [N, k], root/next layout  ->  memory, statistics

N environments take k steps between two looks at the learner. The collector keeps the
environments' state from one call to the next, so episodes run across calls.

Collecting and learning take turns, because both orders matter: the next action wants the newest
weights, the next batch the newest records. An update never waits for steps it does not owe, nor a step
for an update that is not due. With ``ahead`` a round of steps is taken in a thread while the learner
works on the rounds before it, which changes the algorithm a little::

    take turns   | steps n, weights n-1 | updates n |  steps n+1, weights n   | updates n+1 |
    ahead        | updates n-1, replay up to n-1    | updates n, replay up to n        |
                 | steps n, weights n-2             | steps n+1, weights n-1           |

Steps are taken with weights that are one round older (danijar/dreamerv3 e3f0224 acts so too), random
numbers are shared by two threads in no fixed order, so that a seed no longer fixes a run, and a round
under way when a run ends is lost. It pays where environments take time outside of Python.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.data import Binary, Unbounded
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.transforms import InitTracker, Transform

from wmkit.training.devices import for_env, policy_weights
from wmkit.training.evaluate import Episode, achievements, means

OVER = ("over", "over_terminated")


class ArrivalReward(Transform):
    """Show the reward received on arriving as an observation, ``arrival_reward`` ``[1]``; 0 at a reset.

    For systems that encode the reward (LS-Imagine): TorchRL leaves the reward of a step behind when the
    next one begins.

    >>> from wmkit.envs.counting import CountingEnv
    >>> env = TransformedEnv(CountingEnv(), ArrivalReward())
    >>> env.rollout(3)["arrival_reward"].flatten()
    tensor([0., 1., 2.])
    """

    def __init__(self) -> None:
        super().__init__(in_keys=["reward"], out_keys=["arrival_reward"])

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict.set("arrival_reward", next_tensordict["reward"].float())

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        shape = self.parent.full_reward_spec["reward"].shape
        return tensordict_reset.set("arrival_reward", torch.zeros(shape, device=tensordict_reset.device))

    def transform_observation_spec(self, observation_spec: Any) -> Any:
        """Declare the key."""
        shape = self.parent.full_reward_spec["reward"].shape
        observation_spec["arrival_reward"] = Unbounded(
            shape, dtype=torch.float32, device=observation_spec.device
        )
        return observation_spec


class ProlongEpisodes(Transform):
    """Step an ended episode on while its jump pairs wait (LS-Imagine as released; off by default).

    The end is kept in ``over`` and ``over_terminated``, bool ``[1]``, which stay set, and is hidden from
    the collector, which would reset. Episodes that end in a loss (terminated without ``success``) are
    not prolonged. Goes on top of all other transforms.

    Args:
        num_envs: N, of environments with ``batch_size [N]``.

    >>> from wmkit.envs.counting import CountingEnv
    >>> env = TransformedEnv(CountingEnv(truncate=True), prolong := ProlongEpisodes(1))
    >>> prolong.waiting[:] = True
    >>> batch = env.rollout(12)
    >>> int(batch["next", "over"].sum()), bool(batch["next", "done"].any())
    (6, False)
    """

    def __init__(self, num_envs: int) -> None:
        super().__init__()
        self.waiting = torch.zeros(num_envs, dtype=torch.bool)  # set after every collected batch

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        done, terminated = next_tensordict["done"], next_tensordict["terminated"]
        lost = terminated & ~next_tensordict.get("success", torch.zeros_like(done))
        held = done & self.waiting.view(done.shape) & ~lost & next_tensordict["reward"].isfinite()
        for key in ("done", "terminated", "truncated"):
            if key in next_tensordict.keys():
                next_tensordict.set(key, next_tensordict[key] & ~held)
        return next_tensordict.set("over", done).set("over_terminated", terminated)

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        blank = torch.zeros_like(tensordict_reset["done"])
        return tensordict_reset.set("over", blank).set("over_terminated", blank.clone())

    def transform_observation_spec(self, observation_spec: Any) -> Any:
        """Declare the keys."""
        shape = self.parent.full_done_spec["done"].shape
        for key in ("over", "over_terminated"):
            observation_spec[key] = Binary(shape=shape, dtype=torch.bool, device=observation_spec.device)
        return observation_spec


def with_ends(transitions: TensorDictBase) -> TensorDictBase:
    """Transitions ``[N, k]`` whose ``done`` and ``terminated`` say where prolonged episodes really ended."""
    after = transitions["next"]
    if "over" not in after.keys():
        return transitions
    after = after.copy().set("done", after["over"]).set("terminated", after["over_terminated"])
    return transitions.copy().set("next", after).exclude(*OVER, *(("next", key) for key in OVER))


def came(transitions: TensorDictBase) -> Tensor:
    """Which transitions ``[N, k]`` of a collector's batch came: one of reward NaN stands for none."""
    return transitions["next", "reward"].isfinite().flatten(2).all(2)


def that_came(transitions: TensorDictBase) -> list[tuple[TensorDictBase, list[int] | None]]:
    """A collector's batch ``[N, k]`` without the transitions whose reward is NaN: they never came.

    Returns:
        The batch, and None; or pieces ``[1, n]`` of it in order of time, each with its environment.
    """
    arrived = came(transitions)
    if bool(arrived.all()):
        return [(transitions, None)]
    pieces: list[tuple[TensorDictBase, list[int] | None]] = []
    for env, flags in enumerate(arrived.tolist()):
        start = 0
        for end in (*(t for t, flag in enumerate(flags) if not flag), len(flags)):
            if end > start:
                pieces.append((transitions[env : env + 1, start:end], [env]))
            start = end + 1
    return pieces


class RandomFirst(TensorDictModuleBase):
    """The policy, with its actions replaced by random ones while :attr:`random` is true.

    The policy still runs, so that the latents stored with random steps are the ones it would carry.

    Args:
        policy: writes ``action`` and the carry.
        action_spec: the batched specification random actions are drawn from, ``[N, A]``.
    """

    def __init__(self, policy: TensorDictModuleBase, action_spec: Any) -> None:
        super().__init__()
        self.policy = policy
        self.in_keys, self.out_keys = policy.in_keys, policy.out_keys
        self._action_spec = action_spec
        self.random = False

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Act."""
        tensordict = self.policy(tensordict)
        if self.random:
            action = self._action_spec.rand().to(tensordict["action"].dtype)  # [N, A]
            tensordict.set("action", action)
            if ("next", "previous_action") in tensordict.keys(True):
                tensordict.set(
                    ("next", "previous_action"), action.to(tensordict["next", "previous_action"].dtype)
                )
        return tensordict


def with_carry(env: EnvBase, policy: Any, *transforms: Any) -> TransformedEnv:
    """Wrap ``env``: mark first observations (``is_init``), add ``transforms``, carry the policy's latents."""
    wrapped = env if isinstance(env, TransformedEnv) else TransformedEnv(env)
    wrapped.append_transform(InitTracker())
    for transform in transforms:
        wrapped.append_transform(transform)
    if hasattr(policy, "make_tensordict_primer"):
        primer = policy.make_tensordict_primer()
        for transform in primer if isinstance(primer, (list, tuple)) else (primer,):
            wrapped.append_transform(transform)
    return wrapped


@contextmanager
def closing(env: EnvBase) -> Iterator[EnvBase]:
    """Close ``env`` after the ``with`` block; a batch that was never reset has nothing to close."""
    try:
        yield env
    finally:
        if not env.is_closed:
            env.close()


class Collection:
    """The training environments and the collector that steps them.

    Args:
        env: batched, ``batch_size [N]``, transforms included.
        policy: the system's policy; its weights may lie on another device than the environments.
        length: steps per environment and call (k).
        ahead: take the next call's steps in a thread after this one has returned, by a copy of the policy
            with the weights it has then.
    """

    def __init__(self, env: EnvBase, policy: TensorDictModuleBase, length: int, ahead: bool = False) -> None:
        self.num_envs, self.length = env.batch_size[0], length
        self._source, self._worker = policy, None
        self._pending: Future[TensorDictBase] | None = None
        if ahead:
            # Exploration is common to both: it counts actions, which only the copy takes.
            common = getattr(policy, "exploration", None)
            policy = copy.deepcopy(policy, {id(common): common})
            self._worker = ThreadPoolExecutor(1, "collect")
        self._acting = policy
        self.policy = RandomFirst(for_env(policy, env), env.full_action_spec["action"])
        self._collector = Collector(
            env,
            self.policy,
            frames_per_batch=self.num_envs * length,
            total_frames=-1,
            auto_register_policy_transforms=False,
            trust_policy=True,
        )
        self._batches: Iterator[TensorDictBase] | None = None

    def collect(self, random: bool = False) -> TensorDictBase:
        """Take N * k steps.

        Args:
            random: draw actions at random; of steps taken ahead, the call before decided.

        Returns:
            TensorDict ``[N, k]`` in TorchRL's root/``next`` layout; valid until the next call.
        """
        if self._worker is None:
            self.policy.random = random
            return self._next()
        if self._pending is None:
            self._start(random)
        assert self._pending is not None
        batch = self._pending.result().clone()  # the collector writes the next round over it
        self._start(random)
        return batch

    def settle(self) -> None:
        """Wait until no steps are under way; the next :meth:`collect` returns them."""
        if self._pending is not None:
            wait([self._pending])

    @property
    def carried(self) -> TensorDictBase | None:
        """What the next step starts from, ``[N]``: observations, the policy's carry; None with ``ahead``."""
        return None if self._worker is not None else self._collector._carrier.exclude("collector")

    def carry(self, carried: TensorDictBase) -> None:
        """Start the next step from this; the environments are where it says."""
        now = self._collector._carrier
        carried = carried if now.device is None else carried.to(now.device)
        self._collector._carrier = carried.update(now.select("collector", strict=False))

    def restart(self) -> None:
        """Reset every environment."""
        self._collector.reset()

    def _next(self) -> TensorDictBase:
        if self._batches is None:
            self._batches = iter(self._collector)
        return next(self._batches)

    def _start(self, random: bool) -> None:
        assert self._worker is not None
        here, there = (list(policy_weights(policy)) for policy in (self._acting, self._source))
        if here:
            with torch.no_grad():
                torch._foreach_copy_(here, there)
        self.policy.random = random
        self._pending = self._worker.submit(self._next)

    def close(self) -> None:
        """Stop the environments."""
        if self._worker is not None:
            self._worker.shutdown()
        self._collector.shutdown(close_env=True)


class EpisodeTracker:
    """Follows returns, lengths and successes over calls, and averages what jump labelling did.

    Args:
        num_envs: N.
        window: episodes in "success rate so far".

    >>> from tensordict import TensorDict
    >>> step = {"reward": torch.ones(1, 3, 1), "done": torch.tensor([[[False], [True], [False]]])}
    >>> tracker = EpisodeTracker(1)
    >>> tracker.add(TensorDict({"next": step}, [1, 3]))
    [(1, Episode(episode_return=2.0, length=2, success=None, achievements=None, cut=False))]
    """

    KEYS = ("jump", "is_zoomed", "jump_probability", "intrinsic_reward", "score")

    def __init__(self, num_envs: int, window: int = 100) -> None:
        self._returns, self._lengths = [0.0] * num_envs, [0] * num_envs
        self._succeeded, self._over = [False] * num_envs, [False] * num_envs
        self.recent: deque[Episode] = deque(maxlen=window)
        self.ended_in: list[int] = []  # environments of the episodes that the last call returned
        self._sums: dict[str, list[torch.Tensor]] = {}

    _OPEN = ("_returns", "_lengths", "_succeeded", "_over")  # of unfinished episodes, a list per number

    @property
    def success_rate(self) -> float | None:
        """Mean over the last ``window`` episodes; None before the first one ends, or without flags."""
        return means(self.recent).get("success_rate")

    def add(self, batch: TensorDictBase) -> list[tuple[int, Episode]]:
        """Take one collected batch ``[N, k]``.

        Returns:
            The episodes that ended in it, each with the step (0..k-1) at which it did.
        """
        arrived = batch["next"]
        count, length = batch.batch_size
        for key in self.KEYS:
            value = arrived.get(key, None)
            if value is not None:
                self._sums.setdefault(key, []).append(value.float().mean())
        reward = arrived["reward"].reshape(count, length).tolist()
        done = arrived["done"].reshape(count, length).tolist()
        over = arrived.get("over", arrived["done"]).reshape(count, length).tolist()  # true on to the reset
        success_or_none = arrived.get("success", None)
        success = success_or_none.reshape(count, length).tolist() if success_or_none is not None else None
        ended, self.ended_in = [], []
        for t in range(length):
            for env in range(count):
                counts = math.isfinite(reward[env][t])  # else the episode was cut here
                # What comes after the end of a prolonged episode is not counted.
                if not self._over[env] and (counts or self._lengths[env]):
                    self._returns[env] += reward[env][t] if counts else 0.0
                    self._lengths[env] += counts
                    self._succeeded[env] |= bool(success[env][t]) if success is not None else False
                    if over[env][t]:
                        won = self._succeeded[env] if success is not None else None
                        unlocked = achievements(arrived[env, t])
                        episode = Episode(self._returns[env], self._lengths[env], won, unlocked, not counts)
                        self.recent.append(episode)
                        ended.append((t, episode))
                        self.ended_in.append(env)
                        self._over[env] = True
                if done[env][t]:
                    self._returns[env], self._lengths[env] = 0.0, 0
                    self._succeeded[env] = self._over[env] = False
        return ended

    def numbers(self, keep: bool = False) -> dict[str, float]:
        """Means since the last call (which this is not, with ``keep``), and :func:`means` over the window."""
        sums = self._sums
        if not keep:
            self._sums = {}
        names = {"jump": "jump_rate", "is_zoomed": "zoom_rate"}
        numbers = {f"collect/{names.get(k, k)}": torch.stack(v).mean().item() for k, v in sums.items()}
        return numbers | means(self.recent)

    def state_dict(self) -> dict[str, Any]:
        """The window, sums and unfinished episodes."""
        return {
            "recent": [list(vars(e).values()) for e in self.recent],
            "sums": {key: torch.stack(values) for key, values in self._sums.items()},
            "open": [list(getattr(self, name)) for name in self._OPEN],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state_dict` but for unfinished episodes, see :meth:`go_on`."""
        self.recent.extend(Episode(*entry) for entry in state["recent"])
        self._sums = {key: list(values) for key, values in state.get("sums", {}).items()}

    def go_on(self, state: dict[str, Any]) -> None:
        """Take up the unfinished episodes of a state too: the environments are still in them."""
        for name, values in zip(self._OPEN, state["open"], strict=True):
            setattr(self, name, list(values))
