"""The actor-critic that learns in imagination: one class for every system that has one.

=====================  ==============  ============  ============  ============  =============  ============
part                   DreamerV1, V2   DreamerV3     LS-Imagine    TWM           STORM          TransDreamer
=====================  ==============  ============  ============  ============  =============  ============
``starts``             all states      all states    and jumps'    pairs         pairs          a prefix
``hooks``              -               -             jump gate     restarts      from prior     from prior
``returns``            state           transition    transition    transition    transition     transition
``gradient``           dynamics, mix   REINFORCE     REINFORCE     REINFORCE     REINFORCE      REINFORCE
``return_norm``        -               percentiles   percentiles   -             percentiles    -
``also_to``            -               slow value    slow value    -             slow return    -
=====================  ==============  ============  ============  ============  =============  ============
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from wmkit.arguments import check_range
from wmkit.control.losses import EntropyBonus, EntropyFloor, Reinforce, ReplayCritic, largest_entropy
from wmkit.control.returns import Outcome, StateReturns, Targets, TransitionReturns
from wmkit.dynamics import Hook, Latent, Restart, Rollout, WorldModel, constants, rollout
from wmkit.dynamics.dynamics import map_carry
from wmkit.errors import ConfigError
from wmkit.nn import total_loss
from wmkit.objectives import Scene, Start, Term, episode_ends


class Learned(NamedTuple):
    """A controller's losses and metrics.

    Attributes:
        terms: losses of actor and critic, weighted.
        metrics: detached scalars by name.
    """

    terms: dict[str, Term]
    metrics: dict[str, Tensor]


class ActorCritic(nn.Module):
    """A policy and a value function that learn in roll-outs of the world model.

    The actor's distribution needs ``sample``, ``log_prob`` and ``entropy``, the critic's prediction
    ``loss`` and ``mean``: one-hot or continuous actions are all the same here. Both are read, not owned.

    Args:
        actor: ``policy(features)`` gives a distribution over actions.
        critic: ``predict(features)`` gives a prediction of the return.
        horizon: transitions H of a roll-out.
        starts: where roll-outs start (:mod:`wmkit.control.starts`).
        returns: how they are valued (:mod:`wmkit.control.returns`).
        rewards: heads whose predictions add up to the reward, with their factors.
        hooks: what changes them on their way (:mod:`wmkit.dynamics.hooks`).
        gradient: what the actor climbs (:mod:`wmkit.control.losses`), or one for each kind of
            action, ``"discrete"`` and ``"continuous"``.
        entropy: factor on what the policy's entropy costs.
        entropy_term: what it costs: :class:`~wmkit.control.EntropyBonus` if not given.
        return_norm: divides advantages by the range of returns; none leaves them raw.
        also_to: a second target of the critic: its slow copy's value (``"slow_value"``) or the return that
            the slow copy's values make (``"slow_return"``).
        replay: the critic's loss on replay.
        weights: factors on ``actor``, ``critic`` and ``replay_critic``; one where they are not named.

    Raises:
        ConfigError: a horizon that is too short, an unknown option or weight, a gradient through the dynamics
            with an estimator that keeps none, or no gradient for the actor's kind of action.
    """

    actor: Any
    critic: Any
    return_norm: Any

    def __init__(
        self,
        actor: Any,
        critic: Any,
        *,
        horizon: int,
        starts: Any,
        returns: TransitionReturns | StateReturns,
        rewards: Mapping[str, float],
        hooks: Sequence[Hook] | Mapping[str, Hook | None] = (),
        gradient: Any = None,
        entropy: float = 3e-4,
        entropy_term: EntropyBonus | EntropyFloor | None = None,
        return_norm: nn.Module | None = None,
        also_to: Literal["slow_value", "slow_return"] | None = None,
        replay: ReplayCritic | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        check_range("horizon", horizon, 1)
        if also_to not in (None, "slow_value", "slow_return"):
            raise ConfigError(
                f"also_to is {also_to!r}: wanted slow_value, slow_return or null; correct also_to"
            )
        self.__dict__["actor"], self.__dict__["critic"] = actor, critic  # the system registers both
        self.horizon, self.starts, self.returns, self.return_norm = horizon, starts, returns, return_norm
        listed = list(hooks.values()) if isinstance(hooks, Mapping) else list(hooks)
        self.hooks = tuple(hook for hook in listed if hook is not None)
        self.entropy, self.entropy_term = entropy, entropy_term or EntropyBonus()
        self.also_to, self.replay = also_to, replay
        self.weights = {"actor": 1.0, "critic": 1.0, "replay_critic": 1.0} | dict(weights or {})
        if len(self.weights) > 3:
            raise ConfigError(
                f"weights are of {', '.join(weights or ())}: wanted some of actor, critic and replay_critic; "
                "correct weights"
            )
        self.gradient = self._gradient(gradient or Reinforce())
        self.states, self.acting = returns.scored(horizon)
        self.shortest = 1 if replay is None else replay.shortest
        self.outcome = Outcome(rewards, self.hooks, returns)
        if self.gradient.through and getattr(actor, "memory", None) is not None:
            raise ConfigError(
                "the actor has a memory of its own and climbs through the dynamics: wanted Reinforce, since "
                "a roll-out's gradient does not go through a memory; correct gradient"
            )
        if self.gradient.through and not getattr(returns.estimator, "differentiable", False):
            raise ConfigError(
                "the actor climbs through the dynamics with an estimator that keeps no gradient: found "
                "differentiable false, wanted true; set differentiable of the estimator"
            )

    def _gradient(self, given: Any) -> Any:
        kind = self.actor.actions[0]
        if not isinstance(given, Mapping):
            return given
        if kind not in given:
            raise ConfigError(
                f"there is no gradient for {kind} actions: found {', '.join(given) or 'none'}, wanted "
                f"{kind}; add it "
                "to gradient"
            )
        return given[kind]

    # -- learning ------------------------------------------------------------------------

    def learn(self, scene: Scene, slow: Mapping[str, Any] | None = None) -> Learned:
        """Imagine from states of ``scene`` and score actor and critic.

        Args:
            scene: what the world model made of a batch; no gradient reaches it but the critic's on replay.
            slow: slow copies by name; the critic itself where there is no ``critic`` among them.
        """
        slow_critic = (slow or {}).get("critic", self.critic)
        start = self.starts(scene)
        model, through = scene.world_model, self.gradient.through
        frozen = (model, slow_critic) if through else ()
        with constants(*frozen):
            burnt_in = self._burnt_in(model, start)
            readers = [self.critic, slow_critic]
            found = self.dream(model, start, gradient=through, readers=readers, memory=burnt_in)
            found = self._recalled(found, burnt_in)
            mask = start.mask[found.rows] & found.valid  # [N, 1]
            scored = _constant(found.latent, self.states)
            if not through:
                online = self.critic.predict(model.read(self.critic, scored))
            values = {
                "online": lambda latent: self.critic.predict(model.read(self.critic, latent)).mean,
                "slow": lambda latent: slow_critic.predict(model.read(slow_critic, latent)).mean,
            }
            with torch.set_grad_enabled(through):
                shown: Any = None if through else online.mean
                targets = self.returns(model, found, start, self.outcome, shown, values)
        if through:  # outside, where the critic is no constant
            online = self.critic.predict(model.read(self.critic, scored))
        critic_loss = self._critic_loss(model, online, scored, found, targets, values, mask)
        actor_loss, metrics = self._actor_loss(model, found, targets, mask)
        terms = {"actor": Term(actor_loss, None, "actor"), "critic": Term(critic_loss, None, "critic")}
        metrics |= {"loss_actor": actor_loss, "loss_critic": critic_loss}
        if self.replay is not None:
            latent = scene.observed.latent
            window = latent.state.shape[:2]
            bootstrap = targets.critic[0, : window.numel()].unflatten(0, window)  # [B, T, 1]
            read = partial(model.read, self.critic)
            replayed = self.replay(self.critic, slow_critic, read(latent.light()), scene.batch, bootstrap)
            terms["replay_critic"] = Term(replayed.loss, None, "critic")
            metrics |= replayed.metrics
        terms = {name: term._replace(value=self.weights[name] * term.value) for name, term in terms.items()}
        return Learned(terms, {name: value.detach() for name, value in metrics.items()})

    def dream(
        self,
        world_model: WorldModel,
        start: Start,
        *,
        gradient: bool = False,
        readers: Sequence[Any] = (),
        memory: Any = None,
    ) -> Rollout:
        """Roll the policy out; ``readers`` besides the world model's heads will read its states."""
        states = (start.latent if start.restarts is None else start.restarts).light()
        hooks = [hook.of(states) if isinstance(hook, Restart) else hook for hook in self.hooks]
        readers = [*readers, *world_model.heads.values()]
        options: Any = {"gradient": gradient, "hooks": hooks, "readers": readers, "memory": memory}
        return rollout(world_model, start.latent, self.actor, self.horizon, **options)

    @torch.no_grad()
    def _burnt_in(self, world_model: WorldModel, start: Start) -> Any:
        """The carry of the actor's memory before the starts; None where it has none, or an empty one."""
        memory = getattr(self.actor, "memory", None)
        if memory is None or start.before is None or start.is_init is None:
            return None
        carry, begins = memory.initial(len(start.mask)), start.is_init[:, -1]
        if start.is_init.shape[1] > 1:
            with world_model.evaluating():
                seen = world_model.read(memory, start.before.map(lambda x: x[:, :-1])).dense
            _, carry = memory.scan(seen, carry, start.is_init[:, :-1])
        empty = memory.initial(len(start.mask))
        return map_carry(lambda x, y: torch.where(begins.view(-1, *[1] * (x.ndim - 1)), y, x), carry, empty)

    def _recalled(self, found: Rollout, burnt_in: Any) -> Rollout:
        """The roll-out with what the actor's memory gives at each state, with gradient: all steps at once."""
        if found.seen is None:
            return found
        resets = torch.cat([torch.zeros_like(found.restarts[:1]), found.restarts])[..., 0]  # [H+1, N]
        out, _ = self.actor.memory.scan(_swap(found.seen), burnt_in, _swap(resets))
        return found._replace(latent=found.latent._replace(memory=_swap(out)))

    def _critic_loss(
        self,
        model: WorldModel,
        online: Any,
        scored: Latent,
        found: Rollout,
        targets: Targets,
        values: Mapping[str, Any],
        mask: Tensor,
    ) -> Tensor:
        also = []
        with torch.no_grad():
            if self.also_to == "slow_value":
                also.append(values["slow"](scored))
            elif self.also_to == "slow_return":
                assert isinstance(self.returns, TransitionReturns) and targets.transitions is not None
                also.append(self.returns.returns(targets.transitions, values["slow"](found.latent)))
        loss = total_loss(online, targets.critic, *also).unsqueeze(-1)  # [C, N, 1]
        return mean_of(targets.critic_weight * loss, mask)

    def _actor_loss(
        self, model: WorldModel, found: Rollout, targets: Targets, mask: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        advantage = (targets.actor - targets.baseline).detach()
        if self.return_norm is not None:
            self.return_norm.update(_swap(targets.actor.detach()))
            advantage = self.return_norm.normalize(advantage)
        log_prob, entropy = self._chosen(model, found)
        acted = ~found.options[: self.acting]  # an option is no choice of the policy's
        weight = targets.actor_weight
        loss = -mean_of(weight * self.gradient(targets.actor, advantage, log_prob) * acted, mask)
        metrics = {
            "imagined_return": mean_of(targets.critic, mask),
            "imagined_value": mean_of(targets.value[: self.horizon], mask),
            "imagined_reward": mean_of(targets.reward, mask),
        }
        if entropy is not None:
            actions = found.actions.shape[-1]
            loss = loss + self.entropy * self.entropy_term(mean_of(weight * entropy, mask), actions)
            metrics["policy_entropy"] = mean_of(entropy, mask)
        if any(hook.durations.__func__ is not Hook.durations for hook in self.hooks):  # type: ignore[attr-defined]
            jumps, transitions = found.options.float(), targets.transitions
            assert transitions is not None
            steps = _swap(transitions["next", "steps_to_next_obs"])
            metrics["jump_rate"] = mean_of(jumps, mask)
            metrics["jump_span"] = (steps * jumps).sum() / jumps.sum().clamp(min=1)
        if any(isinstance(hook, Restart) for hook in self.hooks):
            metrics["restart_rate"] = mean_of(found.restarts.float(), mask)
        if self.return_norm is not None:
            metrics["return_scale"] = self.return_norm.scale().squeeze()
        return loss, metrics

    def _chosen(self, model: WorldModel, found: Rollout) -> tuple[Tensor | None, Tensor | None]:
        """Log-probabilities of the actions and entropies of the policy, ``[A, N, 1]``, where wanted."""
        if not (self.gradient.scored or self.entropy):
            return None, None  # not every policy knows its entropy
        actions = found.actions[: self.acting].detach()
        if found.policies:  # in the graph already
            steps = found.policies[: self.acting]
            entropy = torch.stack([policy.entropy for policy in steps])
            pairs = zip(steps, actions, strict=True)
            log_prob = torch.stack([p.log_prob(a) for p, a in pairs]) if self.gradient.scored else None
        else:  # all steps at once: layers applied to few rows each cost more, backwards above all
            latent = _constant(found.latent, slice(self.acting))
            policy = self.actor.policy(model.read(self.actor, latent))
            entropy = policy.entropy
            log_prob = policy.log_prob(actions) if self.gradient.scored else None
        return None if log_prob is None else log_prob.unsqueeze(-1), entropy.unsqueeze(-1)

    # -- beside the roll-outs --------------------------------------------------------------

    def learn_records(self, scene: Scene, slow: Mapping[str, Any] | None = None) -> Learned:
        """Score the critic on real rewards, and the actor on its entropy alone.

        For the time before the model's dreams are worth anything, with records of a random policy (TWM's
        pretraining, arXiv:2303.07109). Both kinds of end stop the return here.
        """
        model, batch = scene.world_model, scene.batch
        ahead = getattr(self.starts, "ahead", 0)
        with torch.no_grad(), model.evaluating():
            latent = scene.observed.latent
        keep = latent.state.shape[1] - ahead
        latent = latent.light().map(lambda x: x[:, :keep].detach())
        heads: Any = model.heads
        reward, continuation = heads["reward"], heads["continuation"]
        goes_on = ~(episode_ends(batch) | batch["is_init"])[:, 1:keep]  # [B, T-1, 1]
        after = {
            "reward": reward.label(batch)[:, 1:keep],
            "continuation": goes_on * float(continuation.discount),
        }
        online = self.critic.predict(model.read(self.critic, latent.map(lambda x: x[:, :-1])))
        with torch.no_grad():
            last = self.critic.predict(model.read(self.critic, latent.map(lambda x: x[:, -1:]))).mean
        transitions = TensorDict({"next": after}, list(goes_on.shape[:2]))
        value = _swap(torch.cat([online.mean.detach(), last], 1))
        assert isinstance(self.returns, TransitionReturns)
        target = _swap(self.returns.returns(transitions, value))
        real = ~batch["is_init"][:, 1:keep, 0]
        critic_loss = (real * online.loss(target)).sum() / real.sum().clamp(min=1)
        entropy = self.actor.policy(model.read(self.actor, latent)).entropy.mean()
        actor_loss = -self.entropy * entropy / largest_entropy(batch["previous_action"].shape[-1])
        terms = {"actor": Term(actor_loss, None, "actor"), "critic": Term(critic_loss, None, "critic")}
        metrics = {"loss_actor": actor_loss, "loss_critic": critic_loss, "policy_entropy": entropy}
        return Learned(terms, {name: value.detach() for name, value in metrics.items()})

    @torch.no_grad()
    def imagine(self, world_model: WorldModel, latent: Latent, horizon: int) -> TensorDict:
        """Roll the policy out from ``latent``, leaves ``[N, ...]``: transitions ``[N, horizon]``
        (:class:`Outcome`).
        """
        hooks = [single for hook in self.hooks if (single := hook.single()) is not None]
        return self.outcome(world_model, rollout(world_model, latent, self.actor, horizon, hooks=hooks))


def _constant(latent: Latent, part: slice) -> Latent:
    """Some steps of a latent, without gradient but that of the actor's memory, which is the actor's own."""
    cut = latent.map(lambda x: x[part].detach())
    return cut if latent.memory is None else cut._replace(memory=latent.memory[part])


def mean_of(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``[T, N, 1]`` over the roll-outs ``mask [N, 1]`` that count."""
    return (x * mask).sum() / (mask.sum() * len(x))


def _swap(x: Tensor) -> Tensor:
    return x.transpose(0, 1)
