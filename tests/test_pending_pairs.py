"""Pending pairs against a literal reading of the rule, for every option and every way of feeding them."""

import json
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from wmkit.data import JumpResolver, PendingPairs, ReplayStreams, StreamWriter, jump_path
from wmkit.errors import CheckpointError, ConfigError, SpecError
from wmkit.objectives import LambdaReturnJumpy

GAMMA = 0.9


def literal(records, *, max_steps, gamma, allow_zero=False, label_timeouts=False, prolong=False):
    """Section 4.5 as it reads: scan every pending pair at every record. Returns [(index, Delta, G)]."""
    pending, out, start = [], [], 0
    for k, record in enumerate(records):
        if record["is_init"]:
            pending = []
            start = k
        if record["is_zoomed"] and not record["done"]:
            pending.append((record["promise"], k))
        for pair in sorted(pending, key=lambda pair: pair[1]):
            promise, t = pair
            late = k - t >= max_steps
            beaten = promise < record["score"] and (allow_zero or k > t)
            if beaten or late:
                pending.remove(pair)
            if beaten or (late and label_timeouts):
                steps = k - t
                paid = [
                    records[t + 1 + i]["reward"] + records[t + 1 + i]["intrinsic"] for i in range(steps - 1)
                ]
                norm = sum(gamma**i for i in range(steps - 1))
                value = sum(gamma**i * x for i, x in enumerate(paid)) / norm if paid else 0.0
                out.append((t, steps, value))
                assert t >= start
        if record["done"] and not prolong:
            pending = []
    return out


LEVELS = st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75, 1.0])  # few levels: ties are common
RECORD = st.fixed_dictionaries(
    {
        "score": LEVELS,
        "promise": LEVELS,
        "is_zoomed": st.booleans(),
        "reward": LEVELS,
        "intrinsic": LEVELS,
        "end": st.integers(0, 9).map(lambda x: x == 0),
    }
)


def with_episodes(raw, prolong):
    """Add is_init and done: an episode ends where ``end`` says so, two records later if prolonged."""
    records, start, done = [], True, 0
    for record in raw:
        record = dict(record)
        record["is_init"] = start
        done = 0 if start else done
        done = done + 1 if (done or (record["end"] and not start)) else 0
        record["done"] = done > 0
        start = done >= (3 if prolong else 1)
        records.append(record)
    return records


def as_tensordict(records):
    def column(key, dtype):
        return torch.tensor([[record[key]] for record in records], dtype=dtype)

    return TensorDict(
        {
            "score": column("score", torch.float32),
            "zoomed": {"score": column("promise", torch.float32)},
            "is_zoomed": column("is_zoomed", torch.bool),
            "reward": column("reward", torch.float32),
            "intrinsic_reward": column("intrinsic", torch.float32),
            "is_init": column("is_init", torch.bool),
            "done": column("done", torch.bool),
        },
        [len(records)],
    )


def rows(resolved):
    return list(zip(*(column.tolist() for column in resolved), strict=True))


@settings(max_examples=150, deadline=None)
@given(
    raw=st.lists(RECORD, min_size=1, max_size=40),
    max_steps=st.integers(1, 12),
    allow_zero=st.booleans(),
    label_timeouts=st.booleans(),
    prolong=st.booleans(),
    cut=st.integers(0, 40),
    first=st.integers(0, 1000),
)
def test_every_path_equals_the_literal_rule(raw, max_steps, allow_zero, label_timeouts, prolong, cut, first):
    options = {
        "max_steps": max_steps,
        "gamma": GAMMA,
        "allow_zero": allow_zero,
        "label_timeouts": label_timeouts,
        "prolong": prolong,
    }
    records = with_episodes(raw, prolong)
    want = [(t + first, steps, value) for t, steps, value in literal(records, **options)]

    # One record at a time, in the second of two streams.
    pairs, steps = PendingPairs(2, **options), []
    for k, r in enumerate(records, first):
        if r["is_init"]:
            pairs.end_episode(1)
        if r["is_zoomed"] and not r["done"]:
            pairs.push(1, k, r["promise"])
        steps += rows(pairs.step(1, k, r["score"], r["reward"], r["intrinsic"]))
        if r["done"] and not prolong:
            pairs.end_episode(1)
        assert not pairs.has_pending(0)
    assert [row[:2] for row in steps] == [row[:2] for row in want]
    assert [row[2] for row in steps] == pytest.approx([row[2] for row in want], abs=1e-6)

    # In two chunks, saved as JSON and loaded into a new object in between.
    cut, chunks, table = min(cut, len(records)), PendingPairs(2, **options), as_tensordict(records)
    got = rows(chunks.process(table[:cut], 1, first))
    resumed = PendingPairs(2, **options)
    resumed.load_state_dict(json.loads(json.dumps(chunks.state_dict())))
    got += rows(resumed.process(table[cut:], 1, first + cut))
    assert got == steps
    assert resumed.counts() == pairs.counts()


