"""One acting step of today's DreamerV3 on a CPU, with its weights laid out for few rows.

Acting takes in one observation of each environment: some forty small layers on one to sixteen rows,
where calling an operation costs more than its arithmetic, and NumPy's calls cost a quarter of torch's.
:func:`fuse` reads the weights of encoder, recurrent core, posterior and actor as arrays (no copy where
none is needed) and puts together what can be:

* layers that read different inputs side by side share one norm and one activation;
* a layer over ``[a, b]`` is one product of the concatenation; what all blocks of the recurrent cell read
  goes through one dense matrix;
* gates are reordered so that one sigmoid serves two of them, constants go into biases;
* a softmax is compared with its own sum instead of being divided by it.

The numbers are those of the modules up to rounding, for the same noise of torch's generator in the same
order. ``benchmarks/ls_imagine_speed.py`` times both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wmkit.backbones.block_gru import BlockGRU
from wmkit.codecs.codec import flat_vector
from wmkit.dynamics import RSSM
from wmkit.dynamics.inputs import SplitInput
from wmkit.functional import symlog
from wmkit.heads import ContinuousActor, DiscreteActor
from wmkit.nn import MLP, CategoricalLatent, DenseNormAct, LayerStyle, Linear, RMSNorm

KNOWN = (nn.Linear, Linear, RMSNorm, DenseNormAct, MLP, nn.Sequential, SplitInput)
Array = np.ndarray
Choice = Callable[[Array, bool], Array]
Reader = Callable[[Mapping[str, Tensor]], Array]


class FusedStep:
    """Encoder, filter and actor as one function; good until a weight changes.

    Args:
        world_model: encoder and dynamics are used; see :func:`fuse` for what they may be.
        actor: a :class:`~wmkit.heads.ContinuousActor` or a :class:`~wmkit.heads.DiscreteActor`.
    """

    def __init__(self, world_model: Any, actor: Any) -> None:
        rssm: RSSM = world_model.dynamics
        gru: BlockGRU = rssm.backbone
        self._read = _reader(world_model.encoder)
        layers: list[Any] = [gru.belief_in, rssm.input.state, rssm.input.action]
        self._enter = [(_array(layer.linear.weight).T, _array(layer.linear.bias)) for layer in layers]
        self._entered = _NormAct(layers)
        self._clip = rssm.clip_action
        self._blocks, self._width = gru.blocks, gru.out_dim // gru.blocks
        weight = _array(gru.hidden.weight)  # [g, U/g + 3H, U/g]
        self._own = weight[:, : self._width]
        self._shared = weight[:, self._width :].transpose(1, 0, 2).reshape(-1, gru.out_dim)  # [3H, U]
        self._shared_bias = _array(gru.hidden.bias)
        self._hidden = _NormAct([gru])
        order = [0, 2, 1]  # reset, update, candidate
        gates = _array(gru.gates.weight).reshape(self._blocks, self._width, 3, self._width)
        self._gates = gates[:, :, order].reshape(self._blocks, self._width, -1)  # [g, U/g, 3U/g]
        bias = _array(gru.gates.bias).reshape(self._blocks, 1, 3, self._width)[:, :, order]
        bias[:, :, 1] -= 1.0
        self._gates_bias = bias.reshape(self._blocks, 1, -1)
        self._posterior = _dense([rssm.posterior_in, *rssm.posterior_out])
        latent = rssm.latent
        assert isinstance(latent, CategoricalLatent)
        self._groups, self._classes = latent.groups, latent.classes
        self._one_hot = np.eye(latent.classes, dtype=np.float32)
        # (1 - m) P_k + (k + 1) m / C <= x  as  P_k <= keep * x + shift_k, P the cumulative softmax
        self._keep = np.float32(1.0 / (1.0 - latent.unimix))
        steps = np.arange(1, latent.classes, dtype=np.float32)
        self._shift = -steps * np.float32(latent.unimix / latent.classes) * self._keep  # [C - 1]
        self._trunk = _dense(actor.trunk)
        self._choose: Choice = _continuous(actor) if isinstance(actor, ContinuousActor) else _discrete(actor)

    def __call__(
        self,
        observations: Mapping[str, Tensor],
        state: Tensor,
        belief: Tensor,
        previous_action: Tensor,
        is_init: Tensor,
        explore: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take in one observation of N environments; everything on the CPU, no gradient.

        Args:
            observations: by key, ``[N, *event]``.
            state: ``[N, G*C]`` float32, carried.
            belief: ``[N, U]`` float32, carried.
            previous_action: ``[N, A]`` float32.
            is_init: ``[N]`` bool, an episode starts.
            explore: sample the action, or take its mode.

        Returns:
            The action ``[N, A]``, and the posterior state and belief to carry on.
        """
        with np.errstate(over="ignore"):  # exp(-x) of a saturated gate
            going_on = ~is_init.numpy()[:, None]
            z, u, a = (np.where(going_on, x.numpy(), _ZERO) for x in (state, belief, previous_action))
            embed = self._read(observations)  # [N, E]
            noise = torch.rand(len(embed), self._groups, 1).numpy()
            if self._clip:
                a /= np.maximum(np.abs(a), 1.0)
            u = self._recur(u, (u, z, a))
            logits = self._posterior(np.concatenate([u, embed], -1)).reshape(-1, self._groups, self._classes)
            total = np.exp(logits - logits.max(-1, keepdims=True)).cumsum(-1)
            index = (total[..., :-1] <= (noise * self._keep + self._shift) * total[..., -1:]).sum(-1)
            z = self._one_hot.take(index, 0).reshape(len(u), -1)
            action = self._choose(self._trunk(np.concatenate([z, u], -1)), explore)
        return torch.from_numpy(action), torch.from_numpy(z), torch.from_numpy(u)

    def _recur(self, belief: Array, inputs: tuple[Array, ...]) -> Array:
        """The recurrent cell: ``[N, U]`` and what its three input layers read -> ``[N, U]``."""
        count, width = len(belief), self._width
        rows = [x @ weight + bias for x, (weight, bias) in zip(inputs, self._enter, strict=True)]
        entered = self._entered(np.stack(rows, 1)).reshape(count, -1)  # [N, 3H]
        blocks = belief.reshape(count, self._blocks, width).transpose(1, 0, 2)  # [g, N, U/g]
        hidden = entered @ self._shared
        hidden += self._shared_bias
        hidden += (blocks @ self._own).transpose(1, 0, 2).reshape(count, -1)
        hidden = self._hidden(hidden).reshape(count, self._blocks, width).transpose(1, 0, 2)
        gates = hidden @ self._gates  # [g, N, 3U/g]
        gates += self._gates_bias
        both = _sigmoid(gates[..., : 2 * width])
        candidate = np.tanh(both[..., :width] * gates[..., 2 * width :])
        candidate -= blocks
        candidate *= both[..., width:]
        candidate += blocks
        return candidate.transpose(1, 0, 2).reshape(count, -1)


