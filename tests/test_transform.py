"""AffordanceTransform: live environments, batches of them and replay give the same records."""

import pickle

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import (
    Binary,
    Bounded,
    Composite,
    LazyTensorStorage,
    OneHot,
    ReplayBuffer,
    TensorDictReplayBuffer,
    Unbounded,
)
from torchrl.envs import Compose, EnvBase, InitTracker, RenameTransform, SerialEnv, TransformedEnv
from torchrl.envs.utils import check_env_specs

from wmkit.affordance import (
    AffordanceMap,
    AffordanceTransform,
    ClipReward,
    DenseGate,
    JumpLabeller,
    MaskAffordance,
    PotentialGate,
    RecordGate,
)
from wmkit.data import JumpResolver, PendingPairs, to_sequence
from wmkit.errors import ConfigError, SpecError

H, W = 160, 256
KEYS = [
    "affordance",
    "intrinsic_reward",
    "jump_probability",
    "jump",
    "is_zoomed",
    "score",
    *(("zoomed", key) for key in ("pixels", "affordance", "reward", "intrinsic_reward", "score")),
]


class Approach(EnvBase):
    """A square that jumps about and grows; episodes of ``length`` steps; same seed, same frames."""

    def __init__(self, length=9, seed=0, masks=True):
        super().__init__(device="cpu", batch_size=[])
        self.length, self.masks, self.generator = length, masks, torch.Generator()
        self.t = self.made = 0
        self.observation_spec = Composite(
            frame=Bounded(0, 255, (3, H, W), dtype=torch.uint8),
            pixels=Bounded(0, 255, (3, 64, 64), dtype=torch.uint8),
        )
        if masks:
            self.observation_spec["goal_mask"] = Binary(shape=(1, H, W), dtype=torch.bool)
        self.action_spec, self.reward_spec = OneHot(12, dtype=torch.float32), Unbounded((1,))
        self.done_spec = Composite(
            {key: Binary(1, dtype=torch.bool) for key in ("done", "terminated", "truncated")}
        )
        self._set_seed(seed)

    def _set_seed(self, seed):
        self.generator.manual_seed(seed)

    def _record(self):
        low = torch.randint(0, 256, (3, 20, 32), dtype=torch.uint8, generator=self.generator)
        frame = low.repeat_interleave(8, 1).repeat_interleave(8, 2)
        y, x = (int(torch.randint(a, b, (), generator=self.generator)) for a, b in ((50, 110), (60, 190)))
        self.made += 1
        high, wide = 3 + self.made % 7, 3 + self.made // 7 % 7  # never twice the same: no ties between scores
        mask = torch.zeros(1, H, W, dtype=torch.bool)
        mask[:, y - high : y + high, x - wide : x + wide] = self.t % 3 == 1
        done = torch.tensor([self.t >= self.length])
        out = {"frame": frame, "pixels": frame.new_zeros(3, 64, 64)}
        out |= {"goal_mask": mask} if self.masks else {}
        return out | {"done": done, "terminated": done.clone(), "truncated": torch.zeros_like(done)}

    def _reset(self, tensordict=None, **kwargs):
        self.t = 0
        return TensorDict(self._record(), [])

    def _step(self, tensordict):
        self.t += 1
        return TensorDict({**self._record(), "reward": torch.full((1,), float(self.t))}, [])


class Brightness:
    """A scorer with logits around the logistic's midpoint."""

    def encode(self, images):
        return images.float().mean((1, 2, 3))[:, None]

    def pool(self, features, prompts):
        return 21.8 + (features[..., 0] * torch.linspace(-1, 1, 16)).sum(1, keepdim=True) / 200


class OneByOne(MaskAffordance):
    """The same bits whatever the batch, so that a tie stays a tie."""

    def predict(self, frames, text=None):
        return torch.cat([super(OneByOne, self).predict(frame[None]) for frame in frames])