def test_golden_return():
    rewards, intrinsics = [0.1, 0.0, 0.2], [0.01, 0.0, 0.0]
    pairs = PendingPairs(1, max_steps=1000, gamma=0.997)
    pairs.push(0, 0, 0.5)
    pairs.step(0, 0, 0.1, 0.0)
    for k, (r, i) in enumerate(zip(rewards, intrinsics, strict=True), 1):
        assert pairs.step(0, k, 0.1, r, i).index.numel() == 0
    index, steps, value = pairs.step(0, 4, 0.6, 5.0)  # the arrival's reward is not part of G
    assert (index.item(), steps.item()) == (0, 4)
    assert value.item() == pytest.approx(0.1032434, abs=5e-8)


def test_own_record_counts_only_in_compat():
    for pairs, want in ((PendingPairs(1), []), (PendingPairs.compat(1), [(3, 0.0, 0.0)])):
        pairs.push(0, 3, 0.2)
        assert rows(pairs.step(0, 3, 0.9, 1.0)) == want
        assert pairs.has_pending(0) == (not want)


def test_timeouts_are_censored_or_labelled():
    for pairs, want in (
        (PendingPairs(1, max_steps=3), []),
        (PendingPairs(1, max_steps=3, label_timeouts=True), [(0, 3.0, 1.0)]),
    ):
        pairs.push(0, 0, 0.9)
        got = [row for k in range(6) for row in rows(pairs.step(0, k, 0.1, 1.0))]
        assert got == want
        assert pairs.counts()["timed_out"] == 1 and not pairs.has_pending(0)
        # A pair beaten exactly at max_steps was reached, not given up.
        pairs.push(0, 6, 0.5)
        assert [row for k in range(6, 10) for row in rows(pairs.step(0, k, 0.9 * (k == 9), 1.0))] == [
            (6, 3.0, 1.0)
        ]


def test_a_won_episode_can_reach_what_still_waits():
    records = as_tensordict(
        [
            {"score": 0.1, "promise": 0.9, "is_zoomed": k < 2, "reward": float(k == 3), "intrinsic": 0.5}
            | {"is_init": k == 0, "done": k == 3}
            for k in range(4)
        ]
    )
    records["success"] = records["done"]
    assert rows(PendingPairs(1).process(records, 0, 0)) == []
    pairs = PendingPairs(1, success_reaches=True)
    assert rows(pairs.process(records, 0, 0)) == [(0, 3.0, 0.5), (1, 2.0, 0.5)]
    assert pairs.counts()["reached"] == 2 and pairs.counts()["abandoned"] == 0


def test_long_episodes_keep_precision_and_bounded_memory():
    pairs = PendingPairs(1, max_steps=50, gamma=0.5)
    for k in range(5000):
        if k % 100 == 10:
            pairs.push(0, k, 0.5)
        for row in rows(pairs.step(0, k, float(k % 100 == 40), 0.25)):
            assert row == (k - 30, 30.0, 0.25)
    assert pairs.reached == 50 and len(pairs._streams[0].values) <= 251


