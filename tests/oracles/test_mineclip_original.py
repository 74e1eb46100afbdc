"""MineCLIP beside its own code (MineDojo/MineCLIP, small), its tokens, and its file."""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support import published
from support.merges import PROMPTS, write_merges
from support.originals import Recorded, near
from wmkit.affordance import ClipReward, MineCLIP, VirtualExploration, build_scorer, load_mineclip
from wmkit.affordance.scorers import clip_tokens
from wmkit.affordance.scorers.clip_tokens import ClipTokens
from wmkit.affordance.scorers.mineclip_weights import convert_mineclip, fill_mineclip
from wmkit.errors import CheckpointError, ConfigError, MissingWeightsError
from wmkit.nn.weights import read_weights

SMALL: dict[str, Any] = dict(
    **dict(resolution=(32, 80), width=128, layers=2, heads=2, dim=32, text_width=48, text_layers=2),
    **dict(text_heads=3, vocabulary=97, context=12, frames=16, time_layers=2, time_heads=2),
)
SIZES = dict(
    **dict(tokens=11, width=128, layers=2, dim=32, text_width=48, text_layers=2, vocabulary=97),
    **dict(context=12, frames=16, time_width=128),
)


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded("mineclip")


@pytest.fixture(scope="module")
def released(recorded: Recorded) -> dict[str, Tensor]:
    """As the released file has them: with aliases, under ``model.``."""
    own = {f"model.{name}": torch.from_numpy(x) for name, x in recorded.weights().items()}
    names = published.mineclip(**SIZES)
    plain = published.shared({name: name for name in names})  # type: ignore[arg-type]
    found = {name: own[plain[name]] for name in names}  # type: ignore[index]
    assert {name: tuple(x.shape) for name, x in found.items()} == names
    return found


@pytest.fixture
def original(released: dict[str, Tensor]) -> MineCLIP:
    model = MineCLIP(**SMALL)
    fill_mineclip(model, {"state_dict": released})
    return model


def test_every_output_is_the_originals(recorded: Recorded, original: MineCLIP) -> None:
    frames = recorded("in:video")  # uint8 [N, T, 3, H, W]
    features = original.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
    near(recorded("out:image_features"), features)
    near(recorded("out:video_features"), original.over_time(features))
    video, text = original.video_features(features), original.text(recorded("in:tokens").long())
    near(recorded("out:video_adapted"), video)
    near(recorded("out:text_features"), text)
    near(recorded("out:logits_per_video"), original.logits(video, text))


def test_half_precision_is_near_and_keeps_what_is_small_in_full(
    recorded: Recorded, original: MineCLIP
) -> None:
    frames = recorded("in:video").flatten(0, 1)
    full = original.encode(frames)
    half = original.compute_in("bfloat16").encode(frames)
    assert half.dtype == torch.float32 and original.over_time.position.dtype == torch.float32
    assert torch.cosine_similarity(full, half).min() > 0.999
    with pytest.raises(ConfigError, match="float16"):
        original.compute_in("float16")


# ---- the published size -------------------------------------------------------------------------------


def test_the_released_file_fills_the_published_size_strictly(tmp_path: Path) -> None:
    shapes = published.mineclip()
    assert len(shapes) == 788 and sum(map(math.prod, shapes.values())) == 394_295_811
    with torch.device("meta"):
        model = MineCLIP()
    assert sum(x.numel() for x in model.parameters()) == 158_537_730
    weights = published.shared(published.light(shapes))
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "mineclip_attn.pth")
    found = read_weights(tmp_path / "mineclip_attn.pth", "a file", "")
    names = {name: tuple(x.shape) for name, x in convert_mineclip(found["state_dict"]).items()}
    assert names == {name: tuple(x.shape) for name, x in model.state_dict().items()}


