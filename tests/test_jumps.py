"""Running thresholds, the zoomed view and jump labels; gates of the intrinsic reward."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wmkit.affordance import ClipReward, DenseGate, PotentialGate, RecordGate
from wmkit.affordance.labels.jumps import JumpLabeller, RunningStatistics, zoom_view
from wmkit.affordance.mask import MaskAffordance
from wmkit.errors import ConfigError

SIZE = (160, 256)


def blob(x, y, sx=12.0, sy=10.0, height=1.0):
    rows, columns = torch.meshgrid(torch.arange(160.0), torch.arange(256.0), indexing="ij")
    return height * torch.exp(-((columns - x) ** 2 / (2 * sx**2) + (rows - y) ** 2 / (2 * sy**2)))


# --- statistics ---------------------------------------------------------------------------------


def test_statistics_are_population_moments_of_the_lifetime_per_stream():
    values = torch.rand(50, 3, 2)
    statistics = RunningStatistics(2)
    for t, value in enumerate(values):
        mean, std = statistics.update(value)
        past = values[: t + 1].double()
        torch.testing.assert_close(mean, past.mean(0), atol=1e-12, rtol=0)
        torch.testing.assert_close(std, past.std(0, correction=0), atol=1e-12, rtol=0)
    statistics.update(torch.tensor([[9.0, 8.0]]), torch.tensor([1]))  # only the second stream
    assert statistics.count.tolist() == [50, 51, 50]
    mean, std = statistics.read()
    everything = torch.cat((values.flatten(0, 1), torch.tensor([[9.0, 8.0]]))).double()
    torch.testing.assert_close(mean, everything.mean(0))
    torch.testing.assert_close(std, everything.std(0, correction=0))


def test_statistics_with_decay_weigh_the_past():
    decay, values = 0.9, torch.rand(30)
    statistics = RunningStatistics(decay=decay)
    for value in values:
        mean, std = statistics.update(value[None, None])
    weight = decay ** torch.arange(29, -1, -1.0, dtype=torch.float64)
    weight /= weight.sum()
    want = (weight * values).sum()
    assert mean.item() == pytest.approx(want.item())
    assert std.item() == pytest.approx((weight * (values - want) ** 2).sum().sqrt().item())


def test_statistics_travel_through_state_dict_to_any_number_of_streams():
    trained = RunningStatistics()
    values = torch.rand(20, 4, 1)
    for value in values:
        trained.update(value)
    same, single = RunningStatistics(), RunningStatistics()
    for statistics in (same, single):
        statistics.load_state_dict(trained.state_dict())
    extra = torch.rand(4, 1)
    assert torch.equal(torch.stack(same.update(extra)), torch.stack(trained.update(extra)))
    mean, _ = single.update(extra[:1])  # one evaluation environment continues the merged statistics
    assert mean.item() == pytest.approx(torch.cat((values.flatten(), extra[0])).double().mean().item())


# --- zoom and labels ----------------------------------------------------------------------------


def test_zoom_view_is_the_truncated_bilinear_crop():
    frame = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)
    view = zoom_view(frame, 30, 40, 25, 41)
    crop = frame[None, :, 30:55, 40:81].double()
    want = F.interpolate(crop, SIZE, mode="bilinear", align_corners=False)[0]
    lost = want - view  # truncation loses less than one grey level; a float error must not lose a whole one
    assert lost.min() > -2e-4 and lost.max() < 1 - 5e-5
    constant = torch.full((3, *SIZE), 99, dtype=torch.uint8)
    assert torch.equal(zoom_view(constant, 3, 5, 37, 61), constant)


def test_thresholds_are_strict_and_include_the_current_value():
    labeller = JumpLabeller()
    probability = torch.tensor([[0.5, 0.5, 0.5, 0.9, 0.4]])
    score = torch.tensor([[0.1, 0.1, 0.3, 0.1, 0.1]])
    passed, bar = labeller.thresholds(probability, score)
    assert passed.tolist() == [[False, False, False, True, False]]  # equal to the threshold does not pass
    for t in range(5):
        want = float(score[0, t]) + 2 * np.std(score[0, : t + 1].numpy())
        assert bar[0, t].item() == pytest.approx(want, abs=1e-6)


def test_kurtosis_option_reaches_the_probability():
    wave = 0.3 + 0.2 * torch.sin(torch.arange(256.0) / 40) * torch.cos(torch.arange(160.0) / 30)[:, None]
    excess, raw = (JumpLabeller(kurtosis=k).probability(wave[None]).item() for k in ("excess", "raw"))
    assert excess == pytest.approx(0.073509, abs=2e-6) and raw == pytest.approx(0.184237, abs=2e-6)
    with pytest.raises(ConfigError, match="fisher"):
        JumpLabeller(kurtosis="fisher")


def test_zoom_labels_only_what_passed_and_rises():
    """Four records: a clear blob; the same, not passed; nothing to zoom at; a rise short of the bar."""
    maps = torch.stack((blob(140, 70), blob(140, 70), torch.full(SIZE, 0.5), blob(140, 70)))
    frames = torch.randint(0, 256, (4, 3, *SIZE), dtype=torch.uint8)
    seen = []

    def predict(views):
        seen.append(views)
        return torch.full((len(views), *SIZE), 0.6)

    passed = torch.tensor([True, False, True, True])
    bar = torch.tensor([0.6, 0.0, 0.0, 0.7])
    zooms = JumpLabeller().zoom(frames, frames, maps, passed, bar - 1e-6, predict)
    assert [len(views) for views in seen] == [2]  # the second pass saw the two that had a window
    assert zooms.is_zoomed.tolist() == zooms.jump.tolist() == [True, False, False, False]
    assert zooms.rows.tolist() == [0] and torch.equal(zooms.pixels, seen[0][:1])
    assert zooms.score.tolist() == pytest.approx([0.6, 0, 0, 0]) and zooms.affordance.shape == (1, *SIZE)
    assert 0.5 < zooms.value[0].item() <= 1.0 and not zooms.value[1:].any()


def test_a_blob_at_the_edge_zooms_but_does_not_jump():
    maps, frames = blob(240, 150)[None], torch.zeros(1, 3, *SIZE, dtype=torch.uint8)
    yes, bar = torch.tensor([True]), torch.tensor([0.1])
    zooms = JumpLabeller().zoom(frames, frames, maps, yes, bar, lambda views: torch.ones(len(views), *SIZE))
    assert zooms.is_zoomed.item() and not zooms.jump.item()


def test_mask_affordance_scores_rise_as_the_object_grows():
    model, labeller, scores = MaskAffordance(), JumpLabeller(), []
    for half in (0, 2, 8, 20, 60):
        mask = torch.zeros(1, 1, *SIZE, dtype=torch.bool)
        mask[..., 80 - half : 80 + half, 128 - half : 128 + half] = True
        maps = model.predict(mask)
        assert maps.amax().item() == pytest.approx(float(half > 0), abs=1e-5)
        scores.append(labeller.score(maps).item())
    assert scores == sorted(scores) and scores[0] == 0.0


# --- gates --------------------------------------------------------------------------------------


def run(gate, scores, *, terminated=False):
    memory, paid = torch.zeros(1), []
    for t, score in enumerate(scores):
        end = torch.tensor([terminated and t == len(scores) - 1])
        payment, memory = gate(torch.tensor([score]), memory, torch.tensor([t == 0]), end)
        paid.append(payment.item())
    return paid


def test_record_gate_pays_the_score_of_new_records_only():
    scores = [0.2, 0.2, 0.1, 0.5, 0.4, 0.6]
    assert run(RecordGate(), scores) == pytest.approx([0.2, 0, 0, 0.5, 0, 0.6])
    assert run(DenseGate(), scores) == pytest.approx(scores)
    both = torch.tensor([0.4, 0.6]), torch.tensor([0.5, 0.5])  # zoomed scores against the real record
    valid, zero = torch.tensor([True, True]), torch.zeros(2)
    paid, memory = RecordGate().zoomed(both[0], both[1], both[1], zero, valid)
    assert paid.tolist() == memory.tolist() == pytest.approx([0.0, 0.6])
    paid, _ = RecordGate().zoomed(both[0], both[1], both[1], memory, valid)
    assert paid.tolist() == [0.0, 0.0]  # the zoomed record stands


@pytest.mark.parametrize("terminated", [False, True])
def test_potential_gate_telescopes(terminated):
    gamma, scores = 0.9, torch.rand(12).tolist()
    paid = run(PotentialGate(gamma), scores, terminated=terminated)
    total = sum(gamma**t * x for t, x in enumerate(paid[1:]))
    last = 0.0 if terminated else gamma**11 * scores[-1]
    assert paid[0] == 0.0 and total == pytest.approx(last - scores[0], abs=1e-6)


class Brightness:
    """A scorer whose logit is a weighted sum over the window, so that order and zeros show."""

    def encode(self, images):
        return images.float().mean((1, 2, 3))[:, None]

    def pool(self, features, prompts):
        return (features[..., 0] * torch.linspace(0.5, 2, 16)).sum(1, keepdim=True)


@pytest.mark.parametrize("fast", [True, False])
def test_clip_reward_equals_a_ring_of_features(fast):
    scorer = Brightness()

    def slow(clips, prompts):
        return scorer.pool(clips.float().mean((2, 3, 4))[..., None], prompts)

    reward = ClipReward(scorer if fast else slow, "x")
    images = torch.randint(0, 5, (2, 40, 3, 4, 4), dtype=torch.uint8)
    is_init = torch.zeros(2, 40, dtype=torch.bool)
    is_init[0, [0, 25]] = is_init[1, [0, 3]] = True
    want = torch.zeros(2, 40)
    for e in range(2):
        ring = [0.0] * 16
        for t in range(40):
            if is_init[e, t]:
                ring = [0.0] * 16  # the reset frame is not encoded, and its score is 0
                continue
            ring = [*ring[1:], images[e, t].float().mean().item()]
            logit = sum(w * x for w, x in zip(torch.linspace(0.5, 2, 16).tolist(), ring, strict=True))
            want[e, t] = 1 / (1 + math.exp(-1.2 * (logit - 21.8)))
    at_once, _ = reward(images, is_init, None)
    torch.testing.assert_close(at_once, want, atol=1e-5, rtol=1e-4)
    history, pieces = None, []
    for part in (slice(0, 1), slice(1, 2), slice(2, 21), slice(21, 40)):
        score, history = reward(images[:, part], is_init[:, part], history)
        pieces.append(score)
    torch.testing.assert_close(torch.cat(pieces, 1), at_once)