class Vision(nn.Module):
    """A model with weights that reads the frame: bright blocks afford."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.calls = []

    def predict(self, frames, text=None):
        self.calls.append(len(frames))
        return self.weight * (frames.float().mean(1) / 255) ** 4


def records(rollout):
    """Root/next of one environment's rollout ``[T]`` to arrival-aligned records, every episode complete."""
    rows = []
    for step in rollout.unbind(0):
        if not rows or bool(rows[-1]["done"]):
            first = step.exclude("next", "action", "collector")
            first["reward"], first["is_init"] = torch.zeros(1), torch.ones(1, dtype=torch.bool)
            rows.append(first)
        after = step["next"].clone()
        after["is_init"] = torch.zeros(1, dtype=torch.bool)
        rows.append(after)
    return torch.stack(rows)


def roll(env, steps=20):
    with torch.no_grad():
        return env.rollout(steps, break_when_any_done=False, auto_cast_to_device=False)


def assert_same(a, b, keys=KEYS):
    for key in keys:
        torch.testing.assert_close(a[key], b[key], rtol=1e-5, atol=1e-7, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("streams", [None, 3])
@pytest.mark.parametrize("options", [{}, {"del_keys": True, "size": (32, 48)}])
@pytest.mark.parametrize("kind", [AffordanceTransform, AffordanceMap])
def test_specs_and_keys(streams, options, kind):
    base = Approach() if streams is None else SerialEnv(streams, Approach)
    env = TransformedEnv(base, kind(MaskAffordance(), **options))
    check_env_specs(env)
    record = env.reset()
    lead, size = ([] if streams is None else [streams]), options.get("size", (64, 64))
    assert record["affordance"].shape == (*lead, 1, *size) and record["affordance"].dtype == torch.uint8
    assert ("goal_mask" in record.keys()) != ("del_keys" in options)
    if kind is AffordanceTransform:
        assert ("frame" in record.keys()) != ("del_keys" in options)
        assert record["zoomed", "pixels"].shape == (*lead, 3, *size)
        assert all(record[key].shape == (*lead, 1) for key in KEYS[1:6] + KEYS[8:])
    else:
        assert not {"score", "jump", "zoomed"} & set(record.keys())


@pytest.mark.parametrize("streams", [None, 2])
def test_every_key_can_be_renamed(streams):
    """A nested environment gives what a flat one gives, under the names that were asked for."""

    names = ["frame", "goal_mask", "pixels"]

    def world(transform, *before):
        one = [lambda: Approach(seed=4)] * 2
        return TransformedEnv(one[0]() if streams is None else SerialEnv(2, one), Compose(*before, transform))

    def nested(make):
        check_env_specs(world(make(), RenameTransform(names, [("agent", name) for name in names])))
        return roll(world(make(), RenameTransform(names, [("agent", name) for name in names])))["agent"]

    flat = roll(world(AffordanceTransform(MaskAffordance())))
    out_keys = [("agent", *(key if isinstance(key, tuple) else (key,))) for key in AffordanceTransform.KEYS]
    in_keys = [("agent", "frame"), ("agent", "goal_mask"), "reward", "terminated", ("agent", "is_init")]
    for keys in (in_keys[:2], in_keys):
        options = {"in_keys": keys, "out_keys": out_keys, "del_keys": True}
        assert_same(nested(lambda o=options: AffordanceTransform(MaskAffordance(), **o)), flat)
    keys = {"in_keys": [("agent", "goal_mask")], "out_keys": [("agent", "map")]}
    assert torch.equal(nested(lambda: AffordanceMap(MaskAffordance(), **keys))["map"], flat["affordance"])


@pytest.mark.parametrize("gate", [RecordGate(), DenseGate(), PotentialGate()])
def test_batch_single_and_replay_agree(gate):
    """Three streams with episodes of different lengths, each against its own transform, then relabelled."""
    lengths = (3, 5, 8)

    def transform():
        return AffordanceTransform(OneByOne(), gate=gate, video=ClipReward(Brightness(), "a square"))

    def world(e):
        return lambda: Approach(lengths[e], seed=e)

    batch = roll(TransformedEnv(SerialEnv(3, [world(e) for e in range(3)]), transform()))
    zoomed = 0
    for e in range(3):
        single = roll(TransformedEnv(world(e)(), transform()))
        assert_same(batch[e], single)
        assert_same(batch[e]["next"], single["next"])
        live = records(single)
        stored = live.select("frame", "goal_mask", "reward", "is_init", "terminated", "done", "pixels")
        assert_same(transform()(stored.clone()), live)
        # The same sequence as a row of a batch, beside another.
        pair = torch.stack((stored, stored))
        assert_same(transform()(pair)[1], live)
        zoomed += int(live["is_zoomed"].sum())
        blank = ~live["is_zoomed"][:, 0]
        assert not any(
            live["zoomed", key][blank].any() for key in ("pixels", "affordance", "reward", "score")
        )
    assert zoomed > 3


def test_partial_steps_leave_finished_streams_alone():
    env = TransformedEnv(
        SerialEnv(2, [lambda: Approach(3, seed=1), lambda: Approach(9, seed=2)]),
        AffordanceTransform(MaskAffordance()),
    )
    env.rollout(20, break_when_all_done=True, break_when_any_done=False)
    assert env.transform.labeller.statistics.count.tolist() == [4, 10]


def literal(maps, zoomed_maps, boxes, *, weight=0.01, alpha=1.0):
    """Sections 3.3 and 4.1 to 4.4 for one episode without the video score, in numpy."""
    y, x = np.meshgrid(np.linspace(-80, 80, H), np.linspace(-128, 128, W), indexing="ij")
    g = np.exp(-(x**2 / (2 * 128**2) + y**2 / (2 * 80**2)))

    def aff(m):
        return (m * g).mean() / g.mean()

    best = best_zoomed = 0.0
    ps, ss, out = [], [], []
    for m, mz, central in zip(maps, zoomed_maps, boxes, strict=True):
        s = aff(m)
        z = (m - m.mean()) / m.std()
        p = 1 / (1 + np.exp(-((z**4).mean() - 3))) * (m.max() - m.mean())
        ps.append(p)
        ss.append(s)
        intrinsic = alpha * weight * s * (s > best)
        best = max(best, s)
        zoomed = mz is not None and p > np.mean(ps) + np.std(ps) and aff(mz) >= s + 2 * np.std(ss)
        sz = aff(mz) if zoomed else 0.0
        pays = zoomed and sz > best and sz > best_zoomed
        best_zoomed = sz if pays else best_zoomed
        out.append(
            (p, intrinsic, weight * s, zoomed, zoomed and central, weight * sz, alpha * weight * sz * pays)
        )
    return np.array(out, dtype=float)


def test_labels_and_rewards_equal_a_literal_reading():
    torch.manual_seed(3)
    rows, columns = torch.meshgrid(torch.arange(160.0), torch.arange(256.0), indexing="ij")

    def blob(x, y, size):
        return torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * size**2))

    near, edge = (128, 80), (250, 155)
    plan = [(near, 40)] * 4 + [
        (near, 12),
        (edge, 12),
        (near, 40),
        (near, 10),
        (near, 60),
        (near, 11),
        (near, 9),
    ]
    maps = [blob(*where, size) * (0.6 + 0.3 * torch.rand(())) for where, size in plan]

    class Scripted:
        """Frame value k names the map; a zoomed frame (flagged by its second channel) gets a broad one."""

        def predict(self, frames, text=None):
            return torch.stack(
                [maps[f[0, 0, 0]] if not f[1, 0, 0] else 0.05 * f[0, 0, 0] * torch.ones(H, W) for f in frames]
            )

    frames = torch.zeros(len(maps), 3, H, W, dtype=torch.uint8)
    frames[:, 0] = torch.arange(len(maps))[:, None, None]
    transform = AffordanceTransform(Scripted(), labeller=JumpLabeller(alpha=2.0))
    original = transform.core.mapper._predict
    first = torch.zeros(len(maps), 1, dtype=torch.bool)
    first[0] = True

    def predict(images):
        if len(images) < len(maps):  # the second pass
            images = images.clone()
            images[:, 1] = 1
        return original(images)

    transform.core.mapper._predict = predict
    out = transform(TensorDict({"frame": frames, "is_init": first}, [len(maps)]))
    want = literal(
        [m.double().numpy() for m in maps],
        [np.full((H, W), 0.05 * k) for k in range(len(maps))],
        [where == near for where, _ in plan],
        alpha=2.0,
    )
    keys = ["jump_probability", "intrinsic_reward", "score", "is_zoomed", "jump", ("zoomed", "score")]
    got = torch.cat([out[key].double() for key in [*keys, ("zoomed", "intrinsic_reward")]], 1).numpy()
    assert (
        want[:, 3].sum() >= 3 and want[:, 4].sum() < want[:, 3].sum()
    )  # the scenario zooms, not always centrally
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_second_pass_runs_on_what_passed_only_and_weights_are_shared():
    model = Vision()
    transform = AffordanceTransform(model)
    assert not any("weight" in key for key in transform.state_dict())
    env = TransformedEnv(SerialEnv(2, [lambda: Approach(20, seed=5, masks=False)] * 2), transform)
    roll(env, 15)
    assert model.calls.count(2) >= 16 and sum(model.calls) < 2 * 16 + 16
    assert pickle.loads(pickle.dumps(transform.clone())).labeller.seen


