"""Fitting an affordance U-Net: it learns, it resumes exactly, it reports."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from wmkit.affordance import AffordanceDataset, SmallUNet, collect_frames, fit_affordance, label_frames
from wmkit.affordance.unet.agreement import agreement, truth
from wmkit.affordance.unet.augment import RandomAffine
from wmkit.affordance.unet.recipes import RECIPES, poly_decay
from wmkit.errors import CheckpointError, ConfigError, NonFiniteLossError, SpecError

SIZE = (32, 64)


def scene(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise with a red square in it; the label is bright around the square."""
    random = torch.Generator().manual_seed(seed)
    frames = torch.randint(60, 140, (n, 3, *SIZE), generator=random, dtype=torch.uint8)
    masks = torch.zeros(n, *SIZE, dtype=torch.bool)
    for i in range(n):
        y, x = (int(torch.randint(2, size - 10, (), generator=random)) for size in SIZE)
        masks[i, y : y + 8, x : x + 8] = True
    frames[:, 0][masks] = 250
    frames[:, 1][masks] = 10
    labels = label_frames(masks[:, None].float(), lambda m: 0.9 * m[:, 0])
    return frames, labels, masks


def small(text_dim: int = 4) -> SmallUNet:
    torch.manual_seed(0)
    return SmallUNet(widths=(8, 16), depths=(0, 1), image_size=SIZE, text_dim=text_dim, blur=(1, 1))


def test_small_unet_learns_where_the_square_is(tmp_path):
    frames, labels, masks = scene(40)
    recipe = replace(RECIPES["small"], lr=1e-2, augment=RandomAffine(affine=0.0))
    report = fit_affordance(
        small(), frames, labels, torch.ones(4), masks=masks, how=recipe, iterations=80, panels=4
    )
    first, last = report.loss[0][1], sum(value for _, value in report.loss[-5:]) / 5
    assert last < 0.2 * first
    assert report.agreement["correlation"] > 0.7 and report.agreement["mae"] < 0.05
    assert report.truth["window_hit_rate"] > 0.7 > report.truth["window_chance"]
    assert report.label_truth["peak_hit_rate"] == 1.0
    assert report.panels["frame"].shape == (4, 3, *SIZE) and report.panels["mask"].dtype == torch.bool
    report.save(tmp_path)
    assert json.loads((tmp_path / "fit_report.json").read_text())["iterations"] == 80
    assert (tmp_path / "panels.npz").is_file()


def test_text_tells_prompts_apart():
    """Two prompts ask the same frames for different things."""
    frames, labels, _ = scene(24)
    text = torch.tensor([[3.0, 0, 0, 0], [0, 3.0, 0, 0]])
    both = torch.cat([labels, torch.zeros_like(labels)])
    index = torch.arange(48) // 24
    recipe = replace(RECIPES["small"], lr=1e-2, augment=RandomAffine(affine=0.0), focus=0.0)
    model = small()
    fit_affordance(model, frames.repeat(2, 1, 1, 1), both, text, text_index=index, how=recipe, iterations=80)
    asked, other = model.predict(frames, text[0]).amax((1, 2)), model.predict(frames, text[1]).amax((1, 2))
    assert (asked > other).float().mean() > 0.9


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path):
    frames, labels, _ = scene(20)

    def run(checkpoint=None, progress=None):
        model = small()
        report = fit_affordance(
            model,
            frames,
            labels,
            torch.ones(4),
            iterations=8,
            checkpoint=checkpoint,
            checkpoint_every=3,
            progress=progress,
        )
        return model, report

    def stop_at_five(done, total, numbers):
        if done == 5:
            raise KeyboardInterrupt

    whole, report = run()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "fit.pt", stop_at_five)
    torch.manual_seed(77)  # the state of the global generator must not matter
    torch.rand(3)
    parts, resumed = run(tmp_path / "fit.pt")
    for name, value in whole.state_dict().items():
        assert parts.state_dict()[name].equal(value), name
    assert resumed.iterations == 8 and [i for i, _ in resumed.loss] == [i for i, _ in report.loss]

    again, _ = run(tmp_path / "fit.pt")  # finished: nothing left to do
    assert again.stem.weight.equal(whole.stem.weight)


def test_bad_checkpoint(tmp_path):
    frames, labels, _ = scene(20)
    fit_affordance(small(), frames, labels, torch.ones(4), iterations=1, checkpoint=tmp_path / "fit.pt")
    with pytest.raises(CheckpointError, match="its seed is 0, wanted 1"):
        fit_affordance(
            small(), frames, labels, torch.ones(4), iterations=1, checkpoint=tmp_path / "fit.pt", seed=1
        )
    state = torch.load(tmp_path / "fit.pt", weights_only=True)
    for change in ({"model": {}}, {"iteration": "many"}, {"loss": 3}, {"optimiser": []}, {"identity": 1}):
        torch.save({**state, **change}, tmp_path / "fit.pt")
        with pytest.raises(CheckpointError, match="wanted"):
            fit_affordance(
                small(), frames, labels, torch.ones(4), iterations=1, checkpoint=tmp_path / "fit.pt"
            )
    (tmp_path / "fit.pt").write_bytes(b"noise")
    with pytest.raises(CheckpointError, match="cannot be read"):
        fit_affordance(small(), frames, labels, torch.ones(4), iterations=1, checkpoint=tmp_path / "fit.pt")


