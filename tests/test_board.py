"""The board hands out each stage once, parents first, and loses none when a slot dies."""

from collections import Counter
from random import Random

from conftest import tiny
from hypothesis import given
from hypothesis import strategies as st

from ee_ray.board import ATTEMPTS, GIVE_WAY_SECONDS, SPARE_SECONDS, Board, Order
from ee_ray.plan import Point, build_trial, distinct
from ee_ray.spec.sweep import SweepSpec

DATA = {"pre": "a" * 16, "post": "b" * 16, "ft": "c" * 16}
SPEC = SweepSpec.model_validate(tiny())


def orders(*points: Point, of: SweepSpec = SPEC) -> list[Order]:
    trials = [build_trial(of, DATA, point) for point in points]
    return [Order(stage, "tiny", None, 300.0) for stage in distinct(trials).values()]


def asked(*points: Point, published=()) -> Board:
    board = Board()
    board.submit(orders(*points), published)
    return board


def test_a_stage_waits_for_its_parent():
    board = asked(Point(2, 0))
    first = board.take("a")
    assert first.stage.kind == "pretrain"
    assert board.take("b") is None
    board.done("a", first.stage.key)
    assert board.take("b").stage.kind == "posttrain"


def test_two_trials_with_a_common_stage_have_it_trained_once():
    again = orders(Point(2, 0))
    board = asked(Point(2, 0))
    board.submit(again, [])
    assert board.take("a").stage.kind == "pretrain"
    assert board.take("b") is None


def test_what_is_published_is_not_handed_out():
    keys = [order.stage.key for order in orders(Point(2, 0))]
    board = asked(Point(2, 0), published=keys[:2])
    assert board.take("a").stage.kind == "finetune"
    assert set(board.states(keys[:2]).values()) == {"done"}


def test_a_slot_goes_on_with_what_descends_from_its_last_stage():
    board = asked(Point(0, 0), Point(2, 0), Point(4, 0))
    taken = {slot: board.take(slot) for slot in ("a", "b")}
    board.done("b", taken["b"].stage.key)
    assert board.take("b").stage.parent == taken["b"].stage.key


def test_a_slot_that_died_gets_its_stage_again_a_bounded_number_of_times():
    board = asked(Point(2, 0))
    key = board.take("a").stage.key
    for _ in range(ATTEMPTS - 1):
        assert board.take("a").stage.key == key
    assert board.take("a") is None
    assert set(board.states(order.stage.key for order in orders(Point(2, 0))).values()) == {"failed"}
    assert f"died {ATTEMPTS} times" in board.evidence(key)["error"]


def test_a_stage_that_gets_further_each_time_is_not_given_up():
    """As on nodes that come and go: its saved state carries it on."""
    board = asked(Point(2, 0))
    key = board.take("a").stage.key
    for tokens in range(1, 5 * ATTEMPTS):
        board.progress(key, tokens)
        assert board.take("a").stage.key == key
    for _ in range(ATTEMPTS - 1):
        board.progress(key, 1)  # begins before where it was, and dies where it died
        assert board.take("a").stage.key == key
    assert board.take("a") is None


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(0, 7))
def test_a_slot_has_got_on_if_any_of_its_attempts_died_further_on_than_those_before_or_ended_a_stage(reached, ends):
    """Each attempt reports how far it is and dies; after some of them Train ends the fit and the slot is gone."""
    board = asked(Point(2, 0))
    best = 0
    for number, tokens in enumerate(reached):
        before = board.advances()
        if (order := board.take("a")) is None:
            return  # given up: as often as that without getting further
        board.progress(order.stage.key, tokens)
        board.release("a") if number == ends else board.take("a")
        assert (board.advances() > before) == (tokens > best)
        best = max(best, tokens)
    before = board.advances()
    if order := board.take("b") or board.take("a"):
        board.done("a", order.stage.key)
        assert board.advances() > before


def test_what_a_lost_slot_held_goes_to_another():
    board = asked(Point(2, 0))
    key = board.take("a").stage.key
    board.release("a")
    assert board.take("b").stage.key == key


def test_what_descends_from_a_failed_stage_fails_and_the_rest_goes_on():
    board = asked(Point(2, 0), Point(2, 1))
    key = board.take("a").stage.key
    board.fail(key, {"error": "diverged", "diverged": True})
    counts = board.snapshot()["counts"]
    assert counts["failed"] == 4 and counts["waiting"] == 4
    assert board.take("a").stage.identity.seed == 1


def test_a_failed_stage_may_be_asked_for_again():
    board = asked(Point(2, 0))
    board.fail(board.take("a").stage.key, {"error": "disk full", "diverged": False})
    board.submit(orders(Point(2, 0)), [])
    assert board.take("a").stage.kind == "pretrain"