def test_thresholds_survive_a_checkpoint_and_can_be_frozen():
    def build(streams, **options):
        transform = AffordanceTransform(MaskAffordance(), labeller=JumpLabeller(**options))
        return TransformedEnv(SerialEnv(streams, lambda: Approach(6, seed=7)), transform), transform

    env, trained = build(3)
    roll(env, 10)
    state = trained.state_dict()
    _, resumed = build(3)
    resumed.load_state_dict(state)
    key = "core.labeller.statistics.moments"
    assert torch.equal(resumed.state_dict()[key], state[key])
    evaluation, frozen = build(1, adapt=False)
    frozen.load_state_dict(state)
    roll(evaluation, 10)
    assert torch.equal(frozen.state_dict()[key], state[key])
    # Relabelling uses the same frozen thresholds, whatever the order of the frames.
    stored = evaluation.base_env.rollout(8)[0].select("frame", "goal_mask")
    forward, backward = trained(stored.clone()), trained(stored.flip(0))
    assert torch.equal(forward["is_zoomed"], backward["is_zoomed"].flip(0))


def test_works_behind_a_replay_buffer():
    buffer = ReplayBuffer(
        storage=LazyTensorStorage(20),
        batch_size=6,
        transform=AffordanceTransform(MaskAffordance(), del_keys=True),
    )
    buffer.extend(TransformedEnv(Approach(30)).rollout(20).select("frame", "goal_mask"))
    sample = buffer.sample()
    assert sample["zoomed", "pixels"].shape == (6, 3, 64, 64) and "frame" not in sample.keys()