_ZERO = np.float32(0.0)


def _array(weight: Tensor) -> Array:
    """The same memory as an array."""
    return weight.detach().numpy()


def _sigmoid(x: Array) -> Array:
    y = np.negative(x)
    np.exp(y, out=y)
    y += 1.0
    return np.reciprocal(y, out=y)


class _NormAct:
    """RMSNorm and SiLU of layers side by side, ``[N, D]`` or, of several layers, ``[N, layers, D]``."""

    def __init__(self, layers: list[Any]) -> None:
        weight = np.stack([_array(layer.norm.weight) for layer in layers])
        # x / sqrt(|x|²/D + eps) = sqrt(D) x / sqrt(|x|² + D eps)
        self._scale = (weight[0] if len(layers) == 1 else weight) * np.float32(math.sqrt(weight.shape[-1]))
        self._floor = np.float32(weight.shape[-1] * layers[0].norm.eps)

    def __call__(self, x: Array) -> Array:
        squares = np.einsum("...i,...i->...", x, x)[..., None]
        squares += self._floor
        np.sqrt(squares, out=squares)
        x /= squares
        x *= self._scale
        return x * _sigmoid(x)


def _dense(layers: Any) -> Callable[[Array], Array]:
    """A stack of :class:`DenseNormAct` and plain linear layers as one function."""
    steps: list[tuple[Array, Array, _NormAct | None]] = []
    for layer in layers:
        linear, norm_act = layer, None
        if isinstance(layer, DenseNormAct):
            linear, norm_act = layer.linear, _NormAct([layer])
        steps.append((_array(linear.weight).T, _array(linear.bias), norm_act))

    def run(x: Array) -> Array:
        for weight, bias, norm_act in steps:
            x = x @ weight
            x += bias
            if norm_act is not None:
                x = norm_act(x)
        return x

    return run


def _reader(encoder: Any) -> Reader:
    """The encoder; one with images is called as it is."""
    if not encoder.images:
        return _vectors(encoder)
    return lambda observations: encoder.encode(observations).numpy()


def _knows_vectors(encoder: Any) -> bool:
    """Whether :func:`_vectors` can stand for the encoder's vector half; also where there is none."""
    if encoder.vector is None:
        return True
    return encoder.squash is symlog and _plain(encoder.vector)


