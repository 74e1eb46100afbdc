"""The stage before training: a scorer, random frames, labels by virtual exploration, a fitted U-Net.

    frames     a random agent wanders; one frame out of ``save_every`` is kept
    scorer     taken as it is or read from a folder, before frames are collected; or trained on those frames
    labels     81 virtual zooms per frame
    fit        the U-Net learns to predict the labels in one pass

The result lies in ``RUN/affordance``: ``model`` and ``scorer`` (safetensors beside JSON), and the numbers of
the fit. A run that already holds a model skips everything; so do ``affordance.model=PATH`` and, where wmkit
brings a model for the task and its world, ``affordance.model=shipped``: that one is copied into the run.
Whose model is gone after checkpoints were written gets no other: its policy learned from that one's maps.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from tensordict import TensorDictBase
from torch import Tensor

from wmkit.arguments import check_arguments, check_page, check_range, check_value
from wmkit.errors import ConfigError, MissingWeightsError
from wmkit.places import made
from wmkit.registry import resolve
from wmkit.training.affordance_frames import follow, label, options_of, place, walk
from wmkit.training.progress import Stages
from wmkit.training.report.evidence import read_evidence, save_evidence
from wmkit.training.report.pictures import channels_last
from wmkit.training.run import RunDirectory
from wmkit.training.settings import find_device, set_up

if TYPE_CHECKING:
    from wmkit.affordance.unet.save import SavedAffordance

LOOKED_AT = 48  # frames on which a model that wmkit brings is shown beside the truth


@dataclass
class AffordanceTools:
    """The parts of the affordance stage that the rest of a run needs.

    Attributes:
        model: ``predict(images, text) -> maps [B, H, W]``; a network lies on the run's device.
        text: features of the prompt ``[D]``; None for models that read none.
        prompt: the task in words.
        scorer: for the video score; None leaves that term out.
    """

    model: Any
    text: Tensor | None
    prompt: str
    scorer: Any | None = None

    @property
    def reads(self) -> set[str]:
        """Keys of the simulator that model and scorer look at."""
        parts = [part for part in (self.model, self.scorer) if part is not None]
        return {getattr(part, "reads", "frame") for part in parts}

    def predict(self, views: TensorDictBase) -> Tensor:
        """Maps ``[K, H, W]`` on the CPU of views ``[K]`` with ``frame`` and ``goal_mask``."""
        return self.model.predict(views[getattr(self.model, "reads", "frame")], self.text).cpu()

    def transform(self, config: DictConfig, *, evaluation: bool = False) -> Any:
        """The transform of ``config.affordance.transform``, whose frames are dropped.

        Args:
            config: the whole configuration.
            evaluation: only maps; nothing is learned from what is seen, and frames stay for the report.
        """
        from wmkit.affordance import AffordanceMap, ClipReward

        if evaluation:
            return AffordanceMap(self.model, self.text)
        video = None if self.scorer is None else ClipReward(self.scorer, self.prompt)
        with made("affordance.transform", InstantiationException):
            make = instantiate(config.affordance.transform, _convert_="all")
            return make(self.model, self.text, video=video, del_keys=True)


def _shipped(config: DictConfig, prompt: str) -> Path | None:
    """The folder of the model that wmkit brings for this task; None where it brings none that fits."""
    from wmkit.affordance.unet import SHIPPED

    options, block = options_of(config.env.get("options")), config.affordance
    simulator, _, task = str(config.env.name).partition("/")
    folder = SHIPPED / f"{task}_{options.get('world', 'full')}"
    if simulator != "vizdoom" or block.get("video_score", False) or not (folder / "config.json").is_file():
        return None
    return folder if prompt in json.loads((folder / "config.json").read_text())["prompts"] else None


def oracle() -> AffordanceTools:
    """The simulator's own mask in place of a model: an upper bound, and a stand-in that needs no weights."""
    from wmkit.affordance.mask import MaskAffordance

    return AffordanceTools(MaskAffordance(), None, "")


