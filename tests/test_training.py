"""Training: what a run learns and logs, resumes, losses that blow up, one record per reset."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from torchrl.data import Binary, Composite, Unbounded
from torchrl.envs import SerialEnv, Transform, TransformedEnv

from support.toy import LENGTH, ToyPolicy, ToySystem, toy_config, toy_env, toy_parts
from wmkit.data import ReplayStreams
from wmkit.data.repair import not_finite
from wmkit.envs.counting import CountingEnv
from wmkit.errors import ConfigError, NonFiniteLossError
from wmkit.optim import captured
from wmkit.systems.page_files import find_page, load
from wmkit.training import schedule
from wmkit.training.checkpoints import CheckpointStore
from wmkit.training.collect import Collection, with_carry
from wmkit.training.evaluate import evaluate
from wmkit.training.parts import Parts, make_memory
from wmkit.training.protocol import EvaluationProtocol
from wmkit.training.run import RunDirectory
from wmkit.training.settings import Settings
from wmkit.training.trainer import Trainer, train


def test_a_run_leaves_everything_behind(tmp_path):
    summary = train(toy_config(tmp_path / "run"), parts=toy_parts())
    run = RunDirectory.open(summary.run)
    assert summary.steps == 160 and summary.updates == (160 - 24) * 4 // 8
    assert summary.episodes == 3 and summary.success_rate is summary.training_success_rate is None
    assert summary.training_return == 28.0
    assert (summary.training_episodes, summary.training_rules) == (2 * (80 // LENGTH), "sampled actions")
    assert summary.episode_return == sum(range(LENGTH + 1))
    episodes = list(run.episodes())
    assert {(e["length"], e["return"]) for e in episodes} == {(LENGTH, 28.0)}
    assert sum(e["stage"] in ("prefill", "train") for e in episodes) == 2 * (80 // LENGTH)
    lines = list(run.metrics("train"))
    assert lines[-1]["step"] == 160 and lines[-1]["loss/line"] > 0
    assert [line["step"] for line in run.metrics("evaluate")] == [80]
    (final,) = run.metrics("final")
    protocol = EvaluationProtocol.read(final["protocol"])
    assert protocol.episodes == final["eval/episodes"] == 3 and str(protocol) == summary.protocol
    assert "eval/success_rate" not in final and "success_rate" not in lines[-1]
    assert {e["success"] for e in episodes} == {None}
    store = CheckpointStore(run.path / "checkpoints")
    assert store.meta(store.best())["score"] == 28.0  # the return, where there is no flag
    assert len(CheckpointStore(run.path / "checkpoints").steps()) <= 3
    assert list((run.path / "tensorboard").glob("events*"))
    assert summary.frames is None and not any("frames" in line for line in (*lines, *episodes))


def test_a_run_that_never_learned_says_so(tmp_path, capsys):
    """Steps that end while the first update waits: for more of them, or for windows."""
    for name, steps, wanted in (("few", 16, {}), ("windows", 48, {"prefill_windows": 60})):
        summary = train(toy_config(tmp_path / name, steps=steps, **wanted), parts=toy_parts())
        assert summary.updates == 0
        found = 2 * (steps // 2 + steps // 2 // LENGTH + 1 - 4)  # n steps are n + 1 records
        said = " ".join(capsys.readouterr().err.split())
        assert f"nothing was learned in {steps} steps, which hold {found} windows of 5 records" in said
        assert f"24 steps (training.prefill) and {wanted.get('prefill_windows', 1)} windows" in said
    train(toy_config(tmp_path / "run"), parts=toy_parts())
    assert "nothing was learned" not in capsys.readouterr().err


def test_frames_stand_beside_steps_where_an_action_is_held(tmp_path):
    """T20: steps times action repeat, in both logs, in the summary and in the report."""
    config = toy_config(tmp_path / "run", report=True)
    config.env = {"name": "dmc_proprio/walker_walk", "options": {"action_repeat": 2}}
    summary = train(config, parts=toy_parts())
    run = RunDirectory.open(summary.run)
    lines = [*run.metrics(), *run.episodes()]
    assert (summary.steps, summary.frames) == (160, 320)
    assert {line["stage"] for line in lines} == {"prefill", "train", "evaluate", "final"}
    assert all(line["frames"] == 2 * line["step"] for line in lines)
    assert "<b>320</b><span>frames</span>" in (run.path / "report.html").read_text(encoding="utf-8")


class Flagged(Transform):
    """Every second episode of seven steps is a success."""

    def __init__(self):
        super().__init__()
        self.ended = 0

    def _call(self, next_tensordict):
        over = next_tensordict["observation"] >= LENGTH
        self.ended += int(over.any())
        return next_tensordict.set("success", over & (self.ended % 2 == 1))

    def _reset(self, tensordict, tensordict_reset):
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec):
        observation_spec["success"] = Binary(shape=(2, 1), dtype=torch.bool)
        return observation_spec


def test_a_success_flag_is_the_score_and_is_shown_where_there_is_one(tmp_path, capsys):
    flagged = replace(toy_parts(), make_env=lambda *a, **k: TransformedEnv(toy_env(*a, **k), Flagged()))
    for name, parts, shown in (("flagged", flagged, "success rate"), ("bare", toy_parts(), "return 28")):
        summary = train(toy_config(tmp_path / name, final_episodes=4), parts=parts)
        store = CheckpointStore(Path(summary.run) / "checkpoints")
        score = summary.success_rate if name == "flagged" else summary.episode_return
        assert store.meta(store.latest())["score"] == score == (0.5 if name == "flagged" else 28.0)
        bars = capsys.readouterr().err
        assert shown in bars and ("success" in bars) == (name == "flagged")


def test_resume_goes_on_without_a_burst_and_without_losing_records(tmp_path):
    config = toy_config(tmp_path / "run", steps=80)
    first = train(config, parts=toy_parts())
    config.resume, config.training.steps = first.run, 160
    trainer = Trainer(config, RunDirectory.open(first.run), parts=toy_parts())
    second = trainer.train()
    assert (first.updates, second.updates) == ((80 - 24) // 2, (160 - 24) // 2)
    assert trainer.memory.env_steps == 160
    ids = trainer.memory.streams.ids(0)
    records = trainer.memory.streams.get(ids)
    assert int((~records["is_init"]).sum()) == 80
    assert torch.equal(records["observation"], records["reward"])
    assert trainer.system.optimiser.state_dict()["state"][0]["step"] == second.updates


def test_an_interrupted_pretraining_is_finished_and_visits_nothing(tmp_path):
    """Otherwise a system with phases would go on learning the first of them alone."""
    interrupt_at: int | None = 11
    visits = []

    class Pretrained(ToySystem):
        pretraining = 30

        def update(self, batch):
            if self.count == interrupt_at:
                trainer.interrupt.requested = True
            counts = trainer.memory.streams.sampler._visits
            visits.append(0 if counts is None else int(counts.sum()))
            return super().update(batch)

    config = toy_config(tmp_path / "run", steps=32, checkpoint_every=5)
    config.training.replay.sampler = {"name": "visit_balanced"}
    parts = Parts(toy_env, lambda config, env, device: Pretrained(), make_memory, lambda *_: None)
    trainer = Trainer(config, RunDirectory.create(config), parts=parts)
    first = trainer.train()
    assert (first.interrupted, first.updates, first.steps) == (True, 12, 24)
    interrupt_at = None
    trainer = Trainer(config, RunDirectory.open(first.run), parts=parts)
    assert trainer.train().updates == 30 + (32 - 24) // 2
    assert visits == [0] * 30 + [2, 4, 6, 8]  # two windows an update, once it is one of the main phase


def test_an_evaluation_cut_short_says_how_many_episodes_it_is_of():
    protocol, done = EvaluationProtocol("counting", episodes=6), []
    policy = ToyPolicy(3)
    world = with_carry(toy_env(None, None, seed=0), policy)
    short = evaluate(policy, world, protocol, stop=lambda: len(done) >= 2, on_episode=done.append)
    assert len(short.episodes) == 2 and str(short.protocol).startswith("2 of 6 episodes of counting")
    assert EvaluationProtocol.read(short.protocol.record()) == short.protocol
    whole = evaluate(policy, world, protocol)
    assert whole.protocol == protocol and len(whole.episodes) == 6


def test_an_evaluation_cut_short_makes_no_checkpoint_the_best(tmp_path):
    trainer = Trainer(config := toy_config(tmp_path / "run"), RunDirectory.create(config), parts=toy_parts())
    trainer.deadline.playing_over = lambda: bool(list(trainer.run.episodes("final")) or trainer.step == 160)
    trainer.train()
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    assert store.meta(store.latest())["score"] == 28.0 and not list(trainer.run.metrics("final"))
    trainer.score = None
    calls = iter([False] * LENGTH)
    trainer.deadline.playing_over = lambda: next(calls, True)
    assert len(trainer._evaluate(3, "evaluate").episodes) == 2 and trainer.score is None


@pytest.mark.parametrize(("windows", "waited"), [(0, 0), (9, 16), ("batch", 16), (13, 24)])
def test_learning_waits_for_windows_and_the_page_says_who_acts(tmp_path, monkeypatch, windows, waited):
    """After 8, 16, 24 steps two streams hold 2, 12, 20 windows of 5 records; a batch has 8 steps."""
    config = toy_config(
        tmp_path / "run", prefill=0, steps=40, prefill_windows=windows, prefill_actions="policy"
    )
    config.training.replay.sampler = {"name": "online", "stride": 4}
    random, collect = [], Collection.collect
    monkeypatch.setattr(
        Collection, "collect", lambda *a, **k: [random.append(k["random"]), collect(*a, **k)][1]
    )
    assert train(config, parts=toy_parts()).updates == (40 - waited) // 2
    assert random == [False] * 5
    config.run_dir, config.training.prefill_actions = str(tmp_path / "other"), "none"
    with pytest.raises(ConfigError, match="prefill_actions is 'none'"):
        train(config, parts=toy_parts())


def test_a_replay_without_room_for_the_windows_waited_for_is_refused(tmp_path):
    """Two streams of 7 records hold 6 windows of 5; a batch has 8 steps."""
    for capacity, windows in ((14, "batch"), (15, 7)):
        config = toy_config(tmp_path / "run", prefill_windows=windows, replay={"capacity": capacity})
        with pytest.raises(ConfigError, match=r"found 6 of 5 .*, wanted [87] .*capacity=16 or more$"):
            train(config, parts=toy_parts())
    config = toy_config(tmp_path / "run", steps=40, prefill_windows="batch", replay={"capacity": 16})
    assert train(config, parts=toy_parts()).updates == (40 - 24) // 2


def test_exploration_goes_on_in_steps_taken_ahead():
    policy = ToyPolicy(3)
    policy.exploration = torch.nn.Module()
    policy.exploration.register_buffer("taken", torch.zeros(()))
    collection = Collection(with_carry(toy_env(None, None, seed=0), policy), policy, 3, ahead=True)
    collection._acting.exploration.taken += 5
    collection.collect()
    collection.close()
    assert policy.exploration.taken == collection._acting.exploration.taken == 5


def test_steps_taken_ahead_are_acted_with_the_weights_of_the_round_before(tmp_path):
    class Weighted(ToyPolicy):
        def __init__(self):
            super().__init__(3)
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, tensordict):
            return super().forward(tensordict).set("belief", self.weight.expand(2, 1).clone())

    policy = Weighted()
    collection = Collection(with_carry(toy_env(None, None, seed=0), policy), policy, 3, ahead=True)
    seen, counted = [], []
    for update in range(4):
        batch = collection.collect()
        seen += batch["belief"].unique().tolist()
        counted.append(batch["observation"][0].flatten())
        policy.weight.data.fill_(update + 1.0)
    collection.settle()
    collection.close()
    assert seen == [0.0, 0.0, 1.0, 2.0]
    assert torch.equal(torch.cat(counted), torch.arange(12.0) % LENGTH)  # nothing lost in between

    summary = train(toy_config(tmp_path / "run", collect_ahead=True), parts=toy_parts())
    assert (summary.steps, summary.updates, summary.episodes) == (160, (160 - 24) * 4 // 8, 3)


def test_updates_behind_fixed_buffers_learn_the_same(tmp_path):
    learnt = []
    for graph in (False, True):
        summary = train(
            toy_config(tmp_path / str(graph), steps=64, evaluate_every=0, cuda_graph=graph), parts=toy_parts()
        )
        store = CheckpointStore(Path(summary.run) / "checkpoints")
        learnt.append(store.load(store.latest())["system"]["line"])
    assert summary.updates == (64 - 24) * 4 // 8
    assert torch.equal(learnt[0]["weight"], learnt[1]["weight"])


class Promise(Transform):
    """At t = 2 a zoomed view promises the score 9; the score is t, so t = 10 beats it."""

    def _call(self, next_tensordict):
        t = next_tensordict["observation"]
        next_tensordict.update({"score": t, "is_zoomed": t == 2, "intrinsic_reward": torch.zeros_like(t)})
        return next_tensordict.set("zoomed", TensorDict({"score": 0 * t + 9}, t.shape[:1]))

    def _reset(self, tensordict, tensordict_reset):
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec):
        number, flag = Unbounded((2, 1)), Binary(shape=(2, 1), dtype=torch.bool)
        observation_spec.update({"score": number, "intrinsic_reward": number.clone(), "is_zoomed": flag})
        observation_spec["zoomed"] = Composite(score=number.clone(), shape=[2])
        return observation_spec


@pytest.mark.parametrize("prolong", [False, True])
def test_an_ended_episode_is_stepped_on_while_a_jump_waits(tmp_path, prolong):
    config = toy_config(tmp_path / "run", collect_length=1, pairs={"prolong": prolong, "max_steps": 50})
    config.affordance = {}
    env = partial(SerialEnv, 2, partial(CountingEnv, length=LENGTH, truncate=True))
    parts = replace(toy_parts(), make_env=lambda *_, **__: TransformedEnv(env(), Promise()))
    trainer = Trainer(config, RunDirectory.create(config), parts=parts)
    trainer.train()
    episodes = [e for e in trainer.run.episodes() if e["stage"] in ("prefill", "train")]
    assert {(e["length"], e["return"]) for e in episodes} == {(LENGTH, 28.0)}  # counted to the end only
    assert len(episodes) == 2 * (80 // (10 + 1 if prolong else LENGTH))
    records = trainer.memory.streams.get(trainer.memory.streams.ids(0))
    resolved = records["jump_resolved"].flatten()
    assert bool(resolved.any()) == prolong
    assert records["jump_steps"].flatten()[resolved].tolist() == [8.0] * int(resolved.sum())
    assert torch.equal(records["done"], records["observation"] >= LENGTH)


def test_non_finite_losses_name_the_term_after_saving_the_last_good_state(tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"'loss/line' .*update 14, .*step-"):
        train(toy_config(tmp_path / "run"), parts=toy_parts(nan_at=14))
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    state = store.load(store.latest())
    assert torch.isfinite(state["system"]["line"]["weight"]).all()
    assert state["counters"]["updates"] > 0
    # Latents that the bad update computed would make every loss of a resumed run NaN.
    assert not not_finite(ReplayStreams.open(tmp_path / "run" / "replay"), latents=True)


def test_weights_that_are_not_numbers_beside_finite_losses_leave_a_good_checkpoint(tmp_path):
    class Broken(ToySystem):
        def update(self, batch):
            metrics = super().update(batch)
            if self.count >= 25:
                torch.nn.init.constant_(self.line.weight, float("nan"))
            return metrics.apply(lambda x: x.nan_to_num())

    parts = replace(toy_parts(), build=lambda config, env, device: Broken())
    with pytest.raises(NonFiniteLossError, match=r"NaN in tensor .*saved in .*step-"):
        train(toy_config(tmp_path / "run"), parts=parts)
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    assert store.load(store.latest())["counters"]["updates"] > 0


class Clock:
    """In place of the module ``time``: it stands still but for what is said to take seconds."""

    def __init__(self, monkeypatch, *modules):
        self.now = 0.0
        for module in modules:
            monkeypatch.setattr(module, "time", self)

    def monotonic(self):
        return self.now


def test_time_limit_ends_learning_in_time_for_the_evaluation(tmp_path, monkeypatch):
    """Of three seconds, 2.58 are for learning and the next 0.3 for playing, however slow this machine is."""
    clock = Clock(monkeypatch, schedule)

    class Slow(ToySystem):
        def update(self, batch):
            clock.now += 0.1
            return super().update(batch)

    parts = Parts(toy_env, lambda config, env, device: Slow(), make_memory, lambda *_: None)
    config = toy_config(tmp_path / "run", steps=100_000, time_limit=0.05, train_ratio=1.0)
    summary = train(config, parts=parts)
    assert (summary.updates, summary.steps) == (26, 24 + 26 * 8) and summary.episodes == 3


SAMPLERS = (
    ("visit_balanced", {"device": "gpu"}, "training.replay.sampler.device 'gpu' cannot be used"),
    ("visit_balanced", {"temperature": "abc"}, "sampler.temperature is 'abc': wanted a number"),
    ("visit_balanced", {"temperature": 0}, "sampler.temperature is 0: wanted 0.001 or more"),
    ("online", {"stride": -1}, "training.replay.sampler.stride is -1: wanted 1 or more"),
    ("online", {"length": 3}, "training.replay.sampler.length is 3, which OnlineQueue does not take"),
    ("uniform", {"length": 3}, "training.replay.sampler cannot be made: .* takes no arguments"),
)


def test_samplers_draw_on_the_runs_device_if_it_is_cuda(tmp_path, monkeypatch):
    """An option says another; on the processor counts stay where the replay lies."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for number, (device, sampler, wanted) in enumerate(
        (
            ("auto", {"name": "visit_balanced"}, "cuda"),
            ("auto", "visit_balanced", "cuda"),
            ("auto", {"name": "visit_balanced", "device": "cpu"}, "cpu"),
            ("cpu", {"name": "visit_balanced", "device": "auto"}, "cuda"),
            ("cpu", {"name": "visit_balanced"}, None),
            ("auto", "online", None),
        )
    ):
        config = toy_config(tmp_path / str(number))
        config.device, config.training.replay.sampler = device, sampler
        memory = make_memory(config, RunDirectory.create(config), ToySystem(), 2)
        found = getattr(memory.streams.sampler, "device", None)
        assert found == (None if wanted is None else torch.device(wanted)), (device, sampler)


