"""Replay streams: windows, ids, eviction, encodings, sparse images, crashes, samplers."""

import copy
import json
import subprocess
import sys
import textwrap
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from support.streams import records, verify
from wmkit.data import OnlineQueue, ReplayStreams, Sampler, Uniform, VisitBalanced, Windows
from wmkit.data.storage import Column, Counters
from wmkit.errors import CheckpointError, SpecError


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40)), min_size=1, max_size=12),
    capacity=st.integers(6, 75),
    length=st.integers(1, 6),
)
def test_windows_are_consecutive_records_of_one_stream(sizes, capacity, length):
    """Random extends, wrapping and overlong ones included, against plain lists."""
    streams = ReplayStreams(num_streams=3, capacity=capacity, sparse={"zoomed": 50.0})
    rows, written = capacity // 3, [0, 0, 0]
    for stream, n in sizes:
        index = streams.extend(records(written[stream], n), stream)
        assert index.tolist() == [(written[stream] + i) * 3 + stream for i in range(n)]
        written[stream] += n
    held = [min(n, rows) for n in written]
    assert len(streams) == sum(held) and streams.total_records == sum(written)
    assert streams.total_steps == sum(sum(t % 7 != 0 for t in range(n)) for n in written)
    assert streams.num_windows(length) == sum(max(0, n - length + 1) for n in held)
    if streams.num_windows(length) == 0:
        with pytest.raises(SpecError, match="no window"):
            streams.sample(4, length)
        return
    batch = streams.sample(16, length)
    number, index = batch["number"].squeeze(-1), batch["index"]
    assert torch.equal(index // 3, number)
    assert (index % 3 == index[:, :1] % 3).all() and (number.diff(dim=1) == 1).all()
    newest = torch.tensor(written)[index % 3]
    assert (number < newest).all() and (number >= newest - rows).all()
    assert torch.equal(batch["is_init"].squeeze(-1), number % 7 == 0)
    assert torch.equal(batch["done"].squeeze(-1), (number % 7 == 6) & (number != newest - 1))
    zoomed = number % 3 == 0
    assert torch.equal(batch["is_zoomed"].squeeze(-1), zoomed)
    assert torch.equal(batch["zoomed", "score"].squeeze(-1), torch.where(zoomed, number + 0.5, 0.0))
    want = torch.where(zoomed, 255 - number % 251, 0)
    assert (batch["zoomed", "pixels"] == want.view(16, length, 1, 1, 1)).all()
    assert (batch["pixels"] == (number % 251).view(16, length, 1, 1, 1)).all()


def test_starts_are_uniform_over_streams_and_reproducible():
    def fill():
        streams = ReplayStreams(num_streams=2, capacity=40, seed=3)
        streams.extend(records(0, 25), 0)  # 20 held
        streams.extend(records(0, 8), 1)
        return streams

    streams = fill()
    starts = streams.sample(20_000, 5)["index"][:, 0]
    ids, counts = starts.unique(return_counts=True)
    assert sorted(ids.tolist()) == sorted([*range(10, 42, 2), *range(1, 9, 2)])  # 16 + 4 starts
    expected = 20_000 / 20
    assert ((counts - expected).square() / expected).sum() < 45  # chi-square, 19 degrees, p about 0.001
    again = fill()
    state = again.state_dict()
    first = again.sample(50, 5)["index"]
    assert torch.equal(first, fill().sample(50, 5)["index"])
    again.load_state_dict(state)
    assert torch.equal(first, again.sample(50, 5)["index"])


def test_force_init_touches_the_first_record_of_a_window_only():
    streams = ReplayStreams(num_streams=1, capacity=50)
    streams.extend(records(1, 40), 0)
    batch = streams.sample(8, 6, force_init=True)
    assert batch["is_init"][:, 0].all() and batch["reward"].all()
    assert not batch["previous_action"][:, 0].any() and batch["previous_action"][:, 1:].all()
    stored = streams.get(batch["index"])
    assert torch.equal(stored["is_init"][:, 1:], batch["is_init"][:, 1:]) and stored["reward"].all()
    # Reused memory gives the same batch, and a selection gives the same keys.
    assert (streams.get(batch["index"], out=batch) == stored).all() and batch["reward"].all()
    few = streams.get(stored["index"], keys=["zoomed"])
    assert set(few.keys()) == {"zoomed", "index"} and (few["zoomed"] == stored["zoomed"]).all()


def test_encodings():
    """Class indices are lossless, all-zero groups included; half precision is not."""
    data = records(0, 20)
    data["state"][3] = 0
    streams = ReplayStreams(num_streams=1, capacity=20, one_hot={"state": 4}, half=["belief"])
    index = streams.extend(data, 0)
    assert streams._columns[("state",)].values.shape == (20, 2)
    back = streams.get(index)
    assert torch.equal(back["state"], data["state"]) and back["state"].dtype == torch.float32
    assert torch.equal(back["belief"], data["belief"].half().float())
    with pytest.raises(SpecError, match="'state'"):
        ReplayStreams(num_streams=1, capacity=20, one_hot={"state": 3}).extend(data, 0)


def test_patches_skip_evicted_records():
    streams = ReplayStreams(num_streams=2, capacity=20, one_hot={"state": 4})
    index = streams.extend(records(0, 15), 1)  # 10 held: 5 to 14
    new = TensorDict({"state": torch.eye(8)[:1].expand(15, 8), "reward": torch.full((15, 1), -1.0)}, [15])
    assert streams.patch(index, new) == 10
    assert (streams.get(streams.ids(1))["reward"] == -1).all()
    batch = streams.sample(4, 5)
    values = batch.select("reward") * 2  # a batch [B, L] of latents, written back by its index
    assert streams.patch(batch["index"], values) == 20
    assert torch.equal(streams.get(batch["index"])["reward"], values["reward"])
    streams.extend(records(15, 10), 1)
    assert streams.patch(index, new) == 0
    assert streams.patch(torch.tensor([10_000]), new[:1]) == 0
    assert streams.get(streams.ids(1))["reward"].view(-1).tolist() == list(range(15, 25))
    with pytest.raises(SpecError, match="'zoomed'"):
        streams.patch(streams.ids(1)[:1], records(0, 1).select("zoomed"))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 15), st.integers(0, 3)), min_size=1, max_size=10))
