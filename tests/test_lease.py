"""Runs that share a store train every common stage once; the claims of the dead free themselves; nothing locks up."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from bench import CPU
from conftest import Place, ray_environment
from hypothesis import given, settings
from hypothesis import strategies as st
from test_board import orders
from test_store import STAGE, elsewhere, publish

from ee_ray import lease, train
from ee_ray.board import SPARE_SECONDS, Board, Order
from ee_ray.errors import Superseded
from ee_ray.lease import DEAD_SECONDS, Claim, Lease, claim, claim_next, is_free, newest
from ee_ray.plan import Point
from ee_ray.stage import run_stage
from ee_ray.store import Store


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path / "store")
    store.create()
    return store


def test_a_claim_is_free_once_its_holder_is_dead_or_asks_again():
    alive = Claim(1, "a", age=1.0, ended=False)
    assert is_free(None, "a") and is_free(alive, "a") and not is_free(alive, "b")
    assert is_free(Claim(1, "a", age=DEAD_SECONDS + 1, ended=False), "b")
    assert is_free(Claim(1, "a", age=0.0, ended=True), "b")


def test_one_holds_a_stage_until_it_is_released(any_store):
    held = claim(any_store, STAGE, "a")
    assert held and claim(any_store, STAGE, "b") is None
    held.release()
    assert newest(any_store, STAGE.key) is None
    again = claim(any_store, STAGE, "b")
    assert again and not again.published
    again.release()


def test_a_claim_that_is_listed_and_cannot_be_read_is_somebodys_until_it_is_old(store):
    """As where a network disk's listing is behind: looking again and again would never end."""
    (store.root / "leases").mkdir(exist_ok=True)
    path = store.root / "leases" / f"{STAGE.key}.1"
    path.symlink_to("nowhere")
    assert newest(store, STAGE.key).holder == "" and claim(store, STAGE, "a") is None
    os.utime(path, (0, 0), follow_symlinks=False)
    held = claim(store, STAGE, "a")
    assert held and [entry.name for entry in store.claims(STAGE.key)] == [f"{STAGE.key}.2"]
    held.release()


def test_what_was_published_meanwhile_is_said_with_the_lease(any_store):
    publish(any_store)
    held = claim(any_store, STAGE, "a")
    assert held.published
    held.release()


def test_of_many_who_claim_at_once_one_gets_it(any_store):
    code = (
        "from ee_ray.lease import claim; print(bool(claim(store, STAGE, str(os.getpid()))), flush=True); signal.pause()"
    )
    racers = [elsewhere(code, any_store) for _ in range(5)]
    said = [racer.stdout.readline().strip() for racer in racers]
    for racer in racers:
        racer.kill()
        racer.wait()
    assert sorted(said) == ["False"] * 4 + ["True"]


def test_a_holder_that_is_killed_on_this_machine_frees_its_stage_at_once(any_store):
    code = "from ee_ray.lease import claim; claim(store, STAGE, 'a'); print('held', flush=True); signal.pause()"
    holder = elsewhere(code, any_store)
    assert holder.stdout.readline() == "held\n"
    assert claim(any_store, STAGE, "b") is None
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    held = claim(any_store, STAGE, "b")
    assert held
    held.release()


def of_another_host(store: Store) -> Path:
    """A claim whose process cannot be looked for here."""
    (store.root / "leases").mkdir(exist_ok=True)
    path = store.root / "leases" / f"{STAGE.key}.3"
    path.write_text('{"holder": "far", "machine": "another", "pid": 1}')
    return path


def test_a_holder_elsewhere_is_dead_after_six_beats_were_missed_by_the_clock_of_the_disk(store, monkeypatch):
    path = of_another_host(store)
    monkeypatch.setattr(time, "time", lambda: 0.0)  # this host's own clock is years off, and nobody asks it
    assert claim(store, STAGE, "b") is None
    then = path.stat().st_mtime - DEAD_SECONDS - 1
    os.utime(path, (then, then))
    held = claim(store, STAGE, "b")
    assert held and newest(store, STAGE.key).generation == 4
    held.release()
    assert list((store.root / "leases").iterdir()) == [], "the dead one's claim went with it"


