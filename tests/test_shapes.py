"""Public functions broadcast nothing: what does not fit is named, with what was wanted."""

from __future__ import annotations

import pytest
import torch

from wmkit import backbones
from wmkit import functional as fn
from wmkit import nn as wnn
from wmkit.dynamics import RSSM
from wmkit.errors import SpecError

B, T, G, C = 3, 4, 2, 5
one, row, flat = torch.ones(B, T, 1), torch.ones(B, 1), torch.ones(B)
probs = torch.full((B, G, C), 1 / C)
bins = fn.symmetric_bins(20.0, 7)
DEFAULT = {"gamma": 0.9, "lmbda": 0.9}


def jumpy(reward=one, steps=one, **factors):
    return fn.lambda_return_jumpy(
        reward, reward, reward, steps, torch.zeros_like(reward), **(DEFAULT | factors)
    )


BAD = {
    "λ-return of [B, T]": lambda: jumpy(one[..., 0], one[..., 0]),
    "γ of [T]": lambda: jumpy(gamma=torch.full((T,), 0.9)),
    "λ of [B, T, T]": lambda: jumpy(lmbda=torch.full((B, T, T), 0.9)),
    "γ of 5": lambda: jumpy(gamma=5),
    "λ below zero": lambda: jumpy(lmbda=-0.1),
    "jumps of no step": lambda: jumpy(steps=0 * one),
    "replay of [B, T]": lambda: fn.replay_lambda_return(*[one[..., 0]] * 4, **DEFAULT),
    "sum without end": lambda: fn.discount_sum(one, 1.0),
    "discount of [T]": lambda: fn.discount_sum(one, torch.full((T,), 0.9)),
    "share above one": lambda: fn.unimix_probs(probs, 1.5),
    "one uniform for all": lambda: fn.sample_index(probs, torch.rand(B, 1, 1)),
    "KL of one to many": lambda: fn.categorical_kl(probs, probs[:1]),
    "KL of logits": lambda: fn.categorical_kl_logits(probs, probs[:, :1]),
    "KL of normals": lambda: fn.gaussian_kl(torch.ones(B, 2, C), torch.ones(1, 2, C)),
    "target of another row": lambda: fn.two_hot_cross_entropy(torch.zeros(B, 7), torch.zeros(1), bins),
    "other bins": lambda: fn.two_hot_mean(torch.full((B, 9), 1 / 9), bins),
    "even bins": lambda: fn.symmetric_bins(20.0, 6),
    "scan with one reset": lambda: fn.linear_scan(
        torch.ones(2), torch.ones(B, T, 2), torch.ones(B, 2), torch.zeros(1, T, dtype=torch.bool)
    ),
    "two-hot target [B]": lambda: wnn.SymlogTwoHot(torch.zeros(B, 7), bins).loss(flat),
    "two-hot target [1, 1]": lambda: wnn.SymexpTwoHot(torch.zeros(B, 7), bins).loss(row[:1]),
    "two-hot target [B, 2]": lambda: wnn.SymexpTwoHot(torch.zeros(B, 7), bins).loss(torch.ones(B, 2)),
    "error to [1, D]": lambda: wnn.SquaredError(torch.zeros(B, 7), 1).loss(torch.zeros(1, 7)),
    "flag [B]": lambda: wnn.Bernoulli(row).loss(flat),
    "classes [1]": lambda: wnn.Categorical(torch.zeros(B, C), 0).loss(torch.zeros(1)),
    "action [1, A]": lambda: wnn.OneHotCategorical(torch.zeros(B, C)).log_prob(torch.zeros(1, C)),
    "normal [1, A]": lambda: wnn.BoundedNormal(*torch.zeros(2, B, C)).log_prob(torch.zeros(1, C)),
    "noise [1, A]": lambda: wnn.TruncatedNormal(*torch.zeros(2, B, C)).sample(torch.zeros(1, C)),
    "spread [1, A]": lambda: wnn.TanhNormal(torch.zeros(B, C), torch.zeros(1, C)),
}


@pytest.mark.parametrize("name", BAD)
def test_nothing_is_broadcast(name: str) -> None:
    with pytest.raises(SpecError, match=r": wanted .*; "):
        BAD[name]()


@pytest.mark.parametrize("name", backbones.available_backbones())
def test_a_scan_takes_resets_and_carries_of_its_own_batch(name: str) -> None:
    model = backbones.build(name, 6, 16)
    x, reset = torch.zeros(B, T, 6), torch.zeros(B, T, dtype=torch.bool)
    model.scan(x, model.initial(B), reset)
    for call in (
        lambda: model.scan(x, None, reset[:1]),
        lambda: model.scan(x, model.initial(1), reset),
        lambda: model.scan(x[:, 0], None, reset),
        lambda: model.scan(x[..., :5], None, reset),
        lambda: model.step(x[:, 0], model.initial(1), reset[:, 0]),
        lambda: model.step(x[:, 0], model.initial(B), reset[:1, 0]),
    ):
        with pytest.raises(SpecError, match=r": wanted .*; "):
            call()


def test_dynamics_take_records_of_one_batch_and_length() -> None:
    rssm = RSSM(
        2, 7, backbone=lambda **o: backbones.build("gru", **o), deter=16, groups=4, classes=5, hidden=8
    )
    embed = torch.zeros(B, T, 7)
    record = {"previous_action": torch.zeros(B, T, 2), "is_init": torch.zeros(B, T, dtype=torch.bool)}
    rssm.observe(embed, record, rssm.initial(B))
    for bad in (
        {"is_init": record["is_init"][:1]},
        {"previous_action": record["previous_action"][:, :1]},
        {"previous_action": torch.zeros(B, T, 3)},
    ):
        with pytest.raises(SpecError, match=r": wanted .*; "):
            rssm.observe(embed, record | bad)
    with pytest.raises(SpecError, match=r"state of shape .1, 20.: wanted"):
        rssm.observe(embed, record, rssm.initial(1))
    with pytest.raises(SpecError, match=r"action of shape"):
        rssm.step(rssm.initial(B), torch.zeros(1, 2))


def test_checks_are_seen_through_by_a_compiler() -> None:
    compiled = torch.compile(jumpy, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(one, 2 * one), jumpy(one, 2 * one))