def _vectors(encoder: Any) -> Reader:
    """The vector half of an encoder: floats next to each other are squashed together."""
    run, classes, events = _dense(encoder.vector), encoder.discrete, encoder.events

    def read(observations: Mapping[str, Tensor]) -> Array:
        if classes:
            parts = [flat_vector(observations[key], events[key], classes.get(key)) for key in events]
            return run(torch.cat(parts, -1).numpy())
        flat = [observations[key].float().unsqueeze(-1).flatten(1) for key in events]
        x = np.concatenate([vector.numpy() for vector in flat], -1)
        x[x == -np.inf] = 0.0  # missing
        y = np.abs(x)
        np.log1p(y, out=y)
        return run(np.copysign(y, x, out=y))

    return read


def _continuous(actor: ContinuousActor) -> Choice:
    """Bounded normals; the two output layers as one."""
    low, spread, size = np.float32(actor.low), np.float32(actor.high - actor.low), actor.action_dim
    weight = np.concatenate([_array(actor.mean.weight), _array(actor.std.weight)]).T
    bias = np.concatenate([_array(actor.mean.bias), _array(actor.std.bias) + np.float32(2.0)])

    def choose(hidden: Array, explore: bool) -> Array:
        both = hidden @ weight + bias
        mean = np.tanh(both[:, :size])
        if not explore:
            return mean
        return mean + (_sigmoid(both[:, size:]) * spread + low) * torch.randn(len(mean), size).numpy()

    return choose


def _discrete(actor: DiscreteActor) -> Choice:
    """A categorical with a share of the uniform."""
    weight, bias, mix = _array(actor.out.weight).T, _array(actor.out.bias), np.float32(actor.unimix)
    count = np.float32(len(bias))
    one_hot = np.eye(len(bias), dtype=np.float32)

    def choose(hidden: Array, explore: bool) -> Array:
        logits = hidden @ weight + bias
        if not explore:
            return one_hot.take(logits.argmax(-1), 0)
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        probs = odds / odds.sum(-1, keepdims=True) * (1 - mix) + mix / count
        index = (probs[:, :-1].cumsum(-1) <= torch.rand(len(probs), 1).numpy()).sum(-1)
        return one_hot.take(index, 0)

    return choose


def _plain(part: nn.Module) -> bool:
    """Whether a part is made of layers that are known here."""
    modules = list(part.modules())
    styles = [module.style for module in modules if isinstance(module, DenseNormAct)]
    return all(type(module) in KNOWN for module in modules) and all(map(_usual, styles))


def _usual(style: LayerStyle) -> bool:
    """Whether a layer has RMSNorm, SiLU and a bias, as all of today's DreamerV3 have."""
    return (style.norm, style.activation, style.bias) == ("rms", "silu", True)


def fuse(world_model: Any, actor: Any) -> FusedStep | None:
    """The fused acting step of these parts, or None where they are not all of the kinds it knows.

    It knows an :class:`~wmkit.dynamics.RSSM` that starts from zeros over a
    :class:`~wmkit.backbones.BlockGRU`, RMSNorm and SiLU throughout, weights in float32 on the CPU; an
    encoder with images is called as it is.

    Args:
        world_model: encoder and dynamics are read.
        actor: the policy over its features.

    >>> from torchrl.data import Composite, OneHot, Unbounded
    >>> from wmkit.systems import build
    >>> spec = {"observation_spec": Composite(observation=Unbounded((3,))), "action_spec": OneHot(2)}
    >>> names = "dreamer_v3", "dreamer_v3_2023"
    >>> systems = [build(name, overrides=["size=tiny"], **spec) for name in names]
    >>> [fuse(system.world_model, system.actor) is not None for system in systems]
    [True, False]
    """
    rssm = world_model.dynamics
    if type(rssm) is not RSSM or type(rssm.input) is not SplitInput or type(rssm.backbone) is not BlockGRU:
        return None
    if type(rssm.latent) is not CategoricalLatent or rssm.initial_state != "zeros":
        return None
    if isinstance(rssm.backbone.start, nn.Parameter):
        return None
    if not world_model.encoder.images and not _knows_vectors(world_model.encoder):
        return None
    if type(actor) not in (ContinuousActor, DiscreteActor):
        return None
    if not all(map(_plain, (rssm.input, rssm.posterior_in, rssm.posterior_out, actor.trunk))):
        return None
    entering = (rssm.backbone.belief_in, rssm.input.state, rssm.input.action)
    if len({layer.linear.out_features for layer in entering}) != 1 or not _usual(rssm.backbone.style):
        return None
    weights = (weight for module in (rssm, actor, world_model.encoder) for weight in module.parameters())
    if any(weight.dtype != torch.float32 or weight.device.type != "cpu" for weight in weights):
        return None
    with torch.no_grad():
        return FusedStep(world_model, actor)