def test_a_real_file_gives_a_model_and_one_that_lacks_keys_none(
    tmp_path: Path, released: dict[str, Tensor], original: MineCLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(**options: Any) -> MineCLIP:
        return MineCLIP(**SMALL | options)

    monkeypatch.setattr("wmkit.affordance.scorers.mineclip_weights.MineCLIP", small)
    file = tmp_path / "mineclip_attn.pth"
    torch.save({"state_dict": released}, file)
    loaded = load_mineclip(file, precision="bfloat16")
    assert loaded.precision == "bfloat16" and not loaded.training
    file.write_bytes(b"")  # nothing that was loaded lies in the file
    for name, x in loaded.compute_in("float32").state_dict().items():
        torch.testing.assert_close(x, original.state_dict()[name], rtol=1e-2, atol=1e-2)
    time = {name: x for name, x in released.items() if "temporal_encoder" in name}
    for weights, words in (
        ({k: v for k, v in released.items() if "mlp" not in k}, r"missing .* and \d+ more.*mineclip_attn"),
        ({k: v for k, v in released.items() if k not in time}, "the avg variant"),
        (released | {"model.mystery": torch.zeros(1)}, "unknown mystery"),
        (released | {"model.image_encoder.cls_token": torch.zeros(128)}, "two values for .*cls_token"),
        (published.light(published.swin_unet()), "it seems to be LS-Imagine's U-Net"),
        ({"state_dict": 3}, "unknown state_dict"),
        ([1, 2], "holds a list"),
    ):
        torch.save(weights, file)
        with pytest.raises(CheckpointError, match=words) as caught:
            load_mineclip(file)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 2500
    for where in (None, tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(MissingWeightsError):
            build_scorer("mineclip", model=where)


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_torn_and_hostile_files_change_and_execute_nothing(
    tmp_path: Path, released: dict[str, Tensor], original: MineCLIP
) -> None:
    file, mark = tmp_path / "weights.pth", tmp_path / "mark"
    before = {name: x.clone() for name, x in original.state_dict().items()}
    whole = io.BytesIO()
    torch.save({"state_dict": released}, whole)
    data = whole.getvalue()
    hostile = io.BytesIO()
    torch.save({"state_dict": released, "more": Hostile(mark)}, hostile)
    legacy = io.BytesIO()
    torch.save({"more": Hostile(mark)}, legacy, _use_new_zipfile_serialization=False)
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), script)
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():  # the same archive with another program in it
            pickled = name.endswith("data.pkl")
            new.writestr(name, pickle.dumps(Hostile(mark)) if pickled else old.read(name))
    torn = [data[: len(data) * k // 5] for k in range(5)] + [data[:-1], b"\0" * 1000 + data[1000:]]
    for content in (
        *torn,
        hostile.getvalue(),
        legacy.getvalue(),
        script.getvalue(),
        packed.getvalue(),
        pickle.dumps(Hostile(mark)),
        b"noise",
    ):
        file.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            fill_mineclip(original, read_weights(file, "MineCLIP checkpoint", "take another"))
        assert "\n" not in str(caught.value)
    for odd in (torch.zeros(32, device="meta"), torch.ones(32).to_sparse(), torch.ones(32) * 1j, "text"):
        with pytest.raises(CheckpointError, match=r"video_adapter|adapter\.first"):
            fill_mineclip(original, released | {"model.reward_head.video_adapter.0.bias": odd})
    assert not mark.exists()
    assert all(torch.equal(x, before[name]) for name, x in original.state_dict().items())


def test_own_weights_are_safetensors_beside_a_plain_config(tmp_path: Path, original: MineCLIP) -> None:
    original.save(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors"}
    loaded = build_scorer("mineclip", model=str(tmp_path / "model"))
    assert isinstance(loaded, MineCLIP)
    assert all(torch.equal(x, original.state_dict()[name]) for name, x in loaded.state_dict().items())
    for text in ("{", "[]", '{"scorer": "mineclip", "width": 64}', '{"scorer": "mineclip", "mystery": 1}'):
        (tmp_path / "model" / "config.json").write_text(text)
        with pytest.raises(CheckpointError):
            load_mineclip(tmp_path / "model")


# ---- tokens ------------------------------------------------------------------------------------------


def test_tokens_of_the_five_prompts(tmp_path: Path) -> None:
    tokens = ClipTokens(write_merges(tmp_path / "merges.txt.gz"))
    for row, wanted in zip(tokens(list(PROMPTS)), PROMPTS.values(), strict=True):
        assert row.tolist() == [49406, *wanted, 49407, *[0] * (75 - len(wanted))]
    assert tokens(["  CUT a\tTREE "]).equal(tokens(["Cut a tree"]))
    long = tokens(["tree " * 100])
    assert long.shape == (1, 77) and long[0, -1] == 49407


def test_tokens_with_the_list_of_an_installed_package() -> None:
    try:
        clip_tokens.find_merges()
    except MissingWeightsError as error:
        pytest.skip(str(error))
    tokens = ClipTokens()
    assert {prompt: tokens.numbers(prompt) for prompt in PROMPTS} == PROMPTS
    theirs = [1097, 35689, 563, 847, 713, 267, 585, 568, 274, 269, 272, 275, 256]
    assert tokens.numbers("naïve don't, it's 3.14!") == theirs


def test_merges_that_are_not_there_or_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_tokens, "find_spec", lambda name: None)
    with pytest.raises(MissingWeightsError, match="open_clip_torch or clip-anytorch"):
        ClipTokens()
    with pytest.raises(MissingWeightsError, match="nowhere"):
        ClipTokens(tmp_path / "nowhere")
    good = write_merges(tmp_path / "merges.txt.gz").read_bytes()
    for name, content in (("a.gz", b"noise"), ("b.gz", good[:1000]), ("c", good), ("d", b"a b\n" * 60_000)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match="is no list of merges") as caught:
            ClipTokens(tmp_path / name)
        assert "\n" not in str(caught.value)


# ---- as a scorer -------------------------------------------------------------------------------------


@pytest.fixture
def scorer(tmp_path: Path) -> MineCLIP:
    torch.manual_seed(0)
    sizes = SMALL | dict(vocabulary=49_408, context=77, text_width=8, text_heads=2, layers=1)
    return MineCLIP(**sizes, merges=write_merges(tmp_path / "merges.txt.gz"))


def test_it_explores_as_it_scores_and_reads_a_prompt_once(
    scorer: MineCLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, prompts = torch.randint(0, 256, (1, 3, 160, 256), dtype=torch.uint8), ["Cut a tree", "Obtain sand"]
    scores = VirtualExploration(scorer).scores(frame, prompts)  # [1, 2, 9, 9]
    assert scores.shape == (1, 2, 9, 9) and scores.isfinite().all() and scores.std() > 0
    monkeypatch.setattr(scorer.text, "forward", lambda tokens: pytest.fail("a prompt was read again"))
    monkeypatch.setattr(VirtualExploration, "_score", whole_clips)
    torch.testing.assert_close(
        VirtualExploration(scorer).scores(frame, prompts), scores, rtol=1e-4, atol=1e-4
    )


def whole_clips(self: Any, image: Tensor, boxes: Tensor, prompts: Any, kept: Any) -> Tensor:
    """All 16 frames of every zoom, each in its clip, as the contract's plain call has them."""
    from wmkit.affordance.labels.zoom_path import crop_resize, zoom_schedule

    crops = zoom_schedule(boxes, (160, 256))  # [81, 16, 4]
    frames = crop_resize(image, crops.flatten(0, 1), self.scorer.resolution)
    return self.scorer(frames.unflatten(0, crops.shape[:2]), prompts)


def test_it_pays_for_the_last_16_frames(scorer: MineCLIP) -> None:
    frames = torch.randint(0, 256, (1, 20, 3, 32, 80), dtype=torch.uint8)
    first = torch.arange(20)[None] == 0
    reward = ClipReward(scorer, "Cut a tree", midpoint=0.0)
    score, _ = reward(frames, first, None)
    logit = scorer(frames[:, 4:].float(), ["Cut a tree"])[0, 0]
    torch.testing.assert_close(score[0, -1], torch.sigmoid(1.2 * logit), rtol=1e-4, atol=1e-5)


def test_new_weights_forget_texts(scorer: MineCLIP) -> None:
    before = scorer.text_features(["Cut a tree"])
    state = {name: x + 1 for name, x in scorer.state_dict().items()}
    scorer.load_state_dict(state)
    assert not torch.equal(scorer.text_features(["Cut a tree"]), before)