def test_latents_written_back_late_and_overlapping(rounds):
    """Windows drawn before others were written and evicted: each record holds what was written last."""
    streams = ReplayStreams(num_streams=2, capacity=40, one_hot={"state": 4}, half={"belief": "bfloat16"})
    known, late, serial, end = {}, [], 0, [0, 0]
    for stream, n, keep in rounds:
        new = records(end[stream], n)
        new["belief"] = torch.full((n, 5), -1.0)
        known |= dict.fromkeys(streams.extend(new, stream).tolist(), -1)
        end[stream] += n
        if streams.num_windows(5):
            late.append(streams.sample(4, 5)["index"][:, 1:])  # the context record is not written back
        while len(late) > keep:
            index = late.pop(0)
            fresh = torch.arange(index.numel()).view(index.shape) % 8 + 8 * (serial % 16)  # exact in bfloat16
            serial += 1
            belief = fresh.unsqueeze(-1).expand(4, 4, 5).float()
            state = torch.nn.functional.one_hot(fresh % 4, 4).repeat(1, 1, 2).float()
            streams.patch(index, TensorDict({"state": state, "belief": belief}, [4, 4]))
            known |= dict(zip(index.flatten().tolist(), fresh.flatten().tolist(), strict=True))
    for stream in range(2):
        held = streams.get(streams.ids(stream))
        want = torch.tensor([known[i] for i in held["index"].tolist()], dtype=torch.int64)
        assert torch.equal(held["belief"], want[:, None].expand(-1, 5).float())
        written = want >= 0
        state = torch.nn.functional.one_hot(want[written] % 4, 4).repeat(1, 2).float()
        assert torch.equal(held["state"][written], state)