def prepare_affordance(config: DictConfig, run: RunDirectory, stages: Stages) -> AffordanceTools | None:
    """Model and scorer for ``config.affordance``: found in the run, read from ``affordance.model``, or made.

    Args:
        config: reads ``affordance.model`` (a folder, ``mask`` for the simulator's truth, or ``shipped``),
            ``prompt``, ``scorer``, ``scorer_fit``, ``exploration``, ``unet``, ``frames``, ``save_every``,
            ``fit``, ``video_score``.
        run: holds the result.
        stages: draws a progress bar per stage.

    Returns:
        None for a system without an ``affordance`` block.

    Raises:
        MissingWeightsError: a scorer or model without its weights, or a run that has lost its model.
    """
    block = config.get("affordance")
    if block is None:
        return None
    _check(config)
    folder = run.path / "affordance"
    prompt = _prompt(config)
    given = block.get("model")
    if given == "mask":
        return oracle()
    shipped = _shipped(config, prompt) if given == "shipped" else None
    if given == "shipped":
        given = None
    path = Path(given) if given is not None else folder / "model"
    if given is None and not (path / "config.json").is_file():
        if any((run.path / "checkpoints").glob("step-*")):
            raise MissingWeightsError(
                f"affordance model {str(path)!r} is gone: found no config.json in it, wanted the model that "
                "the run's checkpoints learned with; restore that folder, or say where it lies with "
                "affordance.model=FOLDER (for wmkit eval in the run's config.yaml)"
            )
        if shipped is None:
            return _make(config, run, stages, prompt)
        path.mkdir(parents=True, exist_ok=True)
        for name in ("model.safetensors", "config.json"):  # weights first: a folder with a config is complete
            shutil.copyfile(shipped / name, path / name)
        stages.say("affordance model: the one that wmkit brings (affordance.model=null fits one first)")
    from wmkit.affordance.unet import load_affordance, load_swin_unet

    if path.is_file():  # the released file, which has no text with it
        unet, scorer = (
            load_swin_unet(path).to(find_device(config)),
            find_scorer(config, path.parent / "scorer"),
        )
        text = scorer.text_features([prompt])[0].detach().float().cpu()
        return AffordanceTools(unet, text, prompt, scorer if block.get("video_score", False) else None)
    saved = load_affordance(path)
    if shipped is not None and read_evidence(run, "affordance") is None:
        _look(config, run, stages, saved)
    saved.model.to(find_device(config))
    text = saved.text_features[saved.prompts.index(prompt) if prompt in saved.prompts else 0]
    scorer = find_scorer(config, path.parent / "scorer") if block.get("video_score", False) else None
    return AffordanceTools(saved.model, text, prompt, scorer)


def fit_only(config: DictConfig, stages: Stages | None = None) -> tuple[Path, dict[str, float]]:
    """``wmkit affordance fit``: the stage on its own.

    Returns:
        The model's folder, and how well it agrees with virtual exploration and with the truth.

    Raises:
        ConfigError: the system has no affordance block.
    """
    if config.get("affordance") is None:
        raise ConfigError(
            f"system {str(config.system)!r} has no affordance block: found none on its page, wanted one; "
            "use wmkit affordance fit --system ls_imagine"
        )
    config.affordance.model = None
    set_up(config)
    _check(config)
    with RunDirectory.creating(config) as run:
        _make(config, run, stages or Stages(), _prompt(config))
    numbers = next(iter(run.metrics("affordance")))
    run.close()
    return run.path / "affordance" / "model", {
        name.removeprefix("affordance/"): value
        for name, value in numbers.items()
        if name.startswith("affordance/") and value is not None
    }