def test_a_rollout_in_a_plain_buffer_gets_spans_and_returns():
    """Environment, transform, buffer and resolver are TorchRL's; the labels are those of the records."""
    env = TransformedEnv(Approach(9, seed=3), Compose(InitTracker(), AffordanceTransform(MaskAffordance())))
    rollout = roll(env, 60)
    for side in (rollout, rollout["next"]):
        side["is_zoomed"].fill_(True)
        side["zoomed", "score"].fill_(rollout["score"].max() / 2)  # a promise that this world keeps
    (records,) = to_sequence(rollout)
    want = PendingPairs().process(records, 0, 0)
    root = records["done"].logical_not()[:, 0].cumsum(0)[want.index] - 1  # records without ends are roots
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(60), batch_size=1)
    buffer.append_transform(JumpResolver(60))
    for part in rollout.exclude("frame", "goal_mask", ("next", "frame"), ("next", "goal_mask")).split(7):
        buffer.extend(part)
    got = buffer[:]
    assert len(want) > 2 and got["jump_resolved"].sum() == len(want)
    assert torch.equal(got["jump_steps"][root, 0], want.steps)
    assert torch.equal(got["jump_return"][root, 0], want.jump_return)


def test_bad_input_is_named():
    with pytest.raises(SpecError, match="goal_mask"):
        TransformedEnv(Approach(masks=False), AffordanceTransform(MaskAffordance())).observation_spec  # noqa: B018
    with pytest.raises(SpecError, match="found nothing"):
        AffordanceTransform(Vision())(TensorDict({"pixels": torch.zeros(3, 64, 64)}, []))
    with pytest.raises(ConfigError, match="out_keys"):
        AffordanceTransform(Vision(), out_keys=["affordance"])
