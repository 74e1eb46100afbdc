"""In which order the parts of a system learn within one update."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wmkit.arguments import check_range
from wmkit.dynamics import Latent
from wmkit.dynamics.latent import Observed
from wmkit.objectives import Learner, ReplayCriticLoss, Term, check_weights, reduce_terms
from wmkit.objectives.actor_critic import ActorCriticOutput
from wmkit.objectives.world_model import WorldModelOutput


def adam(settings: Mapping[str, float], parameters: Any) -> Learner:
    """An Adam learner from ``lr``, ``eps``, ``clip`` and ``decay``, what share weights lose per update."""
    decay = settings.get("decay", 0.0) / settings["lr"]  # AdamW's is multiplied with the learning rate
    kind = partial(torch.optim.AdamW, weight_decay=decay) if decay else torch.optim.Adam
    optimizer = partial(kind, lr=settings["lr"], eps=settings["eps"], fused=True)
    return Learner(parameters, optimizer, settings["clip"])


class Schedule(nn.Module):
    """What every schedule keeps beside the system: learners, and a slow copy of the critic.

    Args:
        system: its critic is copied.
        slow_fraction: how far the slow critic moves towards the critic; none does without a copy, and
            the critic itself stands in.
        learners: optimisers by name; their state is part of ``state_dict``.
        slow_every: updates between two such moves; the first follows the first update.
    """

    slow_critic: Any
    takes_dreams = False  # whether ``update`` knows windows for dreams alone

    def __init__(
        self,
        system: Any,
        slow_fraction: float | None,
        learners: Mapping[str, Learner],
        slow_every: int = 1,
    ) -> None:
        super().__init__()
        self.slow_critic = None
        check_range("schedule.slow_every", slow_every, 1)
        if slow_fraction is not None:
            check_range("schedule.slow_fraction", slow_fraction, 0, 1)
            self.slow_critic = copy.deepcopy(system.critic).requires_grad_(False)
        self.slow_fraction, self.slow_every = slow_fraction, slow_every
        self.learners = dict(learners)
        self.updates = 0

    @property
    def phase(self) -> bool:
        """Which kind of update comes next, whether the slow critic moves: equal ones do the same things."""
        # A compiler that reads the count makes a new graph of every update.
        return self.slow_every == 1 or self.updates % self.slow_every == 0

    def behave(self, system: Any, learned: WorldModelOutput) -> ActorCriticOutput:
        """Losses of actor and critic on roll-outs from what the world model has just observed."""
        return system.behaviour(
            system.world_model,
            system.actor,
            system.critic,
            system.critic if self.slow_critic is None else self.slow_critic,
            learned.starts,
            learned.start_mask,
            learned.start_continuation,
        )

    @torch.no_grad()
    def follow(self, critic: nn.Module) -> None:
        """Move the slow critic towards ``critic``, if there is one and it is time."""
        if self.slow_fraction is not None and self.phase:
            torch._foreach_lerp_(
                list(self.slow_critic.parameters()), list(critic.parameters()), self.slow_fraction
            )
        if self.slow_every != 1 or not torch.compiler.is_compiling():
            self.updates += 1

    def get_extra_state(self) -> dict:
        """Optimiser states, so that ``state_dict`` holds everything a resume needs."""
        state: dict[str, Any] = {name: learner.state_dict() for name, learner in self.learners.items()}
        return state if self.slow_every == 1 else {**state, "updates": self.updates}

    def set_extra_state(self, state: dict) -> None:
        """Take the optimiser states back."""
        for name, learner in self.learners.items():
            learner.load_state_dict(state[name])
        self.updates = state.get("updates", 0)


class ThreeAdams(Schedule):
    """A learner of its own for world model, actor and critic; in which order they learn, subclasses say.

    Args:
        system: the parts: ``world_model``, ``actor``, ``critic``, ``world_model_loss``, ``behaviour``.
        world_model: ``lr``, ``eps``, ``clip`` and, if any, ``decay`` of its Adam.
        actor: likewise.
        critic: likewise.
        slow_fraction: how far the slow critic moves towards the critic; none does without.
        slow_every: updates between two such moves.
    """

    def __init__(
        self,
        system: Any,
        *,
        world_model: Mapping[str, float],
        actor: Mapping[str, float],
        critic: Mapping[str, float],
        slow_fraction: float | None,
        slow_every: int = 1,
    ) -> None:
        learners = {
            "world_model": adam(world_model, system.world_model.parameters()),
            "actor": adam(actor, system.actor.parameters()),
            "critic": adam(critic, system.critic.parameters()),
        }
        super().__init__(system, slow_fraction, learners, slow_every)


class SequentialUpdate(ThreeAdams):
    """World model first, then actor and critic on roll-outs of the updated model.

    DreamerV3 of 2023 and LS-Imagine, where the slow critic follows after every update and serves as the
    critic's regulariser only; DreamerV2, where it is a copy made every 100 updates and gives the targets.
    """

    def update(
        self, system: Any, batch: Mapping[str, Tensor], latent: Latent | None
    ) -> tuple[dict[str, Tensor], Observed]:
        """One update of everything; metrics and the posterior over the window."""
        learned = system.world_model_loss(system.world_model, batch, latent)
        metrics = dict(learned.metrics)
        metrics["grad_norm_world_model"] = self.learners["world_model"].step(learned.loss)
        behaved = self.behave(system, learned)
        metrics |= behaved.metrics
        metrics["grad_norm_actor"] = self.learners["actor"].step(behaved.actor_loss)
        metrics["grad_norm_critic"] = self.learners["critic"].step(behaved.critic_loss)
        self.follow(system.critic)
        return metrics, learned.observed


class SimultaneousUpdate(ThreeAdams):
    """World model, actor and critic all learn from the model as it is before the update (DreamerV1)."""

    def update(
        self, system: Any, batch: Mapping[str, Tensor], latent: Latent | None
    ) -> tuple[dict[str, Tensor], Observed]:
        """One update of everything; metrics and the posterior over the window."""
        learned = system.world_model_loss(system.world_model, batch, latent)
        behaved = self.behave(system, learned)
        metrics = learned.metrics | behaved.metrics
        # The actor's gradient goes through model and critic: it is taken before either changes.
        metrics["grad_norm_actor"] = self.learners["actor"].step(behaved.actor_loss)
        metrics["grad_norm_critic"] = self.learners["critic"].step(behaved.critic_loss)
        metrics["grad_norm_world_model"] = self.learners["world_model"].step(learned.loss)
        self.follow(system.critic)
        return metrics, learned.observed


class JointUpdate(Schedule):
    """One loss, one backward, one optimiser over world model, actor and critic.

    The current DreamerV3 (danijar/dreamerv3 e3f0224)::

        L = L_world_model + Σ_k weights_k L_k        k: actor, critic, replay_critic

    Imagination runs in the model as it is before the update. What gradient reaches what is decided
    in the losses: those of actor and critic on roll-outs see detached features, the critic's on
    replay reaches encoder and dynamics too. The slow critic starts as a copy, follows the critic
    after every update and serves as its regulariser only.

    Args:
        system: the parts: ``world_model``, ``actor``, ``critic``, ``world_model_loss``, ``behaviour``.
        optimizer: called as ``optimizer(parameters)``, e.g. a partial of
            :class:`~wmkit.objectives.LaProp`; clipping is its own affair.
        weights: of the losses named above, the third only with a ``replay_critic``.
        replay_critic: the critic's loss on replay; none leaves it out.
        slow_fraction: how far the slow critic moves towards the critic per update.

    Raises:
        ConfigError: the weights do not match the losses.

    >>> from torchrl.data import Composite, OneHot, Unbounded
    >>> from wmkit.objectives import LaProp
    >>> from wmkit.systems import build
    >>> spec = Composite(observation=Unbounded((2,)))
    >>> system = build("dreamer_v3_2023", observation_spec=spec, action_spec=OneHot(3))
    >>> system.schedule = JointUpdate(
    ...     system, optimizer=LaProp, replay_critic=ReplayCriticLoss(gamma=0.997), slow_fraction=0.02,
    ...     weights={"actor": 1.0, "critic": 1.0, "replay_critic": 0.3})
    >>> batch = system.example_batch()[:2, :4]
    >>> system.update(batch)["loss"].shape
    torch.Size([])
    """

    def __init__(
        self,
        system: Any,
        *,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        weights: Mapping[str, float],
        replay_critic: ReplayCriticLoss | None = None,
        slow_fraction: float,
    ) -> None:
        parts = (system.world_model, system.actor, system.critic)
        parameters = [parameter for part in parts for parameter in part.parameters()]
        super().__init__(system, slow_fraction, {"joint": Learner(parameters, optimizer, None)})
        self.weights, self.replay_critic = dict(weights), replay_critic
        named = ("actor", "critic") if replay_critic is None else ("actor", "critic", "replay_critic")
        check_weights(dict.fromkeys(named), weights)

    def losses(
        self, system: Any, batch: Mapping[str, Tensor], latent: Latent | None
    ) -> tuple[Tensor, dict[str, Tensor], Observed]:
        """The whole loss, with gradients; metrics and the posterior over the window."""
        learned = system.world_model_loss(system.world_model, batch, latent)
        behaved = self.behave(system, learned)
        metrics = learned.metrics | behaved.metrics
        terms = {"actor": Term(behaved.actor_loss), "critic": Term(behaved.critic_loss)}
        if self.replay_critic is not None:
            features = learned.observed.latent.parts
            window = features.belief.shape[:2]
            bootstrap = behaved.start_return[: window.numel()].unflatten(0, window)  # [B, T, 1]
            replayed = self.replay_critic(system.critic, self.slow_critic, features, batch, bootstrap)
            terms["replay_critic"] = Term(replayed.loss)
            metrics |= replayed.metrics
        loss = learned.loss + reduce_terms(terms, self.weights, 1.0)
        return loss, metrics | {"loss": loss.detach()}, learned.observed

    def update(
        self, system: Any, batch: Mapping[str, Tensor], latent: Latent | None
    ) -> tuple[dict[str, Tensor], Observed]:
        """One update of everything; metrics and the posterior over the window."""
        loss, metrics, observed = self.losses(system, batch, latent)
        metrics["grad_norm"] = self.learners["joint"].step(loss)
        self.follow(system.critic)
        return metrics, observed