def _check(config: DictConfig) -> None:
    """The options of the stages, checked before the first of them starts.

    Raises:
        ConfigError: an option that a stage does not have, or of another type.
    """
    from wmkit.affordance.labels.virtual_exploration import VirtualExploration
    from wmkit.affordance.scorers import EmbeddedScorer
    from wmkit.affordance.unet.fit import fit_affordance

    block = options_of(config.affordance)
    # Of frames one to learn from and one to judge by, in the scorer's fit as in the U-Net's.
    for name, wanted, least in (("frames", int, 2), ("save_every", float, 1)):
        check_value(f"affordance.{name}", block.get(name, least), wanted, "the stage")
        check_range(f"affordance.{name}", block.get(name, least), least)
    check_value("affordance.scorer", block.get("scorer"), dict | None, "the stage")
    scorer, path, scorer_options = _scorer(config)
    check_value("affordance.scorer.path", path, str | None, "the stage")
    if path is not None and scorer != "embedded":
        scorer_options["model"] = path
    unet, unet_options = _unet(config.affordance)
    for name, target, options in (
        ("exploration", VirtualExploration, block.get("exploration")),
        ("fit", fit_affordance, block.get("fit")),
        ("scorer_fit", EmbeddedScorer.fit, block.get("scorer_fit")),
        ("unet", unet, {k: v for k, v in unet_options.items() if k != "weights"}),
        ("scorer", resolve("scorer", scorer), scorer_options),
    ):
        check_value(f"affordance.{name}", options, dict | None, "the stage")
        check_arguments(target, options or {}, f"affordance.{name}")
    transform = block.get("transform")
    if not isinstance(transform, dict) or "_target_" not in transform:
        raise ConfigError(
            f"affordance.transform is {transform!r}: wanted a mapping with _target_, such as "
            "wmkit.affordance.AffordanceTransform; correct affordance.transform"
        )
    check_page(transform, "affordance.transform")


def _make(config: DictConfig, run: RunDirectory, stages: Stages, prompt: str) -> AffordanceTools:
    from wmkit.affordance.labels.virtual_exploration import VirtualExploration
    from wmkit.affordance.unet import save_affordance
    from wmkit.affordance.unet.dataset import label_frames
    from wmkit.affordance.unet.fit import fit_affordance

    block, folder, seed = config.affordance, run.folder("affordance"), int(config.get("seed", 0))
    count = int(block.get("frames", 400))
    scorer = None if _is_trained_here(config) else find_scorer(config, folder / "scorer")
    data = place(folder, config)
    frames, masks = walk(config, stages, count, None if scorer is None else scorer.reads, data)
    if scorer is None:
        scorer = _train_scorer(config, folder / "scorer", stages, frames, masks, prompt)
    images = frames
    if scorer.reads == "goal_mask":
        assert masks is not None
        images = masks[:, None]
    explore = VirtualExploration(scorer, **options_of(block.get("exploration")))
    with stages.stage("label frames", count, "frames") as bar:
        if masks is None:
            labels = label(images, lambda batch: explore(batch, [prompt])[:, 0], bar, data)
        else:
            labels = label_frames(images, lambda batch: explore(batch, [prompt])[:, 0], progress=follow(bar))
    text = scorer.text_features([prompt])[0].detach().float().cpu()
    model = make_unet(block, text.shape[-1]).to(find_device(config))
    fit = {"how": "small", **options_of(block.get("fit"))}
    with stages.stage("fit affordance", 1, "updates") as bar:
        report = fit_affordance(
            model,
            frames,
            labels,
            text,
            masks=masks,
            seed=seed,
            checkpoint=folder / "fit.pt",
            progress=follow(bar, fit.get("budget")),
            **fit,
        )
    save_affordance(folder / "model", model, text, prompt)
    (folder / "fit.pt").unlink(missing_ok=True)
    shutil.rmtree(data, ignore_errors=True)
    numbers = {f"affordance/agreement_{k}": v for k, v in report.agreement.items()}
    numbers |= {f"affordance/truth_{k}": v for k, v in report.truth.items()}
    numbers |= {f"affordance/label_truth_{k}": v for k, v in report.label_truth.items()}
    run.log(0, "affordance", {k: math.nan if v is None else v for k, v in numbers.items()})
    _show(run, report.panels)
    tools = AffordanceTools(model.eval(), text, prompt)
    if block.get("video_score", False):
        tools.scorer = scorer
    return tools


def _train_scorer(
    config: DictConfig, folder: Path, stages: Stages, frames: Tensor, masks: Tensor | None, prompt: str
) -> Any:
    """An ``embedded`` scorer, saved in ``folder``."""
    from wmkit.affordance.scorers import ClipSource, EmbeddedScorer

    assert masks is not None
    block = config.affordance
    scorer = EmbeddedScorer(**_scorer(config)[2])
    fit = {"steps": 300, **options_of(block.get("scorer_fit"))}
    sparse = torch.ones(len(frames), dtype=torch.bool)  # kept frames are too far apart to be a walk
    with stages.stage("train scorer", int(fit["steps"]), "updates") as bar:
        source = ClipSource(frames, masks[:, None], prompt, sparse)
        scorer.fit(source, seed=int(config.get("seed", 0)), progress=follow(bar), **fit)
    scorer.save(folder)
    return scorer