@pytest.mark.parametrize("half", [{}, {"belief": "float16"}, {"belief": "bfloat16"}])
def test_bytes_are_those_of_the_files(tmp_path, half):
    options = {"num_streams": 2, "capacity": 1001, "one_hot": {"state": 4}, "half": half}
    streams = ReplayStreams(tmp_path, **options)
    assert streams.bytes_by_key() == {}
    data = records(0, 9)
    data["belief"] = data["belief"].bfloat16().float()
    index = streams.extend(data, 0)
    sizes = streams.bytes_by_key()
    files = {
        str(p.relative_to(tmp_path).with_suffix("")): p.stat().st_size for p in tmp_path.rglob("*.memmap")
    }
    for key, size in sizes.items():
        if key != "(bookkeeping)":
            assert files.pop(key) == size, key
    assert sizes["(bookkeeping)"] == sum(files.values())
    assert sizes["state"] == 1000 * 2 and sizes["belief"] == 1000 * 5 * (2 if half else 4)
    back = ReplayStreams(tmp_path, **options).get(index)["belief"]
    if half != {"belief": "float16"}:
        assert torch.equal(back, data["belief"])  # nothing is lost where it was carried so
    assert ((back - data["belief"]).abs() <= data["belief"].abs() * 2**-11).all()
    with pytest.raises(SpecError, match="'int8'"):
        ReplayStreams(num_streams=1, capacity=9, half={"belief": "int8"})


def test_sparse_ring_overflows_from_the_oldest():
    streams = ReplayStreams(num_streams=1, capacity=40, sparse={"zoomed": 0.25})  # 10 slots
    for start in range(0, 40, 8):
        streams.extend(records(start, 8, zoomed=1), 0)
    batch = streams.get(streams.ids(0))
    assert batch["is_zoomed"].view(-1).tolist() == [False] * 30 + [True] * 10
    assert not batch["zoomed", "pixels"][:30].any()
    assert torch.equal(batch["zoomed", "score"][30:], batch["reward"][30:] + 0.5)
    none = ReplayStreams(num_streams=1, capacity=40)
    none.extend(records(1, 20, zoomed=1000), 0)
    assert not none.sample(4, 8)["is_zoomed"].any()


