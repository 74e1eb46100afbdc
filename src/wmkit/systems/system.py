"""A system: world model, objectives, controller and schedule, ready to act and to learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.data import Bounded, OneHot

from wmkit.codecs import FrameStack
from wmkit.control import DreamEnv, Outcome, Policy, RandomPolicy
from wmkit.dynamics import rollout
from wmkit.errors import ConfigError, SpecError
from wmkit.objectives import Scene
from wmkit.optim import Loss
from wmkit.places import made
from wmkit.plug import Key
from wmkit.systems.checks import check_batch, check_names, check_window
from wmkit.systems.spaces import Spaces

GROUPS = ("representation", "dynamics")  # of the world model's terms
RENAMED = {  # prefixes of a state dict, as they were and as they are
    "behaviour.estimator.": "controller.returns.estimator.",
    "behaviour.": "controller.",
}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class System(nn.Module):
    """Everything a page describes, assembled.

    Made by :func:`wmkit.build`; its parts are ordinary modules.

    Args:
        name: the page's name.
        spaces: what the environment shows and takes.
        world_model: called as ``world_model(shapes, action_dim)``.
        objectives: what the world model is trained on, by name (:mod:`wmkit.objectives`).
        actor: called as ``actor(width, action_dim)``; none where nothing acts but at random.
        critic: called as ``critic(width)``; none where there is no value function.
        controller: called as ``controller(actor, critic)``, turns the model into behaviour
            (:mod:`wmkit.control`).
        schedule: called as ``schedule(modules)``, gives the order of learning
            (:class:`~wmkit.optim.Schedule`).
        batch: ``size`` B, ``length`` T and leading ``context`` steps of a batch.
        exploration: by kind of action, what the policy adds to its samples (:mod:`wmkit.control`).
        policy: called as :class:`~wmkit.control.Policy`, gives what acts in the environment.
        frames: how images of a window are stacked; single frames as they are if not given.

    Raises:
        ConfigError: a part that cannot be made of its arguments; a batch that has no such size, or windows
            too short for stacks or losses; loss weights that do not match the loss terms.
        SpecError: an observation with the name of a loss term.

    Attributes:
        policy: for a TorchRL collector; of continuous actions in an environment with
            :func:`wmkit.envs.unit_actions`.
        batch_shape: (B, L) that :meth:`update` expects, context included.
        context: leading steps that only supply stored latents or older frames.
        carry_dtype: precision in which acting and learning compute and carry the belief from step to step
            (:meth:`compute_in`); replay stores it so without loss.
        dream_windows: ``(N, length)`` of the extra windows that :meth:`update` takes; None if imagination
            starts from the batch.
        own_windows: the same of learners' own batches, by name, which :meth:`update` takes after these.
        pretraining: updates to make before the first step that the policy chooses, if the schedule says.
    """

    carry_dtype = torch.float32
    actor: Any
    critic: Any
    controller: Any
    schedule: Any
    policy: Any

    def __init__(
        self,
        name: str,
        spaces: Spaces,
        *,
        world_model: Callable[..., Any],
        objectives: Mapping[str, Any],
        actor: Callable[..., nn.Module] | None = None,
        critic: Callable[..., nn.Module] | None = None,
        controller: Callable[..., Any] | None = None,
        schedule: Callable[..., Any],
        batch: Mapping[str, int],
        exploration: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        policy: Callable[..., nn.Module] = Policy,
        frames: FrameStack | None = None,
    ) -> None:
        super().__init__()
        for key, least in (("size", 1), ("length", 1), ("context", 0)):
            if type(batch.get(key)) is not int or batch[key] < least:
                raise ConfigError(
                    f"batch.{key} is {batch.get(key)!r}: wanted a whole number of at least {least}; "
                    f"correct batch.{key}"
                )
        self.name, self.spaces, self.frames = name, spaces, frames or FrameStack()
        if spaces.images and self.frames.count - 1 > batch["context"]:
            raise ConfigError(
                f"observations.frames.count is {self.frames.count} and batch.context {batch['context']}: "
                f"wanted {self.frames.count - 1} or more records of context, the older frames of a window's "
                f"first stack; set batch.context={self.frames.count - 1}"
            )
        stacked = self.frames.shapes({key: spaces.shapes[key] for key in spaces.images})
        self.context = batch["context"]
        self.batch_shape = (batch["size"], batch["length"] + self.context)
        with made("world_model"):
            self.world_model: Any = world_model(spaces.shapes | stacked, spaces.action_dim)
        with made("actor"):
            self.actor = actor and actor(self.world_model.width(actor, "the actor"), spaces.action_dim)
        with made("critic"):
            self.critic = critic and critic(self.world_model.width(critic, "the critic", self.actor))
        self.objectives: Any = nn.ModuleDict()
        terms: dict[str, Sequence[str]] = {}
        for key, objective in objectives.items():
            with made(f"objectives.{key}"):
                self.objectives[key] = objective.attach(self.world_model)
                terms[f"objectives.{key}"] = objective.names(self.world_model)
        with made("controller"):
            self.controller = controller and controller(self.actor, self.critic)
        check_names({**terms, "controller": tuple(getattr(self.controller, "weights", ()))}, spaces)
        modules = {"world_model": self.world_model, "actor": self.actor, "critic": self.critic}
        with made("schedule"):
            self.schedule = schedule({key: module for key, module in modules.items() if module is not None})
        starts = getattr(self.controller, "starts", None)
        check_window(
            batch["length"],
            dict(self.objectives.items()),
            {"controller": self.controller, "controller.starts": starts},
        )
        self.dream_windows: tuple[int, int] | None = starts and starts.windows(self.frames.count)
        batches = self.schedule.batches
        self.own_windows = {name: (spec["size"], spec["length"]) for name, spec in batches.items()}
        self._scored_on = {one: name for name, spec in batches.items() for one in spec["objectives"]}
        spaces.needs |= self._needs()
        self.exploration = (exploration or {}).get(spaces.actions)
        self._make_policy = policy
        self.policy = self.policy_of(self.controller)

    @staticmethod
    def renamed(state: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """A state dict under today's names.

        >>> System.renamed({"behaviour.return_norm.low": 0.0, "actor.out.bias": 0.0})
        {'controller.return_norm.low': 0.0, 'actor.out.bias': 0.0}
        """
        found = {}
        for name, value in state.items():
            for older, today in RENAMED.items():
                if name.startswith(prefix + older):
                    name = prefix + today + name.removeprefix(prefix + older)
            found[name] = value
        return found

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        renamed = self.renamed(state_dict, prefix)
        state_dict.clear()
        state_dict.update(renamed)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def pretraining(self) -> int | None:
        """Updates before the first step that the policy chooses; None where the schedule has no phases."""
        return self.schedule.pretraining

    def compute_in(self, precision: str) -> System:
        """Let the policy act, and trainers learn and store beliefs, in a precision; weights stay float32.

        Args:
            precision: ``float32`` or ``bfloat16``, in which products are then computed under autocast.

        Raises:
            ConfigError: another precision.
        """
        if precision not in PRECISIONS:
            raise ConfigError(
                f"training.precision is {precision!r}: wanted {' or '.join(PRECISIONS)}; correct it"
            )
        self.carry_dtype = PRECISIONS[precision]
        if self.policy is not None:
            self.policy.precision = self.carry_dtype
        return self

    def policy_of(self, controller: Any) -> Any:
        """What acts in the environment: a controller that plans, the actor, or chance where there is neither.

        Args:
            controller: this system's, or another one over its parts.

        Raises:
            ConfigError: the policy is not made so, or plans are not of the environment's kind of action.
        """
        plans = hasattr(controller, "plan")
        if plans:
            with made("controller"):
                controller.of(self.spaces.actions)
        acting, options = controller if plans else self.actor, dict[str, Any]()
        if acting is None:
            return RandomPolicy(
                self.spaces.action_dim, self.spaces.observations, self.spaces.actions == "continuous"
            )
        if plans and getattr(self._make_policy, "keywords", {}).get("acts_on") == "mode":
            options["acts_on"] = "sample"  # imagination goes on from a state with its memory
        with made("policy"):
            return self._make_policy(
                self.world_model,
                acting,
                images={key: self.spaces.shapes[key] for key in self.spaces.images},
                vectors=self.spaces.vectors,
                frames=self.frames,
                continuous=self.spaces.actions == "continuous",
                exploration=self.exploration,
                **options,
            )

    # -- learning ------------------------------------------------------------------------

    def update(self, batch: TensorDictBase, *beside: TensorDictBase) -> TensorDict:
        """One full training update: encode and observe, score, imagine, score, step.

        Args:
            batch: the sequence layout ``[B, L]``; with :attr:`context` steps in front whose
                stored ``state`` and ``belief`` start the window. Without stored latents the
                window starts from the initial state.
            *beside: windows of the same layout: ``[N, c+1]`` as :attr:`dream_windows` says, where it does,
                then one for each of :attr:`own_windows`.

        Returns:
            Detached scalars by name and, where windows start from stored latents, ``replay_context``
            ``[B, L - context]`` with the fresh ``state`` and ``belief`` for writing back to replay.

        Raises:
            SpecError: a key is missing or has the wrong rank or dtype, or the windows beside are not what is
                wanted.
        """
        first = 0 if self.dream_windows is None else 1
        dreams = beside[:first] if first or self.own_windows else beside  # one too many is refused
        schedule, scene = self.schedule, self.scene(batch, *dreams)
        own = self._own_scenes(beside[first:]) if self.own_windows else {}
        metrics: dict[str, Any] = {}
        phase = schedule.now
        for learners in phase.order:  # those of one inner list learn at once
            losses: dict[str, Loss] = {}
            with schedule.alone(learners):
                if self._models(learners):
                    losses |= self._score(scene, metrics, learners, phase.objectives, own)
                if self._behaves(learners):
                    learn = self.controller.learn_records if phase.records else self.controller.learn
                    learned = learn(scene, schedule.slow)
                    losses |= {name: Loss(term.loss, term.group) for name, term in learned.terms.items()}
                    metrics |= learned.metrics
            metrics |= schedule.learn(learners, losses)
        schedule.follow()
        return self._result(scene, metrics)

    def scene(self, batch: TensorDictBase, dreams: TensorDictBase | None = None) -> Scene:
        """What :meth:`update` learns from, checked: the window without its context, and where it starts."""
        check_batch(batch, self.spaces)
        shape = None if dreams is None else tuple(dreams.shape)
        if shape != self.dream_windows:
            raise SpecError(
                f"windows for dreams are {shape}: wanted {self.dream_windows}, as the controller's starts "
                "say; "
                "give update what System.example_batches shows"
            )
        beside = None
        if dreams is not None:
            check_batch(dreams, self.spaces)
            beside = self.fill(dreams)
        latent, dynamics = None, self.world_model.dynamics
        if self.context and dynamics.resumable and "state" in batch.keys():
            first = batch[:, self.context - 1]
            latent = dynamics.unpack({key: first[key] for key in ("state", "belief")})
        window = {key: value[:, self.context :] for key, value in self.fill(batch).items()}
        return Scene(self.world_model, window, latent, beside=beside, slow=self.schedule.slow)

    def _own_scenes(self, windows: Sequence[TensorDictBase]) -> dict[str, Scene]:
        """By name, what the objectives of learners' own batches look at."""
        shapes = [tuple(window.shape) for window in windows]
        if shapes != list(self.own_windows.values()):
            raise SpecError(
                f"learners' own batches are {shapes}: wanted {list(self.own_windows.values())}; give update "
                "what System.example_batches shows"
            )
        for window in windows:
            check_batch(window, self.spaces)
        filled = map(self.fill, windows)
        return {
            name: Scene(self.world_model, one) for name, one in zip(self.own_windows, filled, strict=True)
        }

    def _score(
        self,
        scene: Scene,
        metrics: dict,
        learners: Sequence[str] | None = None,
        names: tuple[str, ...] | None = None,
        own: Mapping[str, Scene] | None = None,
    ) -> dict[str, Loss]:
        """Weighted losses of the world model that teach these learners, or all, by term."""
        learners = tuple(self.schedule.learners if learners is None else learners)
        losses = {}
        for name, objective in self.objectives.items():
            if names is not None and name not in names:
                continue
            if objective.groups and not self.schedule.wants(learners, objective.groups):
                continue
            seen = (own or {}).get(self._scored_on.get(name, ""), scene)
            for term_name, term in objective.terms(seen).items():
                losses[term_name] = Loss(objective.weights[term_name] * term.loss, term.group)
                metrics[f"loss_{term_name}"] = term.mean.detach()
        nothing = torch.zeros((), device=scene.batch["is_init"].device)
        for name, groups in {"world_model": None, **{group: (group,) for group in GROUPS}}.items():
            found = [
                loss.value.detach() for loss in losses.values() if groups is None or loss.group in groups
            ]
            metrics[f"loss_{name}"] = sum(found, metrics.get(f"loss_{name}", nothing))
        metrics |= scene.metrics
        return losses

    def _behaves(self, learners: tuple[str, ...]) -> bool:
        return self.controller is not None and self.schedule.wants(learners, ("actor", "critic"))

    def _models(self, learners: tuple[str, ...]) -> bool:
        return any(set(self.schedule.on[name]) - {"actor", "critic"} for name in learners)

    def _result(self, scene: Scene, metrics: dict[str, Tensor]) -> TensorDict:
        if not self.world_model.dynamics.resumable:  # nothing that a later window could start from
            return TensorDict(metrics)
        fresh = scene.observed.latent
        context = {"state": fresh.state.detach(), "belief": fresh.belief.detach()}
        return TensorDict({**metrics, "replay_context": TensorDict(context, fresh.state.shape[:2])})

    # -- dreaming ------------------------------------------------------------------------

    @torch.no_grad()
    def imagine(self, start: TensorDictBase, horizon: int) -> TensorDict:
        """Roll the policy out in the model; without a controller, given or random actions.

        Args:
            start: ``[N]`` with ``state`` and, where the model carries one, ``belief``, and with the policy's
                ``carry`` where it has one; without it the backbone remembers nothing from before. Of a system
                without a controller also ``action`` ``[N, H, A]``; they are random if not given.
            horizon: transitions H.

        Returns:
            TorchRL transitions ``[N, H]``, see :class:`~wmkit.control.Outcome`.
        """
        packed = {key: start[key] for key in ("state", "belief", "carry") if key in start.keys()}
        latent = self.world_model.dynamics.unpack(packed)
        if self.controller is not None:
            return self.controller.imagine(self.world_model, latent, horizon)
        actions = start.get("action", None)
        if actions is None:
            actions = self.spaces.random_actions(len(latent.state), horizon).to(latent.state.device)
        rewards = {name: 1.0 for name in self.world_model.heads if name == "reward"}
        return Outcome(rewards, (), None)(
            self.world_model, rollout(self.world_model, latent, actions, horizon)
        )

    def dream_env(self, batch_size: Any = (), **options: Any) -> DreamEnv:
        """The world model as a TorchRL environment.

        Args:
            batch_size: of the environment.
            options: of :class:`~wmkit.control.DreamEnv`; rewards are those of the controller if not given.
        """
        spaces = self.spaces
        if spaces.actions == "discrete":
            action_spec: Any = OneHot(spaces.action_dim, dtype=torch.float32)
        else:
            action_spec = Bounded(-1.0, 1.0, (spaces.action_dim,))
        if self.controller is not None:
            options = {"rewards": self.controller.outcome.rewards, **options}
        elif "reward" not in self.world_model.heads:
            options = {"rewards": {}, **options}
        return DreamEnv(self.world_model, action_spec, batch_size=batch_size, **options)

    @torch.no_grad()
    def open_loop(self, batch: TensorDictBase, context: int, *, vectors: bool = False) -> dict[str, Tensor]:
        """Predict a window from its first steps and the real actions alone.

        Args:
            batch: the sequence layout ``[B, T]``.
            context: steps that are observed; the rest is imagined with the real actions.
            vectors: predict vector keys too, those of classes as probabilities ``[B, T, ..., classes]``.

        Returns:
            ``{key: [B, T, ...]}``: a prediction in [0, 1] for every image key, and what the hooks of the
            controller's roll-outs expect (of a jump gate ``jump`` ``[B, T]``, a probability, and
            ``jump_steps`` ``[B, T]``, the predicted span Δ of a jump from that step).
        """
        out, latent = self.world_model.open_loop(self.fill(batch), context, vectors)
        for key, stack in out.items():
            if key in self.spaces.vectors:
                continue
            out[key] = self.frames.newest(stack, self.spaces.shapes[key][0])
        for hook in getattr(self.controller, "hooks", ()):
            out |= hook.outlook(self.world_model, latent)
        return out

    # -- batches -------------------------------------------------------------------------

    def example_batch(self, seed: int = 0) -> TensorDict:
        """A random valid batch of :attr:`batch_shape`."""
        return self.spaces.example_batch(self.batch_shape, seed)

    def example_batches(self, seed: int = 0) -> tuple[TensorDict, ...]:
        """All that :meth:`update` takes: a random batch and those of dreams' and learners' own."""
        dreams = [] if self.dream_windows is None else [self.dream_windows]
        shapes = [self.batch_shape, *dreams, *self.own_windows.values()]
        return tuple(self.spaces.example_batch(shape, seed + i) for i, shape in enumerate(shapes))

    def fill(self, batch: TensorDictBase) -> dict[str, Any]:
        """The batch as a mapping: images stacked, in [0, 1]; defaults for missing keys that parts need."""
        filled = {key: batch[key] for key in batch.keys()}
        init = filled["is_init"]
        filled |= {key: self.frames.window(filled[key], init) for key in self.spaces.images}  # not per reader
        for key, need in self.spaces.needs.items():
            if isinstance(key, str) and key not in filled:
                filled[key] = torch.full((*init.shape[:2], *need.shape), need.default, device=init.device).to(
                    need.dtype
                )
        return filled

    def _needs(self) -> dict[Any, Key]:
        """Batch keys that heads and objectives read beyond observations, reward and flags."""
        known = {*self.spaces.shapes, "reward", "terminated"}
        needs: dict[Any, Key] = {}
        for head in self.world_model.heads.values():
            needs |= {key: need for key, need in head.needs.items() if key not in known}
        for objective in self.objectives.values():
            needs |= objective.batch_keys(self.spaces.shapes)
        return needs
