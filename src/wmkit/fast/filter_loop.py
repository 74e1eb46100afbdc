"""The filtering loop of today's DreamerV3 with its gradient written out.

Over a window the recurrent core and the posterior take B rows at a time, T times: some thirty
operations a step on a few numbers, where autograd's bookkeeping costs more than the arithmetic.
Here the whole loop is one operation to autograd (danijar/dreamerv3 e3f0224)::

    b, x = act(norm(W_u u)), act(norm(W_z z))         u, z masked where an episode starts
    h    = act(norm(W_h [u_k, b, x, a]))              a, the action's share, for all steps ahead
    u'   = u + σ(z_g) (tanh(σ(r) c) - u)              r, c, z_g = W_g h_k per block, z_g one lower
    l    = W_l act(norm(W_q u' + e))                  e, the embedding's share, too
    z'   ~ unimix(softmax(l))                         straight through

The backward pass walks the same steps in reverse; weights get their gradients once, from the rows
of all steps together. Same values as :meth:`RSSM.observe <wmkit.dynamics.RSSM.observe>` without it,
gradients up to rounding, in half the time on a CPU (``docs/performance.md``).

The parts of an RSSM are known by the names of their classes, since they live in rooms above this one:
another class, also a derived one, may compute something else and is left alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from wmkit.fast.products import linear, transposed_matmul
from wmkit.fast.switch import enabled

_silu_backward = torch.ops.aten.silu_backward
_tanh_backward = torch.ops.aten.tanh_backward
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input


def applies(rssm: Any) -> bool:
    """Whether the loop of ``rssm`` is the one above, in float32, and short cuts may be taken."""
    gru, layers = rssm.backbone, rssm.input
    names = [type(part).__name__ for part in (gru, layers, rssm.latent)]
    if names != ["BlockGRU", "SplitInput", "CategoricalLatent"]:
        return False
    dense = (gru.belief_in, layers.state, layers.action, rssm.posterior_in)
    linears = [*(layer.linear for layer in dense), rssm.posterior_out[0]]
    return (
        enabled(gru.gates.weight, everywhere=True)
        and gru.gates.weight.dtype == torch.float32
        and all(_is_known(layer.style) for layer in (gru, *dense))
        and len(rssm.posterior_out) == 1
        and all(type(layer).__name__ == "Linear" for layer in linears)
        and gru.belief_in.linear.out_features * 2 == gru.in_dim
    )


def _is_known(style: Any) -> bool:
    return style.norm == "rms" and style.activation == "silu" and style.bias


class Filtered(NamedTuple):
    """A window, filtered.

    Attributes:
        states: ``[B, T, G*C]`` one-hot samples with straight-through gradient.
        beliefs: ``[B, T, U]``.
        logits: ``[B, T, G, C]`` of the posterior.
        classes: ``[B, T, G]`` int64.
    """

    states: Tensor
    beliefs: Tensor
    logits: Tensor
    classes: Tensor


def run(
    rssm: Any, embed: Tensor, action: Tensor, is_init: Tensor, state: Tensor, belief: Tensor, noise: Tensor
) -> Filtered:
    """Filter a window; only where :func:`applies` is true.

    Args:
        rssm: whose weights to use.
        embed: ``[B, T, E]``.
        action: ``[B, T, A]`` that led there, clipped, zero where an episode starts.
        is_init: ``[B, T]`` bool.
        state: ``[B, G*C]`` before the window.
        belief: ``[B, U]`` before the window.
        noise: ``[B, T, G, 1]`` uniforms.
    """
    gru = rssm.backbone
    enter, posterior, out = rssm.input.state, rssm.posterior_in, rssm.posterior_out[0]
    width, units = gru.out_dim // gru.blocks, gru.out_dim
    own, shared = gru.hidden.weight.split([width, gru.hidden.weight.shape[1] - width], 1)
    dense = shared.transpose(0, 1).reshape(-1, units)  # rows of b, x, a
    step, ahead = dense.split([gru.in_dim, dense.shape[0] - gru.in_dim])
    carried, known = posterior.linear.weight.split([units, posterior.linear.weight.shape[1] - units], 1)
    lower = gru.gates.bias.new_zeros(3, 1)
    lower[2] = 1.0  # the update gate's sigmoid is taken of one less
    gates_bias = (gru.gates.bias.view(gru.blocks, 3, width) - lower).view(gru.blocks, 1, -1)
    inputs = _Inputs(
        torch.cat([state, belief], -1),
        torch.cat([rssm.initial(1).state, torch.tanh(gru.start).expand(1, -1)], -1),
        linear(rssm.input.action(action.transpose(0, 1)), ahead.t(), gru.hidden.bias),
        linear(embed.transpose(0, 1), known, posterior.linear.bias),
    )
    weights = _Weights(
        torch.stack([gru.belief_in.norm.weight, enter.norm.weight]),
        gru.belief_in.linear.weight,
        gru.belief_in.linear.bias,
        enter.linear.weight,
        enter.linear.bias,
        step,
        own,
        gru.norm.weight,
        gru.gates.weight,
        gates_bias,
        carried,
        posterior.norm.weight,
        out.weight,
        out.bias,
    )
    reset = is_init.t().unsqueeze(-1)  # [T, B, 1]
    eps = (enter.norm.eps, gru.norm.eps, posterior.norm.eps)
    parts = _Loop.apply(reset, noise.transpose(0, 1), eps, rssm.latent, *inputs, *weights)
    return Filtered(*(x.transpose(0, 1).contiguous() for x in parts))


class _Inputs(NamedTuple):
    """Everything that differs from window to window, time outermost."""

    before: Tensor  # [B, G*C + U] state and belief before the window
    start: Tensor  # [1, G*C + U] the same where an episode starts
    action: Tensor  # [T, B, U] share of the action in the hidden layer, with its bias
    embed: Tensor  # [T, B, H] share of the embedding in the posterior's, with its bias


class _Weights(NamedTuple):
    """As the loop reads them."""

    enter_norm: Tensor  # [2, H] of b and x
    belief: Tensor  # [H, U]
    belief_bias: Tensor
    state: Tensor  # [H, G*C]
    state_bias: Tensor
    shared: Tensor  # [2H, U] rows of b and x
    own: Tensor  # [g, U/g, U/g]
    hidden_norm: Tensor  # [U]
    gates: Tensor  # [g, U/g, 3U/g] reset, candidate, update
    gates_bias: Tensor  # [g, 1, 3U/g]
    posterior: Tensor  # [H, U] columns of u'
    posterior_norm: Tensor  # [H]
    logits: Tensor  # [G*C, H]
    logits_bias: Tensor


class _NormAct:
    """``act(norm(x))`` of T steps, forwards and backwards; what the way back needs is written to buffers.

    Args:
        like: ``[T, *B, D]``, for shapes.
        scale: ``[..., D]`` of the norm.
        eps: of the norm.
    """

    def __init__(self, like: Tensor, scale: Tensor, eps: float) -> None:
        self.scale, self.eps, self.dim = scale, eps, like.shape[-1]
        self.unit, self.raw, self.out = (torch.empty_like(like) for _ in range(3))
        self.rate = like.new_empty(*like.shape[:-1], 1)
        self._steps = [x.unbind() for x in (self.unit, self.raw, self.rate, self.out)]

    def forward(self, t: int, x: Tensor) -> Tensor:
        """``[*B, D] -> [*B, D]``."""
        unit, raw, rate, out = (steps[t] for steps in self._steps)
        torch.linalg.vecdot(x, x, out=rate.squeeze(-1))
        rate.div_(self.dim).add_(self.eps).rsqrt_()
        torch.mul(torch.mul(x, rate, out=unit), self.scale, out=raw)
        return torch.ops.aten.silu.out(raw, out=out)

    def backwards(self) -> None:
        """Make ready for :meth:`backward`."""
        self.grad = torch.empty_like(self.unit)  # of what is norm's output
        self.grad_in = torch.empty_like(self.unit)
        self._grads = self.grad.unbind(), self.grad_in.unbind()

    def backward(self, t: int, grad: Tensor) -> Tensor:
        """Gradient of the input from that of the output, ``[*B, D]`` each."""
        unit, raw, rate, _ = (steps[t] for steps in self._steps)
        inner, out = (steps[t] for steps in self._grads)
        scaled = _silu_backward.grad_input(grad, raw, grad_input=inner) * self.scale
        along = torch.linalg.vecdot(scaled, unit).unsqueeze(-1)
        torch.addcmul(scaled, unit, along, value=-1 / self.dim, out=out)
        return out.mul_(rate)

    def scale_grad(self) -> Tensor:
        """Gradient of :attr:`scale`, from all steps."""
        product = self.grad * self.unit
        return product.sum(tuple(range(product.ndim - self.scale.ndim)))


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        reset: Tensor,
        noise: Tensor,
        eps: tuple[float, ...],
        latent: Any,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, w = _Inputs(*tensors[:4]), _Weights(*tensors[4:])
        steps, rows, units = x.action.shape
        groups, classes, mix = latent.groups, latent.classes, latent.unimix
        size, blocks, hidden = groups * classes, len(w.own), w.belief.shape[0]

        def buffer(*shape: int) -> Tensor:
            return x.before.new_empty(steps, *shape)

        def by_block(whole: Tensor) -> Tensor:
            """``[.., B, U] -> [.., g, B, U/g]``, a view."""
            return whole.unflatten(-1, (blocks, -1)).transpose(-3, -2)

        read, beliefs, logits = buffer(rows, size + units), buffer(rows, units), buffer(rows, size)
        states = buffer(rows * groups, classes)
        soft, index = buffer(classes, rows * groups), noise.new_empty(steps, rows * groups, dtype=torch.long)
        gates = buffer(blocks, rows, 3 * units // blocks)
        opened, new, update = (buffer(blocks, rows, units // blocks) for _ in range(3))
        enter = _NormAct(buffer(rows, 2, hidden), w.enter_norm, eps[0])
        inner = _NormAct(buffer(rows, units), w.hidden_norm, eps[1])
        outer = _NormAct(buffer(rows, hidden), w.posterior_norm, eps[2])
        ctx.buffers = reset, read, soft, gates, opened, new, update, enter, inner, outer
        ctx.by_block, ctx.latent = by_block, latent

        into = x.before.new_empty(rows, 2, hidden)
        into_belief, into_state = into.unbind(1)
        w_belief, w_state, w_posterior, w_logits = w.belief.t(), w.state.t(), w.posterior.t(), w.logits.t()
        identity = torch.eye(classes, dtype=into.dtype, device=into.device)
        floor = into.new_full((), mix / classes)
        per_step = zip(
            reset, noise.flatten(1), x.action, x.embed, read, beliefs, by_block(beliefs), logits, states,
            soft, index, gates, *gates.chunk(3, -1), opened, new, update, strict=True,
        )  # fmt: skip
        carried = x.before
        for t, (
            reset_t, noise_t, action_t, embed_t, read_t, belief_t, belief_b, logits_t, state_t, soft_t,
            index_t, gates_t, reset_g, candidate_g, update_g, opened_t, new_t, update_t,
        ) in enumerate(per_step):  # fmt: skip
            torch.where(reset_t, x.start, carried, out=read_t)
            state, belief = read_t[:, :size], read_t[:, size:]
            torch.addmm(w.belief_bias, belief, w_belief, out=into_belief)
            torch.addmm(w.state_bias, state, w_state, out=into_state)
            h = torch.addmm(action_t, enter.forward(t, into).view(rows, -1), w.shared)
            before_b = by_block(belief)
            by_block(h).add_(torch.bmm(before_b, w.own))
            torch.baddbmm(w.gates_bias, by_block(inner.forward(t, h)), w.gates, out=gates_t)
            torch.sigmoid(reset_g, out=opened_t)
            torch.mul(opened_t, candidate_g, out=new_t).tanh_()
            torch.sigmoid(update_g, out=update_t)
            torch.lerp(before_b, new_t, update_t, out=belief_b)
            h = outer.forward(t, torch.addmm(embed_t, belief_t, w_posterior))
            torch.addmm(w.logits_bias, h, w_logits, out=logits_t)
            by_class = logits_t.view(-1, classes).t().contiguous()  # [C, B*G]: long rows, not short ones
            torch.softmax(by_class, 0, out=soft_t)
            below = torch.add(floor, soft_t, alpha=1.0 - mix)[:-1].cumsum(0) <= noise_t
            torch.sum(below, 0, out=index_t)
            torch.index_select(identity, 0, index_t, out=state_t)
            carried = torch.cat([state_t.view(rows, size), belief_t], -1)
        # What is returned must not lie in ctx itself: it would never be freed.
        ctx.save_for_backward(beliefs, *w)
        states = states.view(steps, rows, size)
        index = index.view(steps, rows, groups)
        ctx.mark_non_differentiable(index)
        ctx.set_materialize_grads(False)
        return states, beliefs, logits.view(steps, rows, groups, classes), index

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, d_states: Tensor | None, d_beliefs: Tensor | None, d_logits: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        beliefs, *weights = ctx.saved_tensors
        w, by_block, latent = _Weights(*weights), ctx.by_block, ctx.latent
        reset, read, soft, gates, opened, new, update, enter, inner, outer = ctx.buffers
        steps, rows, units = beliefs.shape
        size, hidden = latent.groups * latent.classes, w.belief.shape[0]
        d_out = beliefs.new_zeros(steps, rows, size)
        d_states = torch.zeros_like(d_out) if d_states is None else d_states.contiguous()
        d_beliefs = torch.zeros_like(beliefs) if d_beliefs is None else d_beliefs.contiguous()
        if d_logits is not None:
            d_out.copy_(d_logits.flatten(2))
        d_gates, d_read = torch.empty_like(gates), torch.empty_like(read)
        by_class = d_out.view(steps, -1, latent.classes).transpose(1, 2)  # [T, C, B*G]
        for layer in (enter, inner, outer):
            layer.backwards()
        going_on = (~reset).float()
        w_own, w_gates, w_shared = (y.mT.contiguous() for y in (w.own, w.gates, w.shared))
        before = by_block(read[..., size:])
        per_step = list(
            zip(
                d_states, d_beliefs, d_out, by_class, soft, gates.chunk(3, -1)[1], d_gates,
                *d_gates.chunk(3, -1), opened, new, update, before, d_read, going_on, strict=True,
            )
        )  # fmt: skip
        d_carried = torch.zeros_like(read[0])
        for t in range(steps - 1, -1, -1):
            (
                d_state, d_belief, d_out_t, d_logits_t, soft_t, candidate, d_gates_t, d_reset, d_candidate,
                d_update, opened_t, new_t, update_t, before_t, d_read_t, going_on_t,
            ) = per_step[t]  # fmt: skip
            d_soft = torch.add(d_state, d_carried[:, :size]).view(-1, latent.classes).t()  # [C, B*G]
            d_soft = d_soft - (d_soft * soft_t).sum(0)
            d_logits_t.addcmul_(d_soft, soft_t, value=1.0 - latent.unimix)
            d_pre = outer.backward(t, d_out_t @ w.logits)
            d_new = torch.addmm(d_belief, d_pre, w.posterior).add_(d_carried[:, size:])
            d_new = by_block(d_new)
            through = d_new * update_t
            inside = _tanh_backward(through, new_t)
            _sigmoid_backward(inside * candidate, opened_t, grad_input=d_reset)
            torch.mul(inside, opened_t, out=d_candidate)
            _sigmoid_backward((new_t - before_t).mul_(d_new), update_t, grad_input=d_update)
            d_before = d_new.sub_(through)
            d_hidden = torch.bmm(d_gates_t, w_gates).transpose(0, 1).reshape(rows, units)
            d_pre = inner.backward(t, d_hidden)
            d_before.add_(torch.bmm(by_block(d_pre), w_own))
            d_enter = enter.backward(t, (d_pre @ w_shared).view(rows, 2, hidden))
            torch.mm(d_enter[:, 1], w.state, out=d_read_t[:, :size])
            torch.addmm(
                d_before.transpose(0, 1).reshape(rows, units), d_enter[:, 0], w.belief, out=d_read_t[:, size:]
            )
            d_carried = d_read_t * going_on_t

        def rows_of(x: Tensor) -> Tensor:
            return x.reshape(-1, x.shape[-1])

        def product(grad: Tensor, x: Tensor) -> Tensor:
            return transposed_matmul(rows_of(grad), rows_of(x))

        def block_product(x: Tensor, grad: Tensor) -> Tensor:
            """``[T, g, B, I]`` and ``[T, g, B, O]`` to ``[g, I, O]``."""
            x, grad = (y.transpose(0, 1).flatten(1, 2) for y in (x, grad))
            return torch.stack([transposed_matmul(*pair) for pair in zip(x, grad, strict=True)])

        start = torch.where(reset, d_read, 0.0).sum((0, 1)).unsqueeze(0) if ctx.needs_input_grad[5] else None
        inputs = _Inputs(d_carried, start, inner.grad_in, outer.grad_in)  # type: ignore[arg-type]
        d_belief_in, d_state_in = enter.grad_in.unbind(2)
        weights = _Weights(
            enter.scale_grad(),
            product(d_belief_in, read[..., size:]),
            d_belief_in.sum((0, 1)),
            product(d_state_in, read[..., :size]),
            d_state_in.sum((0, 1)),
            product(enter.out.flatten(2), inner.grad_in),
            block_product(before, by_block(inner.grad_in)),
            inner.scale_grad(),
            block_product(by_block(inner.out), d_gates),
            d_gates.sum((0, 2)).unsqueeze(1),
            product(outer.grad_in, beliefs),
            outer.scale_grad(),
            product(d_out, outer.out),
            d_out.sum((0, 1)),
        )
        return None, None, None, None, *inputs, *weights