def test_pickles_and_refuses_nonsense():
    pairs = PendingPairs(2, max_steps=5)
    pairs.push(1, 7, 0.5)
    pairs.step(1, 7, 0.0, 0.0)
    assert rows(pickle.loads(pickle.dumps(pairs)).step(1, 8, 0.6, 0.0)) == [(7, 1.0, 0.0)]
    assert pairs.end_episode(1) == 1 and len(pairs) == 0
    with pytest.raises(ConfigError, match="max_steps=0"):
        PendingPairs(1, max_steps=0)
    with pytest.raises(CheckpointError, match="2 streams"):
        PendingPairs(3).load_state_dict(pairs.state_dict())
    pairs.step(0, 0, 0.0, 0.0)
    with pytest.raises(SpecError, match="wanted 1"):
        pairs.step(0, 2, 0.0, 0.0)
    with pytest.raises(SpecError, match="is_zoomed"):
        pairs.process(
            TensorDict({"score": torch.zeros(1, 1), "zoomed": {"score": torch.zeros(1, 1)}}, [1]), 0, 1
        )


# ---- the same on TorchRL's own buffers --------------------------------------------------------------


def transitions(streams, steps, generator):
    """Random transitions ``[E, T]`` in a collector's layout."""

    def levels(*names):
        return {name: torch.randint(0, 5, (streams, steps + 1, 1), generator=generator) / 8 for name in names}

    done = torch.rand(streams, steps, 1, generator=generator) < 0.15
    values = levels("score", "promise", "intrinsic_reward")
    zoomed = torch.rand(streams, steps + 1, 1, generator=generator) < 0.5
    seen = {"score": values["score"], "intrinsic_reward": values["intrinsic_reward"], "is_zoomed": zoomed}

    def part(at):
        return {key: value[:, at] for key, value in seen.items()} | {
            "zoomed": {"score": values["promise"][:, at]}
        }

    root, after = part(slice(0, -1)), part(slice(1, None))
    after |= {"reward": levels("reward")["reward"][:, 1:], "done": done, "terminated": done}
    is_init = torch.cat((torch.zeros(streams, 1, 1, dtype=torch.bool), done[:, :-1]), 1)
    action = torch.zeros(streams, steps, 2)
    return TensorDict({**root, "is_init": is_init, "action": action, "next": after}, [streams, steps])


def batches(number=7, streams=3, steps=11, seed=0):
    """Consecutive batches, the first of which starts episodes."""
    whole = transitions(streams, number * steps, torch.Generator().manual_seed(seed))
    whole["is_init"][:, 0] = True
    # An arrival that is acted on is the next root.
    for key in ("score", "intrinsic_reward", "is_zoomed", ("zoomed", "score")):
        fresh = whole["is_init"][:, 1:]
        whole[key][:, 1:] = torch.where(fresh, whole[key][:, 1:], whole["next"][key][:, :-1])
    return whole.split(steps, 1)


LABELS = ("jump_steps", "jump_return", "jump_resolved")


@pytest.mark.parametrize("options", [{}, {"allow_zero": True, "label_timeouts": True}])
def test_a_plain_buffer_gets_the_labels_of_stream_writer(options):
    def rule():
        return PendingPairs(3, max_steps=9, gamma=GAMMA, **options)

    streams = ReplayStreams(num_streams=3, capacity=900)
    writer = StreamWriter(streams, pairs=rule())
    by_records = TensorDictReplayBuffer(storage=LazyTensorStorage(600), batch_size=1)
    by_records.append_transform(JumpResolver(600, rule()))
    by_transitions = TensorDictReplayBuffer(storage=LazyTensorStorage(600), batch_size=1)
    by_transitions.append_transform(JumpResolver(600, rule(), stream_key="env"))
    index, root = [[], [], []], [[], [], []]
    for k, batch in enumerate(batches()):
        if k == 4:  # a checkpoint between: new objects take over
            for buffer in (by_records, by_transitions):
                state = buffer._transform.state_dict()
                old = buffer._transform[0]
                new = JumpResolver(600, rule(), stream_key=old.stream_key)
                buffer._transform.transforms[0] = new
                buffer._transform.load_state_dict(state)
        batch = batch.clone()
        for written in writer.write(batch):
            records = written.records.exclude(*LABELS)
            records["stream"] = torch.full((len(records),), written.stream)
            index[written.stream].append(by_records.extend(records))
        rows = batch.clone()
        rows["env"] = torch.arange(3)[:, None].expand(3, batch.shape[1])
        for e, ids in enumerate(by_transitions.extend(rows.reshape(-1)).view(3, -1)):
            root[e].append(ids)
    resolved = 0
    for e in range(3):
        want = streams.get(streams.ids(e))
        got = by_records[torch.cat(index[e])]
        acted = by_transitions[torch.cat(root[e])]
        last = want["done"][:, 0].clone()
        last[-1] = True  # nobody acted on it yet
        for key in LABELS:
            assert torch.equal(got[key], want[key]), key
            assert torch.equal(acted[key], want[key][~last]), key
        resolved += int(want["jump_resolved"].sum())
    assert resolved > 50