def test_settings_are_those_of_the_page_and_checked(tmp_path):
    page = load(find_page("training/default"))
    assert vars(Settings.read(OmegaConf.create({"training": {}}))) == page | {"replay": {}, "pairs": {}}
    for key, value, words in (
        ("training.steps", "abc", "training.steps is 'abc': wanted a whole number"),
        ("training.train_ratio", -1, "training.train_ratio is -1: wanted 0 or more"),
        ("training.train_ratio", math.inf, "training.train_ratio is inf: wanted 0 or more and finite"),
        ("training.train_ratio", math.nan, "training.train_ratio is nan: wanted 0 or more and finite"),
        ("training.time_limit", 0, "time_limit is 0: wanted minutes above zero, or null for no limit"),
        ("training.replay", None, "training.replay is None: wanted a mapping, as"),
        ("training.collect_length", 0, "training.collect_length is 0: wanted 1 or more; correct"),
        ("training.stepz", 3, "training.stepz is 3, which Settings does not take"),
        ("training.replay.capacity", 8, "found room for 4 records of each of 2 environments, wanted 5"),
        ("training.replay.size", 8, "training.replay.size is 8, which ReplayStreams does not take"),
        *(("training.replay.sampler", {"name": name, **options}, words) for name, options, words in SAMPLERS),
        ("seed", "abc", "seed is 'abc': wanted a whole number"),
        ("seed", -1, "seed is -1: wanted 0 or more and at most 2147483647"),
        ("threads", 0, "threads is 0: wanted 1 or more"),
        ("device", "gpu", "device 'gpu' cannot be used: found no device of that name in PyTorch, wanted cpu"),
        ("device", "meta", "device 'meta' cannot be used: found none here that PyTorch can compute on, want"),
        ("device", "fpga", "device 'fpga' cannot be used: found none here that PyTorch can compute on, want"),
    ):
        config = toy_config(tmp_path / "run")
        OmegaConf.update(config, key, value)
        with pytest.raises(ConfigError, match=words):
            train(config, parts=toy_parts())


