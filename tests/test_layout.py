"""Transitions and records: nothing lost, nothing twice, whatever the chunks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector
from torchrl.data import Composite, LazyTensorStorage, OneHot, SliceSampler, TensorDictReplayBuffer, Unbounded
from torchrl.envs import EnvBase, InitTracker, SerialEnv, TransformedEnv

from wmkit.data import PendingPairs, ReplayStreams, StreamWriter, to_sequence, to_transitions
from wmkit.errors import SpecError

KEYS = ("pixels", "previous_action", "reward", "is_init", "terminated", "done", "state")


def episodes(lengths: list[int], stream: int = 0) -> TensorDict:
    """Transitions [T] of episodes of those lengths; every number in them is distinct."""
    rows = []
    for number, length in enumerate(lengths):
        for t in range(length):
            at = 10_000 * stream + 100 * number + t
            last = t == length - 1
            rows.append((at, at + 1, t == 0, last and number % 2 == 0, last))
    now, after, first, terminated, done = (
        torch.tensor(column).view(-1, 1) for column in zip(*rows, strict=True)
    )
    return TensorDict(
        {
            "pixels": now.float(),
            "action": torch.cat([now, -now], 1).float(),
            "state": now.float() + 0.5,
            "log_prob": now.float(),
            "is_init": first,
            "collector": {"traj_ids": now.view(-1)},
            "next": {
                "pixels": after.float(),
                "bonus": after.float() * 2,
                "reward": after.float() * 10,
                "terminated": terminated,
                "truncated": done & ~terminated,
                "done": done,
            },
        },
        [len(rows)],
    )


def expected(lengths: list[int], stream: int = 0) -> TensorDict:
    """The records of those episodes, written down directly."""
    rows = []
    for number, length in enumerate(lengths):
        for t in range(length + 1):
            at, first, last = 10_000 * stream + 100 * number + t, t == 0, t == length
            action = [0.0, 0.0] if first else [at - 1.0, 1.0 - at]
            rows.append(
                (
                    at,
                    action,
                    0.0 if first else at * 10.0,
                    first,
                    last and number % 2 == 0,
                    last,
                    0.0 if last else at + 0.5,
                    0.0 if first else at * 2.0,
                )
            )
    columns = [torch.tensor(column).view(len(rows), -1) for column in zip(*rows, strict=True)]
    columns[0] = columns[0].float()
    return TensorDict(dict(zip((*KEYS, "bonus"), columns, strict=True)), [len(rows)])


def test_every_first_and_terminal_frame_is_a_record():
    (records,) = to_sequence(episodes([3, 1, 2]))
    assert set(records.keys()) == {*KEYS, "bonus"}  # no log_prob, no collector
    assert (records == expected([3, 1, 2])).all()


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 5), min_size=6, max_size=8), min_size=1, max_size=3),
    data=st.data(),
)
def test_chunks_join_without_loss_or_repetition(lengths, data):
    """Any way of cutting [E, T] into batches writes the same streams, latents included."""
    steps = min(sum(each) for each in lengths)
    batch = torch.stack([episodes(each, e)[:steps] for e, each in enumerate(lengths)])
    cuts = sorted(data.draw(st.sets(st.integers(1, steps - 1), max_size=5)) if steps > 1 else [])
    streams = ReplayStreams(num_streams=len(lengths), capacity=100 * len(lengths))
    writer = StreamWriter(streams)
    for start, stop in zip([0, *cuts], [*cuts, steps], strict=True):
        writer.write(batch[:, start:stop])
    for e, each in enumerate(lengths):
        ids = streams.ids(e)
        want = expected(each, e)[: len(ids)]
        # Nobody has acted on the newest record, so its latent is not known yet.
        want["state"][-1] = 0
        found = streams.get(ids).exclude("index")
        assert (found == want).all()
        arrived = int((~want["is_init"]).sum())
        assert arrived == steps
    assert streams.total_steps == steps * len(lengths)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_round_trip(lengths):
    transitions = episodes(lengths)
    (records,) = to_sequence(transitions)
    back = to_transitions(records)
    assert len(back) == sum(lengths)
    for key in ("pixels", "action", "is_init", "state", *(("next", k) for k in transitions["next"].keys())):
        assert torch.equal(back.get(key), transitions.get(key)), key
    assert (to_sequence(back)[0] == records).all()
    pair = to_transitions([records, records])
    assert pair.batch_size == (2, len(back))
    with pytest.raises(SpecError, match="unequal"):
        to_transitions([records, expected([7, 30])])


def test_missing_key_is_named():
    with pytest.raises(SpecError, match="'action'"):
        to_sequence(episodes([3]).exclude("action"))
    assert (to_sequence(episodes([3]).exclude("is_init"))[0] == to_sequence(episodes([3]))[0]).all()


def test_abandoned_and_restarted_streams_are_closed():
    streams = ReplayStreams(num_streams=1, capacity=100)
    writer = StreamWriter(streams)
    writer.write(episodes([5])[:3])  # the collector resets here without a done
    writer.write(episodes([4]))
    records = streams.get(streams.ids(0))
    assert records["done"].view(-1).nonzero().view(-1).tolist() == [3, 8]
    assert not records["terminated"][3]
    # A new writer (a resumed run) cannot continue an episode: its first record starts one.
    StreamWriter(streams).write(episodes([5])[2:4])
    assert streams.get(streams.ids(0))["is_init"].view(-1).nonzero().view(-1).tolist() == [0, 4, 9]


def test_writer_resolves_pairs_and_fills_defaults():
    batch = episodes([6])
    zeros = torch.zeros(6, 1)
    for key in ("score", "intrinsic_reward"):
        batch[key], batch["next", key] = zeros.clone(), zeros.clone()
    for root in (batch, batch["next"]):
        root["is_zoomed"] = root["pixels"] == 1
        root["zoomed"] = TensorDict({"score": torch.full((6, 1), 0.5)}, [6])
        root["score"] = torch.where(root["pixels"] == 4, 1.0, 0.0)
    streams = ReplayStreams(num_streams=3, capacity=300)
    writer = StreamWriter(
        streams, pairs=PendingPairs(3, max_steps=50, gamma=1.0), defaults={"belief": torch.zeros(7)}
    )
    for t in range(6):
        writer.write(batch[t : t + 1].unsqueeze(0), streams=[2])
    records = streams.get(streams.ids(2))
    assert records["jump_resolved"].view(-1).tolist() == [False, True, False, False, False, False, False]
    assert records["jump_steps"].view(-1).tolist() == [50, 3, 50, 50, 50, 50, 50]
    assert records["jump_return"][1].item() == 25.0  # the mean of the rewards 20 and 30
    assert records["belief"].shape == (7, 7)
    with pytest.raises(SpecError, match="num_streams=4"):
        writer.write(batch[:4].unsqueeze(1))


class Counting(EnvBase):
    """Observation = t, reward = t, done every 7; its state is its observation."""

    def __init__(self):
        super().__init__()
        self.observation_spec = Composite(pixels=Unbounded(1))
        self.action_spec = OneHot(3)
        self.reward_spec = Unbounded(1)
        self.t = 0

    def _reset(self, tensordict=None, **kwargs):
        self.t = 0
        return TensorDict({"pixels": torch.zeros(1)}, [])

    def _step(self, tensordict):
        self.t += 1
        now = torch.full((1,), float(self.t))
        return TensorDict(
            {"pixels": now, "reward": now.clone(), "done": now == 7, "terminated": now == 7}, []
        )

    def _set_seed(self, seed):
        pass


def test_a_real_collector_fills_the_streams():
    def policy(pixels):
        return torch.nn.functional.one_hot(pixels.long().squeeze(-1) % 3, 3), pixels + 0.5

    env = TransformedEnv(SerialEnv(2, Counting), InitTracker())
    module = TensorDictModule(policy, in_keys=["pixels"], out_keys=["action", "state"])
    streams = ReplayStreams(num_streams=2, capacity=1000)
    writer = StreamWriter(streams)
    collector = Collector(env, module, frames_per_batch=10, total_frames=100)
    for batch in collector:
        writer.write(batch)
    collector.shutdown()
    for stream in range(2):
        records = streams.get(streams.ids(stream))
        t = torch.arange(len(records)).view(-1, 1) % 8  # 8 records for 7 transitions
        assert torch.equal(records["pixels"], t.float()) and torch.equal(records["reward"], t.float())
        assert torch.equal(records["is_init"], t == 0) and torch.equal(records["done"], t == 7)
        assert torch.equal(records["previous_action"].argmax(-1, keepdim=True)[t > 0], ((t - 1) % 3)[t > 0])
        assert torch.equal(records["state"][:-1], torch.where(t == 7, 0.0, t + 0.5)[:-1])
    assert streams.total_steps == 100


def test_records_in_torchrl_buffers():
    """The recipe in the docstring of wmkit.data: slices cross episodes and flags stay as written."""
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(100),
        batch_size=4 * 10,
        sampler=SliceSampler(slice_len=10, traj_key="stream", init_key=None, truncated_key=None),
    )
    for stream in range(2):
        (records,) = to_sequence(episodes([4, 5, 6], stream))
        records["stream"] = torch.full((len(records),), stream)
        buffer.extend(records)
    batch = buffer.sample().reshape(4, 10)
    for row in batch:
        want = expected([4, 5, 6], int(row["stream"][0]))
        first = int((want["pixels"] == row["pixels"][0]).nonzero()[0, 0])
        assert (row.select(*KEYS) == want.select(*KEYS)[first : first + 10]).all()


def test_a_plain_rollout_of_the_counting_environment_needs_no_tracker():
    from wmkit.envs.counting import CountingEnv

    rollout = CountingEnv().rollout(20, break_when_any_done=False)
    (records,) = to_sequence(rollout)
    count = records["observation"].view(-1)
    assert records["is_init"].sum() == 3 and (count[records["is_init"].view(-1)] == 0).all()
    assert torch.equal(records["reward"].view(-1), count)
    assert (records["done"].view(-1) == (count == 7)).all()
