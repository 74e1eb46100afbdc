"""Scorers: label formula, calibration, the embedded model end to end on toy worlds, CLIP from a folder."""

from __future__ import annotations

import math
import socket

import pytest
import torch
from torch import Tensor

from wmkit.affordance.labels.virtual_exploration import VirtualExploration
from wmkit.affordance.scorers import ClipSource, EmbeddedScorer, LabelScorer, build_scorer
from wmkit.affordance.scorers.clips import GROWN, MOTIONS, UNCHANGED, make_clips
from wmkit.affordance.scorers.embedded import info_nce
from wmkit.affordance.scorers.scorer import fit_affine
from wmkit.errors import CheckpointError, MissingWeightsError, SpecError
from wmkit.systems import compose
from wmkit.training import fit_only


def toy_frames(count: int, seed: int = 0, size: tuple[int, int] = (160, 256)) -> tuple[Tensor, Tensor]:
    """Sky over noisy ground with one red goal (sometimes absent) and two blue distractors."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    frames = torch.empty(count, 3, height, width)
    frames[:, :, : height // 2] = torch.tensor([120.0, 160.0, 220.0]).reshape(3, 1, 1)
    frames[:, :, height // 2 :] = torch.tensor([90.0, 150.0, 70.0]).reshape(3, 1, 1)
    frames += 20 * torch.randn(frames.shape, generator=generator)
    masks = torch.zeros(count, 1, height, width, dtype=torch.bool)
    colours = torch.tensor([[40.0, 60.0, 160.0], [60.0, 60.0, 140.0], [190.0, 50.0, 40.0]])
    for i in range(count):
        for k, colour in enumerate(colours):
            if k == 2 and i % 5 == 0:
                continue
            h, w = (int(v) for v in torch.randint(14, 50, (2,), generator=generator))
            y = int(torch.randint(40, height - h - 10, (), generator=generator))
            x = int(torch.randint(0, width - w, (), generator=generator))
            frames[i, :, y : y + h, x : x + w] = colour.reshape(3, 1, 1)
            masks[i, :, y : y + h, x : x + w] = k == 2
    return frames.clamp(0, 255).byte(), masks


@pytest.fixture(scope="module")
def fitted() -> tuple[EmbeddedScorer, dict[str, float]]:
    torch.manual_seed(0)
    scorer = EmbeddedScorer()
    source = ClipSource(*toy_frames(120), "Cut a tree")
    seen: list[int] = []
    metrics = scorer.fit(source, steps=60, batch=24, progress=lambda step, steps, metrics: seen.append(step))
    assert seen == list(range(1, 61))
    return scorer, metrics


def test_label_score_grows_with_the_mask_and_ends_on_the_common_scale() -> None:
    zoom = torch.zeros(11, 16, 1, 10, 10)
    for i in range(11):
        zoom[i, -1].view(-1)[: 10 * i] = 1.0
    scores = LabelScorer()(zoom, ["Cut a tree", "Obtain water"])
    assert scores.shape == (11, 2)
    assert (scores[:, 0].diff() > 0).all()
    assert math.isclose(float(scores[1, 0]), 21.8, abs_tol=0.1)  # growth 0.1 is the midpoint
    assert 0.01 < torch.sigmoid(1.2 * (scores[0, 0] - 21.8)) < 0.03
    full = LabelScorer()(torch.ones(1, 16, 1, 4, 4), ["-"])
    assert full > 24  # nothing left to fill: still a goal
    with pytest.raises(SpecError, match="goal_mask"):
        LabelScorer()(torch.zeros(1, 16, 3, 4, 4), ["-"])


def test_affine_fit_recovers_the_logistic_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    positive = 3 + torch.randn(
        20000, generator=generator
    )  # log odds of the classes are 4 x - 8 for x ~ N(1|3, 1)
    negative = 1 + torch.randn(20000, generator=generator)
    scale, shift = fit_affine(positive, negative)
    assert math.isclose(scale * 1.2, 2.0, rel_tol=0.05)
    assert math.isclose(scale * 2 + shift, 21.8, abs_tol=0.05)
    scale, _ = fit_affine(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -2.0]))
    assert 0 < scale < 100  # separable classes


def test_clips_are_captioned_by_what_the_mask_does() -> None:
    frames, masks = toy_frames(30)
    source = ClipSource(frames, masks, "Cut a tree")
    clips = make_clips(source, 60, generator=torch.Generator().manual_seed(1))
    for caption, growth in zip(clips.captions, clips.growth.tolist(), strict=True):
        assert caption == "Cut a tree" if growth >= GROWN else caption in MOTIONS and growth <= UNCHANGED
    assert 10 < sum(c == "Cut a tree" for c in clips.captions) < 50
    again = make_clips(source, 60, generator=torch.Generator().manual_seed(1))
    assert torch.equal(clips.boxes, again.boxes) and clips.captions == again.captions
    rendered = clips.render(source, (40, 64))
    zooms = (clips.numbers[:, 0] == clips.numbers[:, -1]).nonzero().flatten()
    top, left, bottom, right = clips.boxes[zooms[0], -1].tolist()
    crop = frames[clips.numbers[zooms[0], -1], :, top:bottom, left:right].float()[None]
    want = torch.nn.functional.interpolate(crop, (40, 64), mode="bilinear")[0]
    torch.testing.assert_close(rendered[zooms[0], -1], want, atol=2e-3, rtol=0)
    with pytest.raises(SpecError, match="masks"):
        ClipSource(frames, masks[:3], "Cut a tree")


def test_info_nce_is_zero_at_best_and_indifferent_to_shared_captions() -> None:
    own = torch.tensor([0, 0, 1])
    assert info_nce(100 * torch.nn.functional.one_hot(own, 3).float(), own) < 1e-4
    assert info_nce(torch.zeros(3, 3), own) > 0.5


def test_embedded_scorer_learns_to_see_the_goal(fitted: tuple[EmbeddedScorer, dict[str, float]]) -> None:
    scorer, metrics = fitted
    assert metrics["auc"] > 0.9, metrics
    frames, masks = toy_frames(6, seed=7)
    maps = VirtualExploration(scorer)(frames[1:5], ["Cut a tree"])[:, 0]
    inside = (maps * masks[1:5, 0]).sum((1, 2)) / masks[1:5].sum((1, 2, 3))
    assert (inside > maps.mean((1, 2)) + 0.2).all(), (inside, maps.mean((1, 2)))


def test_embedded_scorer_survives_saving(fitted: tuple[EmbeddedScorer, dict[str, float]], tmp_path) -> None:
    scorer, _ = fitted
    scorer.save(tmp_path / "scorer")
    loaded = build_scorer("embedded").load(tmp_path / "scorer")
    clip = torch.randint(0, 256, (2, 16, 3, 40, 64)).float()
    prompts = ["Cut a tree", "Fly to the moon"]
    torch.testing.assert_close(loaded(clip, prompts), scorer(clip, prompts))
    assert loaded.text_features(prompts).shape == (2, 512)
    (tmp_path / "scorer" / "config.json").write_text('{"dim": 8}')
    with pytest.raises(CheckpointError, match="does not fit EmbeddedScorer"):
        EmbeddedScorer.load(tmp_path / "scorer")
    for text in ("[", "[1]", '{"dim": "wide"}', '{"nonsense": 1}'):
        (tmp_path / "scorer" / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match="cannot be read"):
            EmbeddedScorer.load(tmp_path / "scorer")
    for name, content in (("config.json", b"{"), ("model.safetensors", b"")):
        scorer.save(tmp_path / "scorer")
        (tmp_path / "scorer" / name).write_bytes(content)
        with pytest.raises(CheckpointError):
            EmbeddedScorer.load(tmp_path / "scorer")


def test_scorers_without_weights_say_what_to_do(tmp_path) -> None:
    with pytest.raises(MissingWeightsError, match="fit"):
        EmbeddedScorer()(torch.zeros(1, 16, 3, 40, 64), ["Cut a tree"])
    with pytest.raises(MissingWeightsError, match=r"model\.safetensors|config\.json"):
        EmbeddedScorer.load(tmp_path)
    with pytest.raises(MissingWeightsError, match=r"mineclip_attn\.pth.*affordance=embedded"):
        build_scorer("mineclip")


class Reached(BaseException):
    """Somebody asked for the network; nobody catches this."""


@pytest.fixture
def network(monkeypatch) -> None:
    """A network that fails whoever asks for it, also where the environment forbids the hub."""

    def reach(*arguments: object, **options: object) -> None:
        raise Reached

    pytest.importorskip("transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", False, raising=False)  # up to version 4
    for where, name in ((socket, "getaddrinfo"), (socket.socket, "connect"), (socket.socket, "connect_ex")):
        monkeypatch.setattr(where, name, reach)


def test_weights_are_looked_for_on_this_disk_before_any_frame_is_collected(
    tmp_path, network, monkeypatch
) -> None:
    monkeypatch.setattr("wmkit.envs.make_env", lambda *_, **__: pytest.fail("an environment was made"))
    run = tmp_path / "run"
    clip = ("affordance=hf_clip", "scorer 'hf_clip' has no weights: found no CLIP model at")
    away = "no such folder, and none of that name among what was downloaded"
    (tmp_path / "empty").mkdir()
    for (affordance, words), path, why in (
        (clip, "wmkit/nothing", away),
        (clip, str(tmp_path / "nowhere"), away),
        (clip, str(tmp_path / "empty"), ""),
        (("affordance=embedded", "scorer 'embedded' has no weights"), str(tmp_path / "empty"), "config.json"),
    ):
        overrides = [affordance, f"affordance.scorer.path={path}", "preset=smoke", f"run_dir={run}"]
        with pytest.raises(MissingWeightsError, match=words) as caught:
            fit_only(compose("ls_imagine", overrides))
        text = str(caught.value)
        assert why in text and path in text and "\n" not in text and not run.exists()
        assert affordance != clip[0] or "affordance.scorer.path=FOLDER" in text
    overrides = [*overrides[2:], clip[0], "affordance.scorer.path=wmkit/nothing"]
    with pytest.raises(Reached):
        fit_only(compose("ls_imagine", [*overrides, "affordance.scorer.local_files_only=false"]))


def test_hf_clip_scores_from_a_folder(tmp_path, network, monkeypatch) -> None:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {
        word: i for i, word in enumerate(["<pad>", "<unk>", "</s>", "cut", "a", "tree", "obtain", "water"])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="</s>",
        model_max_length=16,
    )
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={
            **tower,
            "vocab_size": 8,
            "max_position_embeddings": 16,
            "eos_token_id": 2,
            "bos_token_id": 1,
        },
        vision_config={**tower, "image_size": 32, "patch_size": 16},
        projection_dim=24,
    )
    torch.manual_seed(0)
    folder = tmp_path / "models--wmkit--clip" / "snapshots" / "0"  # where a download would lie
    transformers.CLIPModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    (tmp_path / "models--wmkit--clip" / "refs").mkdir()
    (tmp_path / "models--wmkit--clip" / "refs" / "main").write_text("0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    scorer = build_scorer("hf_clip", model=str(folder))
    downloaded = build_scorer("hf_clip", model="wmkit/clip").state_dict()
    assert all(torch.equal(value, downloaded[name]) for name, value in scorer.state_dict().items())
    clip = torch.randint(0, 256, (2, 16, 3, 40, 64))
    prompts = ["cut a tree", "obtain water"]
    scores = scorer(clip, prompts)
    assert scores.shape == (2, 2) and scorer.text_features(prompts).shape == (2, 24)
    assert (scores.abs() <= scorer.clip.logit_scale.exp() + 1e-4).all()
    scorer.calibrate(clip + 40, clip - 40, "cut a tree")
    maps = VirtualExploration(scorer, mode="fast")(torch.randint(0, 256, (1, 3, 80, 128)), prompts)
    assert maps.shape == (1, 2, 80, 128) and maps.isfinite().all()