def test_compiling_is_no_time_for_learning(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, schedule, captured)

    def compiled_slowly(system, backend):
        pauses = iter([2.6])  # of the three seconds that there are

        def update(batch):
            clock.now += next(pauses, 0.001)
            return system.update(batch)

        return update

    monkeypatch.setattr(captured, "compile_update", compiled_slowly)
    config = toy_config(tmp_path / "run", compile=True, time_limit=0.05, evaluate_every=0)
    assert train(config, parts=toy_parts()).steps == 160


def test_evaluation_counts_one_record_per_reset_and_keeps_trajectories():
    system = ToySystem()
    env = with_carry(toy_env(None, None, seed=0), system.policy)
    result = evaluate(system.policy, env, EvaluationProtocol("counting", 5, seed=3), record=1)
    assert [e.length for e in result.episodes] == [LENGTH] * 5
    (trajectory,) = result.trajectories
    assert trajectory.batch_size == (LENGTH + 1,)
    assert trajectory["observation"].flatten().tolist() == list(range(LENGTH + 1))
    assert torch.equal(trajectory["observation"], trajectory["reward"])
    assert trajectory["is_init"].flatten().tolist() == [True] + [False] * LENGTH
    assert trajectory["done"].flatten().tolist() == [False] * LENGTH + [True]
    assert (
        trajectory["previous_action"][0].sum() == 0 and (trajectory["previous_action"][1:].sum(-1) == 1).all()
    )