def test_reopening_is_exact(tmp_path):
    options = {"num_streams": 2, "capacity": 40, "one_hot": {"state": 4}, "half": ["belief"]}
    streams = ReplayStreams(tmp_path, **options)
    for stream in range(2):
        streams.extend(records(0, 30 - stream), stream)
    before = [streams.get(streams.ids(s)) for s in range(2)]
    for again in (ReplayStreams(tmp_path, **options), ReplayStreams.open(tmp_path)):
        assert again.total_steps == streams.total_steps
        assert all((again.get(again.ids(s)) == before[s]).all() for s in range(2))
    assert again.extend(records(30, 1), 0).item() == 60
    for change, wanted in (
        ({"capacity": 80}, "capacity"),
        ({"num_streams": 1}, "num_streams"),
        ({"half": []}, "half"),
    ):
        with pytest.raises(CheckpointError, match=f"another {wanted}: found .*, wanted"):
            ReplayStreams(tmp_path, **{**options, **change})
    other = records(0, 2)
    other["pixels"] = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    message = r"key 'pixels' differs: found uint8 \[3, 4, 4\] raw, wanted uint8 \[1, 4, 4\] raw"
    with pytest.raises(CheckpointError, match=message):
        ReplayStreams.open(tmp_path).extend(other, 0)
    with pytest.raises(SpecError, match="differs from the first one"):
        streams.extend(other, 0)
    with pytest.raises(SpecError, match="'is_init'"):
        ReplayStreams(num_streams=1, capacity=9).extend(TensorDict({"pixels": torch.zeros(1, 3)}, [1]), 0)
    (tmp_path / "pixels.memmap").write_bytes(b"")
    with pytest.raises(CheckpointError, match="incomplete"):
        ReplayStreams.open(tmp_path)
    (tmp_path / "schema.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        ReplayStreams.open(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        ReplayStreams.open(tmp_path / "nowhere")


def test_interrupted_at_every_write(tmp_path, monkeypatch):
    """An extend that stops before its k-th store, for every k, leaves what was there before."""
    k = 0
    while True:
        directory = tmp_path / str(k)
        streams = ReplayStreams(directory, num_streams=1, capacity=30, sparse={"zoomed": 0.2})  # 6 slots
        for start in range(0, 45, 9):
            streams.extend(records(start, 9), 0)
        left = k

        def stop(write):
            def wrapped(*args):
                nonlocal left
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt
                return write(*args)

            return wrapped

        with monkeypatch.context() as patch:
            patch.setattr(Column, "__setitem__", stop(Column.__setitem__))
            patch.setattr(Counters, "commit", stop(Counters.commit))
            try:
                streams.extend(records(45, 9), 0)
            except KeyboardInterrupt:
                pass
            else:
                break
        again = ReplayStreams.open(directory)
        assert int(again.windows(1).end[0]) == 45 and len(again) >= 30 - 9
        verify(again)
        again.extend(records(45, 7), 0)  # and it goes on from there
        verify(again)
        k += 1
    assert k > 10
    verify(streams)


CRASH = """
    import json, os, random, signal, sys, time
    import torch
    from wmkit.data import ReplayStreams
    sys.path.insert(0, sys.argv[2])
    from support.streams import records, verify

    torch.set_num_threads(1)
    rng = random.Random(0)
    totals = []
    for attempt in range(int(sys.argv[3])):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            streams = ReplayStreams(sys.argv[1], num_streams=2, capacity=60, sparse={"zoomed": 0.1})
            while True:
                stream = rng.randrange(2)
                start = int(streams.windows(1).end[stream])
                streams.extend(records(start, rng.randrange(1, 20)), stream)
                os.write(writer, json.dumps(streams.windows(1).end.tolist()).encode() + b"\\n")
        os.close(writer)
        with os.fdopen(reader) as lines:
            seen = [lines.readline()]  # it is writing
            time.sleep(rng.random() * 0.02)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            seen += [line for line in lines if line.endswith("\\n")]
        streams = ReplayStreams.open(sys.argv[1])
        assert (streams.windows(1).end >= torch.tensor(json.loads(seen[-1]))).all()
        verify(streams)
        totals.append(streams.total_records)
    print(json.dumps(totals))
"""


def test_killed_mid_write(tmp_path):
    """SIGKILL at random moments: every finished extend is there, and nothing that is half written."""
    script = tmp_path / "crash.py"
    script.write_text(textwrap.dedent(CRASH))
    command = [sys.executable, str(script), str(tmp_path / "replay"), str(Path(__file__).parent), "12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    totals = json.loads(done.stdout)
    assert len(totals) == 12 and totals == sorted(totals) and totals[-1] > totals[0]


def windows(begin, end, length, capacity=100):
    return Windows(torch.tensor(begin), torch.tensor(end), capacity, length)


@pytest.mark.parametrize("sampler", [Uniform(), OnlineQueue(), VisitBalanced(2.0)])
def test_samplers_draw_valid_starts_and_continue_from_their_state(sampler):
    assert isinstance(sampler, Sampler)
    generator = torch.Generator().manual_seed(0)
    now = windows([0, 5, 2], [0, 25, 90], 6)
    for _ in range(20):
        ids = sampler.draw(now, 7, generator)
        stream, position = ids % 3, ids // 3
        assert ids.shape == (7,) and ids.dtype == torch.int64
        assert (position >= now.begin[stream]).all() and (position + 6 <= now.end[stream]).all()
    twin = type(sampler)()
    if isinstance(sampler, VisitBalanced):
        twin.temperature = sampler.temperature
    twin.load_state_dict(copy.deepcopy(sampler.state_dict()))  # as a checkpoint has it, visits included
    state = generator.get_state()
    mine = sampler.draw(now, 7, generator)
    assert torch.equal(mine, twin.draw(now, 7, torch.Generator().set_state(state)))
    with pytest.raises(SpecError, match="no window"):
        type(sampler)().draw(windows([0], [3], 6), 1, generator)


def test_online_queue_hands_out_every_fresh_window_once():
    generator = torch.Generator().manual_seed(0)
    queue = OnlineQueue()
    seen = []
    for end in range(16, 400, 8):
        now = windows([0, 0], [end, end], 10, capacity=1000)
        seen += queue.draw(now, 4, generator).tolist()
    starts = [s for s in range(0, 390, 10) if s + 10 <= 392]
    assert {s * 2 + e for s in starts for e in range(2)} <= set(seen)
    fresh = OnlineQueue(stride=9).draw(windows([0, 0], [30, 20], 10), 6, generator)
    # Stream 0 at 0, 9, 18; stream 1 at 0, 9: those finished longest ago come first.
    assert fresh[:5].tolist() == [0, 18, 1, 36, 19]
    late = OnlineQueue()
    late.draw(windows([0], [100], 10), 1, generator)
    assert late.draw(windows([50], [100], 10), 1, generator).item() == 50  # 10 to 40 were evicted


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_online_queue_against_lists(data):
    """Random growth, eviction, batches, reloads: fresh ones in order, each once, the rest by chance."""
    streams, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    stride = data.draw(st.sampled_from([None, max(1, length - 1)]))
    capacity = data.draw(st.integers(length, 40))
    queue, generator = OnlineQueue(stride), torch.Generator().manual_seed(0)
    end, cut, waiting, given_out = [0] * streams, [0] * streams, [], []
    for _ in range(data.draw(st.integers(1, 12))):
        end = [e + data.draw(st.integers(0, 25)) for e in end]
        begin = [max(0, e - capacity) for e in end]
        finished = []
        for s in range(streams):
            cut[s] = max(cut[s], begin[s])
            while cut[s] + length <= end[s]:
                finished.append((end[s] - cut[s] - length, -s, (s, cut[s])))  # records since, stream, window
                cut[s] += stride or length
        waiting += [window for _, _, window in sorted(finished, reverse=True)]
        starts = [(s, p) for s in range(streams) for p in range(begin[s], end[s] - length + 1)]
        if not starts:
            continue
        batch = data.draw(st.integers(1, 9))
        if data.draw(st.booleans()):
            state, queue = queue.state_dict(), OnlineQueue(stride)
            queue.load_state_dict(state)
        ids = queue.draw(windows(begin, end, length, capacity), batch, generator).tolist()
        drawn = [(i % streams, i // streams) for i in ids]
        alive = [window for window in waiting if window[1] >= begin[window[0]]]
        fresh, waiting = alive[:batch], alive[batch:]
        assert drawn[: len(fresh)] == fresh and set(drawn) <= set(starts) and len(drawn) == batch
        given_out += fresh
        assert len(queue.state_dict()["queue"]) <= streams * (capacity // (stride or length) + 1)
    assert len(set(given_out)) == len(given_out)
    for s in range(streams):
        own = [p for stream, p in given_out if stream == s]
        assert own == sorted(own) and all(b - a >= (stride or length) for a, b in pairwise(own))


def test_visit_balanced_fills_up_the_least_visited():
    generator = torch.Generator().manual_seed(0)
    sampler = VisitBalanced(temperature=1.0)
    now = windows([0, 0], [40, 30], 6)
    for _ in range(100):
        ids = sampler.draw(now, 12, generator)
        assert ids.unique().numel() == 12  # without replacement
    counts = torch.cat([sampler._visits[0, :35], sampler._visits[1, :25]])
    assert counts.sum() == 1200 and counts.min() >= 15 and counts.max() <= 25  # 20 each on average
    # New records take over the slots of old ones: their counts start from zero, so they are drawn.
    drawn = torch.cat([sampler.draw(windows([30, 0], [130, 30], 6), 12, generator) for _ in range(20)])
    assert (drawn % 2 == 0).all() and (drawn // 2 >= 35).all()


def test_visit_balanced_draws_every_start_of_rings_once():
    """Wherever rings wrap, and though some were visited so often that their weight underflows."""
    sampler, generator = VisitBalanced(temperature=0.01), torch.Generator().manual_seed(0)
    for begin, end in (([0, 0], [9, 3]), ([13, 0], [33, 12]), ([14, 5], [34, 25])):
        now = windows(begin, end, 4, capacity=20)
        sampler.draw(now, 1, generator)
        starts = [p * 2 + s for s in (0, 1) for p in range(begin[s], end[s] - 3)]
        assert sorted(sampler.draw(now, len(starts), generator).tolist()) == sorted(starts)


class OneTransfer(TorchDispatchMode):
    """Counts operations on two devices; tensors inside have no memory that could be looked at."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.count += len({x.device.type for x in tree_leaves((args, kwargs, out)) if torch.is_tensor(x)}) > 1
        return out


@pytest.mark.parametrize("device", ["lazy", "cuda"])
def test_visit_balanced_on_a_device_brings_back_its_choice_alone(monkeypatch, device):
    """On CUDA in one stream of its own, which waits for no update."""
    entered, made = [], []
    monkeypatch.setattr(VisitBalanced, "_source", lambda *_: None)  # no such generator
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or len(made))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(entered.append(stream)))
    sampler = VisitBalanced(device=device)
    held = [windows([max(0, end - 50), 0], [end, 9], 6, capacity=50) for end in (30, 47, 90)]
    with FakeTensorMode(allow_non_fake_inputs=True), OneTransfer() as transfers:
        for now in held:
            ids = sampler.draw(now, 12, torch.Generator())
            assert ids.shape == (12,) and ids.device.type == "cpu"
    assert transfers.count == 3 and sampler._visits.device.type == device
    assert entered == ([1, 1, 1] if device == "cuda" else [])


def test_visits_counted_on_one_device_are_known_on_another():
    state = VisitBalanced().state_dict()
    assert state["visits"] is None
    state |= {"visits": torch.tensor([[9, 0, 9]], dtype=torch.int32), "seen": torch.tensor([3])}
    sampler = VisitBalanced(temperature=0.1)
    sampler.load_state_dict(state | {"generator": {"cuda": torch.zeros(16, dtype=torch.uint8)}})
    assert sampler.draw(windows([0], [3], 1, capacity=3), 1, torch.Generator()).item() == 1
    assert sampler.state_dict()["visits"].tolist() == [[9, 1, 9]]


def test_visit_balanced_matches_softmax():
    """One draw follows softmax(-visits / tau)."""
    sampler, generator = VisitBalanced(temperature=5.0), torch.Generator().manual_seed(0)
    now = windows([0], [4], 1, capacity=4)
    sampler.draw(now, 4, generator)
    visits = torch.tensor([[0, 3, 6, 12]], dtype=torch.int32)
    drawn = torch.zeros(4)
    for _ in range(2000):
        sampler._visits = visits.clone()
        drawn[sampler.draw(now, 1, generator)] += 1
    assert torch.allclose(drawn / 2000, torch.softmax(-visits[0].float() / 5.0, 0), atol=0.05)
    assert sampler.draw(now, 10, generator).bincount(minlength=4).min() >= 2  # whole rounds