def find_scorer(config: DictConfig, folder: Path) -> Any:
    """A scorer by name, with weights from ``affordance.scorer.path`` or ``folder`` where it needs some."""
    from wmkit.affordance.scorers import EmbeddedScorer, build_scorer

    name, path, options = _scorer(config)
    if name == "embedded":
        return EmbeddedScorer.load(path or folder)
    if path is not None:
        options["model"] = path
    scorer = build_scorer(name, **options)
    return scorer.to(find_device(config)) if isinstance(scorer, torch.nn.Module) else scorer


def _unet(block: DictConfig) -> tuple[Any, dict[str, Any]]:
    """The class of the U-Net that is asked for, and its options."""
    from wmkit.affordance import unet

    options = options_of(block.get("unet"))
    kind, kinds = options.pop("name", "small"), {"small": "SmallUNet", "swin": "SwinUNet"}
    if kind not in kinds:
        raise ConfigError(
            f"affordance.unet.name={kind!r} is unknown: wanted one of {', '.join(kinds)}; pick one of them"
        )
    return getattr(unet, kinds[kind]), options


def _look(config: DictConfig, run: RunDirectory, stages: Stages, saved: SavedAffordance) -> None:
    """Maps of a model that was not fitted here, beside the simulator's truth, for the report."""
    from wmkit.affordance.unet.agreement import truth
    from wmkit.affordance.unet.fit_report import examples

    frames, masks = walk(config, stages, LOOKED_AT, "frame")
    text = saved.text_features[0]
    maps = torch.cat([saved.model.predict(part, text) for part in frames.split(16)])
    shown = examples(masks, len(frames), 8)
    panels = {"frame": frames[shown], "prediction": (255 * maps[shown]).round().to(torch.uint8)}
    if masks is not None:
        panels["mask"] = masks[shown]
        numbers = truth(maps, masks)
        run.log(0, "affordance", {f"affordance/truth_{k}": v for k, v in numbers.items()})
    _show(run, panels)


def make_unet(block: DictConfig, text_dim: int) -> Any:
    """The U-Net to be fitted; ``weights`` of its options are the released ones to begin with."""
    from wmkit.affordance.unet.swin import SwinUNet
    from wmkit.affordance.unet.swin_weights import WHAT, fill_swin_unet, read_swin_unet

    unet, options = _unet(block)
    weights = options.pop("weights", None)
    model = unet(text_dim=text_dim, **options)
    if weights is not None:
        if not isinstance(model, SwinUNet):
            raise ConfigError(
                f"affordance.unet.weights is {weights!r}: wanted none for the U-Net {model.kind!r}; set "
                "affordance.unet.name=swin"
            )
        fill_swin_unet(model, read_swin_unet(weights), f"{WHAT} {weights!r}")
    return model


def _show(run: RunDirectory, panels: dict[str, Tensor]) -> None:
    """Examples for the report."""
    if not panels:
        return
    arrays = {"frames": channels_last(panels["frame"])}
    for key, name in (("labels", "label"), ("maps", "prediction")):
        if name in panels:
            arrays[key] = panels[name].numpy() / 255.0
    if "mask" in panels:
        arrays["masks"] = panels["mask"].bool().numpy()
    save_evidence(run, "affordance", **arrays)


def _prompt(config: DictConfig) -> str:
    given = config.affordance.get("prompt")
    if given:
        return str(given)
    from wmkit.envs import task_prompt

    return task_prompt(str(config.env.name))


def _scorer(config: DictConfig) -> tuple[str, str | None, dict[str, Any]]:
    """Name, path and options of the scorer that is asked for."""
    options = options_of(config.affordance.get("scorer"))
    return str(options.pop("name", "embedded")), options.pop("path", None) or None, options


def _is_trained_here(config: DictConfig) -> bool:
    name, path, _ = _scorer(config)
    return name == "embedded" and path is None