def test_published_recipe_and_budget(monkeypatch):
    frames, labels, _ = scene(10)
    recipe = RECIPES["published"]
    assert (recipe.lr, recipe.batch_size, recipe.epochs) == (0.01, 24, 200)
    assert recipe.with_batch(12).lr == 0.005 and poly_decay(0.0) == 1 and poly_decay(1.0) == 0
    optimiser = recipe.optimiser(small().parameters(), recipe.lr)
    assert optimiser.defaults["momentum"] == 0.9 and optimiser.defaults["weight_decay"] == 1e-4
    looks = itertools.count()  # every look at the clock is an eighth of a second after the one before
    monkeypatch.setattr("wmkit.affordance.unet.fit.time", SimpleNamespace(monotonic=lambda: next(looks) / 8))
    report = fit_affordance(small(), frames, labels, torch.ones(4), how="published", budget=0.3)
    assert (report.iterations, report.seconds) == (3, 0.375)


def test_augmentation_moves_frame_and_map_alike():
    _, _, masks = scene(6)
    maps = masks[:, None].float()
    moved, moved_maps = RandomAffine(affine=1.0)(
        maps.expand(-1, 3, -1, -1), maps, torch.Generator().manual_seed(1)
    )
    torch.testing.assert_close(moved[:, :1], moved_maps)
    assert (moved_maps - maps).abs().amax((1, 2, 3)).min() > 0.5
    none = RandomAffine(flip=0.0, affine=0.0)(maps.expand(-1, 3, -1, -1), maps, torch.Generator())
    torch.testing.assert_close(none[1], maps, atol=1e-4, rtol=0)
    flipped = RandomAffine(flip=1.0, affine=0.0)(maps.expand(-1, 3, -1, -1), maps, torch.Generator())
    torch.testing.assert_close(flipped[1], maps.flip(-1), atol=1e-4, rtol=0)


def test_dataset_on_disk(tmp_path):
    frames, labels, masks = scene(20)
    AffordanceDataset(frames, labels, torch.ones(4), None, masks).save(tmp_path)
    data = AffordanceDataset.load(tmp_path)
    assert len(data) == 20 and data.frames.equal(frames) and data.masks.equal(masks)
    train, held = data.split(0.1)
    assert held.tolist() == [18, 19] and len(train) == 18  # the last in time


def test_agreement_of_known_maps():
    label = torch.zeros(2, 32, 64)
    label[0, 8:24, 20:44] = 1.0
    shifted = label.roll(12, -1)
    same, moved = agreement(label, label), agreement(shifted, label)
    assert same["iou"] == 1 and same["mae"] == 0
    assert moved["iou"] == pytest.approx(1 / 3) and moved["mae"] == pytest.approx(2 * 12 * 16 / label.numel())
    against = truth(label, label > 0)
    assert against["visible"] == 0.5 and against["window_hit_rate"] == 1 and against["absent_peak"] == 0


def make_env():
    from tensordict import TensorDict
    from torchrl.data import Bounded, Composite, OneHot, Unbounded
    from torchrl.envs import EnvBase

    class Counting(EnvBase):
        def __init__(self):
            super().__init__(batch_size=[2])
            self.observation_spec = Composite(
                frame=Bounded(0, 255, (2, 3, 4, 8), dtype=torch.uint8),
                goal_mask=Bounded(0, 1, (2, 1, 4, 8), dtype=torch.bool),
                shape=(2,),
            )
            self.action_spec = OneHot(12, (2, 12))
            self.reward_spec = Unbounded((2, 1))

        def _observe(self):
            frame = self.count.to(torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 8).clone()
            return {"frame": frame, "goal_mask": frame[:, :1] % 2 == 0}

        def _reset(self, tensordict=None, **_):
            self.count = torch.zeros(2)
            return TensorDict(self._observe(), [2])

        def _step(self, tensordict):
            self.count = self.count + 1
            zero = torch.zeros(2, 1, dtype=torch.bool)
            return TensorDict(
                {**self._observe(), "reward": torch.zeros(2, 1), "done": zero, "terminated": zero}, [2]
            )

        def _set_seed(self, seed):
            pass

    return Counting()


def test_collect_counts_images(tmp_path):
    frames, masks, steps = collect_frames(make_env(), 9, save_probability=0.25, path=tmp_path)
    assert frames.shape == (9, 3, 4, 8) and masks.shape == (9, 4, 8) and 9 < steps < 200
    assert (frames[:, 0, 0, 0] > 0).all()  # never a reset frame
    assert masks.equal(frames[:, 0] % 2 == 0)
    again = collect_frames(make_env(), 9, save_probability=0.25)
    assert again.frames.equal(frames) and again.steps == steps
    with pytest.raises(ConfigError, match="save_probability=0"):
        collect_frames(make_env(), 9, save_probability=0)


def test_bad_input():
    frames, labels, masks = scene(4)
    fit = {"iterations": 1, "how": "small"}
    with pytest.raises(SpecError, match=r"labels are torch.float32"):
        fit_affordance(small(), frames, labels.float(), torch.ones(4), **fit)
    with pytest.raises(SpecError, match="masks have shape"):
        fit_affordance(small(), frames, labels, torch.ones(4), masks=masks[:, None], **fit)
    with pytest.raises(SpecError, match="text features have shape"):
        fit_affordance(small(), frames, labels, torch.ones(5), **fit)
    with pytest.raises(ConfigError, match="recipe 'big' is unknown"):
        fit_affordance(small(), frames, labels, torch.ones(4), how="big")
    broken = small()
    torch.nn.init.constant_(broken.output.weight, float("nan"))
    with pytest.raises(NonFiniteLossError, match="iteration 0"):
        fit_affordance(
            broken,
            frames,
            labels,
            torch.ones(4),
            how=replace(RECIPES["small"], loss=lambda p, y: p.mean()),
            iterations=1,
        )