def test_a_claim_is_kept_alive_as_long_as_it_is_held(store, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    before = set(threading.enumerate())
    held = claim(store, STAGE, "a")
    (beating,) = set(threading.enumerate()) - before
    os.utime(store.root / "leases" / f"{STAGE.key}.1", (0, 0))
    end = time.monotonic() + 60
    while newest(store, STAGE.key).age > DEAD_SECONDS:
        assert time.monotonic() < end
        time.sleep(0.01)
    held.release()
    beating.join(60)
    assert not beating.is_alive(), "a released claim beats no more"


def test_a_claim_that_is_only_half_written_is_held(store):
    path = of_another_host(store)
    path.write_text("")
    assert claim(store, STAGE, "b") is None


def test_losing_a_claim_does_no_harm(store):
    """A slow holder comes back after its stage was taken over and published: it publishes nothing, and frees nothing."""
    slow = claim(store, STAGE, "slow")
    then = store.clock() - DEAD_SECONDS - 1
    os.utime(store.root / "leases" / f"{STAGE.key}.1", (then, then))
    quick = claim(store, STAGE, "quick")
    slow.release()
    assert newest(store, STAGE.key).holder == "quick"
    assert publish(store) and not publish(store)
    quick.release()
    assert store.damage(STAGE.key) == []


def test_a_slot_that_comes_back_is_not_disturbed_by_what_is_left_of_its_last_process(any_store):
    left = claim(any_store, STAGE, "slot")
    back = claim(any_store, STAGE, "slot")
    with pytest.raises(Superseded):
        left.confirm()
    with pytest.raises(Superseded):
        left.check()
    left.release()
    back.confirm()
    assert newest(any_store, STAGE.key).generation == 2
    back.release()
    assert any_store.claims() == []


@pytest.mark.parametrize("saved_every", [1, None])
def test_a_holder_that_hung_writes_no_state_and_publishes_nothing_once_its_stage_was_taken_over(
    bench, saved_every, monkeypatch
):
    monkeypatch.setattr(train, "REPORT_SECONDS", 0.0)
    here, taken = bench(), []
    stage = here.trial().pretrain
    hung = claim(here.store, stage, "hung")
    batch = stage.identity.global_batch_size * stage.identity.sequence_length

    def report(tokens: int) -> None:
        if tokens >= stage.identity.tokens / 2 and not taken:
            then = here.store.clock() - DEAD_SECONDS - 1
            os.utime(here.store.root / "leases" / f"{stage.key}.1", (then, then))
            taken.extend([claim(here.store, stage, "other"), tokens // batch])

    with pytest.raises(Superseded):
        run_stage(here.store, Order(stage, "tiny", None, 1e9, saved_every), CPU, report, hung)
    other, step = taken
    other.confirm()
    other.release()
    assert here.store.published() == [] and here.store.claims() == []
    assert all(int(state.name) <= step for state in here.store.work(stage.key).glob("*"))
    assert [event["event"] for event in here.store.journalled("tiny")] == ["begun", "left to another"]


class Run:
    """A run as the board, the leases and a cluster's units see it: slots of its shapes (the kinds of stages, the units that
    one takes, how many there may be), each taking, training, ending."""

    def __init__(self, name: str, points: list[Point], shapes: list[tuple[tuple[str, ...], int, int]]):
        self.name, self.board, self.trained, self.orders = name, Board(), Counter(), orders(*points)
        self.board.submit(self.orders, [])
        self.shape = {f"{name}{kinds}{n}": (kinds, size) for kinds, size, slots in shapes for n in range(slots)}
        self.held: dict[str, tuple[Order, Lease] | None] = dict.fromkeys(self.shape)
        self.up: set[str] = set()

    def lose_board(self, store: Store) -> None:
        """Its board dies, comes back empty, and is told again by the trials; slots train on."""
        self.board = Board()
        self.board.submit(self.orders, store.published())

    def step(self, store: Store, slot: str, free: int) -> int:
        """What one slot does next; the units that it takes (or gives back, negative)."""
        kinds, size = self.shape[slot]
        if slot not in self.up:
            has_work = lease.any_free(store, self.board.ready(kinds), slot)
            self.board.await_room(slot, kinds if has_work and size > free else ())
            starts = has_work and size <= free
            self.up |= {slot} if starts else set()
            return size if starts else 0
        if self.held[slot]:
            (order, held), key = self.held[slot], self.held[slot][0].stage.key
            with store.draft(key) as draft:
                store.publish(key, draft, {"payload": order.stage.identity.payload()})
            self.trained[key] += 1
            self.board.done(slot, key)
            held.release()
            self.held[slot] = None
            return 0
        self.held[slot] = claim_next(store, self.board.take(slot, kinds), slot, self.board.put_off, self.board.found)
        if self.held[slot]:
            assert self.held[slot][0].stage.kind in kinds
            return 0
        # Idle slots of the real thing look at the clock: one that need not give way may keep its room or not.
        if self.board.patience() == SPARE_SECONDS and self.spares.random() < 0.9:
            return 0
        self.up.discard(slot)
        return -size


GROUPS = [
    [("pretrain", "posttrain", "finetune")],
    [("pretrain", "posttrain"), ("finetune",)],
    [("pretrain", "finetune"), ("posttrain",)],
    [("pretrain",), ("posttrain",), ("finetune",)],
]
runs = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), min_size=1, max_size=3, unique=True),
        st.sampled_from(GROUPS),
        st.lists(st.tuples(st.integers(1, 12), st.integers(1, 4)), min_size=3, max_size=3),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=40)