def test_a_stage_that_diverged_is_tried_again_for_no_trial_and_nothing_waits_for_it():
    """Two choices of post-training share pretraining, which diverges: in this run, or did in an earlier one."""
    spec = SweepSpec.model_validate(
        tiny(search__choices={"posttrain.learning_rate": [0.001, 0.002]}, search__max_trials=12)
    )
    first, second = (orders(Point(2, 0, choice), of=spec) for choice in (0, 1))
    shared, diverged = first[0].stage.key, {"error": "gradient norm nan", "diverged": True}
    assert shared == second[0].stage.key and first[1].stage.key != second[1].stage.key
    now, earlier = Board(), Board()
    now.submit(first, [])
    now.fail(now.take("a").stage.key, diverged)
    for board, known in ((now, {}), (earlier, {shared: diverged})):
        board.submit(second, [], known)
        assert board.is_settled() and board.take("a") is None
        assert set(board.states(order.stage.key for order in second).values()) == {"failed"}
        assert board.evidence(shared) == diverged
    assert now.snapshot()["counts"]["failed"] == len({order.stage.key for order in first + second})


def test_what_failed_here_and_was_published_elsewhere_is_done():
    board = asked(Point(2, 0))
    first = board.take("a").stage.key
    board.fail(first, {"error": "gradient norm nan", "diverged": True})
    board.submit(orders(Point(2, 0)), published=[first])
    assert board.take("a").stage.kind == "posttrain"
    assert board.snapshot()["counts"] == {"waiting": 2, "running": 1, "done": 1, "failed": 0}


def test_a_board_that_has_forgotten_all_takes_what_slots_say_and_says_what_it_does_not_know():
    keys = [order.stage.key for order in orders(Point(2, 0))]
    board = Board()
    assert board.states(keys) == {} and board.order(keys[0]) is None and board.evidence(keys[0]) is None
    assert board.progress(keys[0], 10), "the slot trains on"
    for say in (board.put_off, board.found, lambda key: board.note(key, {}), lambda key: board.fail(key, {})):
        say(keys[0])
    board.done("a", keys[0])
    board.submit(orders(Point(2, 0)), published=keys[:1])
    assert board.take("a").stage.key == keys[1]


def test_a_slot_gets_only_stages_of_the_kinds_that_it_is_for():
    board = asked(Point(2, 0))
    assert board.take("small", ["finetune"]) is None
    for kind in ("pretrain", "posttrain"):
        order = board.take("large", ["pretrain", "posttrain"])
        assert order.stage.kind == kind
        board.done("large", order.stage.key)
    assert board.take("large", ["pretrain", "posttrain"]) is None
    assert len(board.ready(["finetune"])) == 2 and not board.ready(["pretrain", "posttrain"])
    assert board.take("small", ["finetune"]).stage.kind == "finetune"


def test_a_slot_without_work_gives_way_while_another_waits_for_room_with_work_at_hand():
    board = asked(Point(2, 0))
    assert board.patience() == SPARE_SECONDS
    board.await_room("large", ["pretrain"])
    assert board.patience() == GIVE_WAY_SECONDS
    board.take("other", ["pretrain"])
    assert board.patience() == SPARE_SECONDS, "its work was taken meanwhile"
    board.await_room("large", [])
    board.close("enough")
    assert board.patience() == 0


def test_counts_are_those_of_the_stages_whatever_became_of_them_in_which_order():
    board = asked(Point(2, 0))
    key = board.take("a").stage.key
    board.fail(key, {"error": "lost", "diverged": False})
    board.done("a", key)  # a slot that was thought dead had gone on
    board.submit(orders(Point(2, 0)), [])
    counts = board.snapshot()["counts"]
    assert counts == {"waiting": 3, "running": 0, "done": 1, "failed": 0}


def test_a_closed_board_hands_out_nothing_and_recalls_what_runs_only_if_told_to():
    board = asked(Point(2, 0))
    key = board.take("a").stage.key
    board.close("enough")
    assert board.take("b") is None
    assert board.progress(key, 10)
    board.close("interrupted", withdraw=True)
    assert not board.progress(key, 20)
    assert board.closed() == "enough"


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), min_size=1, max_size=5, unique=True),
    st.integers(0, 2**32),
)
def test_any_slots_in_any_order_train_every_stage_once_after_its_parent(points, seed):
    """Slots take, finish and die at random; the board ends with every stage done, each finished once."""
    random, wanted = Random(seed), orders(*(Point(*point) for point in points))
    board, finished, held = asked(*(Point(*point) for point in points)), Counter(), {}
    while len(finished) < len(wanted):
        slot = random.choice("abc")
        if slot not in held:
            if order := board.take(slot):
                assert order.stage.parent is None or order.stage.parent in finished
                held[slot] = order.stage.key
        elif random.random() < 0.1:
            board.release(slot)
            del held[slot]
        else:
            board.done(slot, held[slot])
            finished[held.pop(slot)] += 1
    assert set(finished.values()) == {1}
    assert set(finished) == {order.stage.key for order in wanted}