def test_a_row_of_a_batch_is_a_stream_and_the_table_is_a_ring():
    resolver = JumpResolver(8, PendingPairs(2, max_steps=5), out_keys=["span", ("jump", "return"), "known"])
    first = as_tensordict(
        [
            {"score": 0.1, "promise": 0.5, "is_zoomed": True, "reward": 0.0, "intrinsic": 0.0}
            | {"is_init": False, "done": False}
        ]
        * 2
    )
    later = first.clone()
    later["score"][:] = 0.9
    rows = torch.stack((first, first))
    rows = resolver.inv(rows)
    assert not resolver(rows.clone())["known"].any()
    resolver.inv(torch.stack((later, first)))
    out = resolver(rows.clone())
    assert out["known"][..., 0].tolist() == [[True, True], [False, False]]
    assert out["span"][..., 0].tolist() == [[2.0, 1.0], [5.0, 5.0]]
    for _ in range(20):
        resolver.inv(torch.stack((later, later)))
    assert not resolver(rows.clone())["known"][0].any()
    with pytest.raises(SpecError, match="PendingPairs\\(3\\)"):
        resolver.inv(torch.stack((first, first, first)))
    with pytest.raises(SpecError, match="is_zoomed"):
        resolver.inv(rows.exclude("is_zoomed"))


def test_a_path_of_jumps_is_worth_what_its_steps_are():
    torch.manual_seed(0)
    length = 40
    flag = torch.zeros(length, 1, dtype=torch.bool)
    columns = {"score": torch.rand(length, 1), "is_zoomed": torch.rand(length, 1) < 0.4}
    columns |= {"reward": torch.randn(length, 1), "intrinsic_reward": torch.zeros(length, 1)}
    columns |= {"is_init": flag.clone(), "done": flag.clone(), "zoomed": {"score": torch.rand(length, 1)}}
    records = TensorDict(columns, [length])
    records["is_init"][0] = records["is_init"][25] = records["done"][24] = True
    found = PendingPairs(gamma=GAMMA).process(records, 0, 0)
    labels = torch.full((length, 1), 1000.0), torch.zeros(length, 1), flag.clone()
    for label, value in zip(labels, (found.steps, found.jump_return, True), strict=True):
        label[found.index, 0] = value
    records.update(dict(zip(LABELS, labels, strict=True)))
    records["terminated"], records["state_value"] = records["done"], torch.randn(length, 1)
    steps = records.clone()
    steps["jump_resolved"].fill_(False)
    taken, walked = (jump_path(x[None], GAMMA) for x in (records, steps))
    assert (taken["next", "steps_to_next_obs"] > 1).sum() > 3
    assert taken["counts"].sum() < walked["counts"].sum() == length - 2
    for first in (0, 25):  # each episode from its first record
        estimate = LambdaReturnJumpy(gamma=GAMMA, lmbda=1.0).value_estimate
        value, want = (jump_path(x[None, first:], GAMMA) for x in (records, steps))
        torch.testing.assert_close(estimate(value)[:, 0], estimate(want)[:, 0])