@given(runs=runs, units=st.integers(12, 20), seed=st.integers(0, 2**32))
def test_any_runs_of_any_shapes_on_any_cluster_end_and_train_every_stage_once(runs, units, seed):
    """Quarters of a GPU: slots of a quarter to three GPUs, of up to three shapes a run, on a cluster of three to five GPUs.
    Who steps next is drawn, and when a board dies. A bound on steps is the proof."""
    folder = Path(tempfile.mkdtemp())
    try:
        store, free, random = Store(folder), units, Random(seed)
        store.create()
        all_runs = [
            Run(
                f"run{n}-",
                [Point(*p) for p in points],
                [(kinds, *shape) for kinds, shape in zip(group, shapes, strict=False)],
            )
            for n, (points, group, shapes) in enumerate(runs)
        ]
        for run in all_runs:
            run.spares = random
        actors = [(run, slot) for run in all_runs for slot in run.held]
        for _ in range(20_000):
            if all(run.board.is_settled() for run in all_runs):
                break
            run, slot = random.choice(actors)
            for entry in run.board._entries.values():
                entry.put_off = 0.0  # a moment later
            if random.random() < 0.02:
                run.lose_board(store)
            free -= run.step(store, slot, free)
            assert 0 <= free <= units
        assert all(run.board.is_settled() for run in all_runs)
        trained = sum((run.trained for run in all_runs), Counter())
        assert set(trained.values()) == {1}
        assert set(trained) == set(store.published())
    finally:
        shutil.rmtree(folder)  # fmt: skip


TOGETHER = """
import sys, ee_ray.cli, ee_ray.train
print("ready", flush=True)
sys.stdin.readline()
ee_ray.cli.main()
"""


def test_two_sweeps_that_run_at_once_over_one_store_train_what_they_share_once(tmp_path):
    """The second differs in its post-training: it shares every pretraining, and at lambda = 1 everything."""
    place = Place(tmp_path)
    files = [
        place.write(search__max_trials=6),
        place.write("other.yaml", name="other", search__max_trials=6, stages__posttrain__learning_rate=0.004),
        place.write("same.yaml", name="same", search__max_trials=6),
    ]
    place.ee_ray("prepare", files[0])
    environment = {**ray_environment(), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # three on two cores
    commands = [[sys.executable, "-c", TOGETHER, "run", file, "--local"] for file in files]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [subprocess.Popen(c, cwd=tmp_path, env=environment, text=True, **pipes) for c in commands]
    assert [process.stdout.readline() for process in started] == ["ready\n"] * 3
    for process in started:
        print("go", file=process.stdin, flush=True)
    said = [process.communicate(timeout=240)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    events = [event for name in ("tiny", "other", "same") for event in place.store.journalled(name)]
    begun = Counter(event["key"] for event in events if event["event"] == "begun")
    assert set(begun.values()) == {1} and len(begun) == len(place.store.published())
    assert len({event["pid"] for event in events}) >= 2, "more than one of them worked"
    assert [place.summary(name)["stages"]["failed"] for name in ("tiny", "other", "same")] == [0, 0, 0]
