"""The order in which windows are decoded."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eardrum.runner.fair_queue import (
    FILL_SHARE,
    LIVE_SHARE,
    LOWER_SHARE,
    MAX_CLIP_S,
    MAX_DEBT_S,
    QUANTUM_S,
    FairQueue,
    ServiceClass,
    classify_window,
)
from eardrum.transcription import Priority
from tests.generated_cases import count_cases

LONGEST_S = 30.0


@dataclass(frozen=True)
class QueuedItem:
    """What the queue needs to know of a window; `number` counts within the request."""

    request_id: int
    cost: float
    rank: ServiceClass
    number: int = 0
    key: int = 0

    @property
    def padded_s(self) -> float:
        return self.cost


ranks = st.sampled_from(list(ServiceClass))
costs = st.floats(0.1, LONGEST_S)
requests = st.lists(st.tuples(ranks, st.lists(costs, min_size=1, max_size=12), st.integers(0, 1)), min_size=1, max_size=8)
Mix = list[tuple[ServiceClass, list[float], int]]
limits = st.integers(1, 8)


def create_queue(*items: QueuedItem) -> FairQueue[QueuedItem]:
    queue = FairQueue[QueuedItem]()
    for item in items:
        queue.push(item)
    return queue


def create_items(mix: Mix) -> list[QueuedItem]:
    return [
        QueuedItem(id, cost, rank, n, key) for id, (rank, all_costs, key) in enumerate(mix) for n, cost in enumerate(all_costs)
    ]


def create_windows(request_id: int, rank: ServiceClass, count: int, cost: float = 10.0) -> list[QueuedItem]:
    return [QueuedItem(request_id, cost, rank, number) for number in range(count)]


@pytest.mark.parametrize(
    ("priority", "end", "expected"),
    [
        (Priority.LIVE, 0.0, ServiceClass.LIVE),
        (Priority.LIVE, 3600.0, ServiceClass.LIVE),
        (Priority.INTERACTIVE, 0.0, ServiceClass.CLIP),
        (Priority.INTERACTIVE, MAX_CLIP_S, ServiceClass.CLIP),
        (Priority.INTERACTIVE, MAX_CLIP_S + 0.01, ServiceClass.FILE),
        (Priority.BULK, 0.0, ServiceClass.BULK),
    ],
)
def test_class_of_a_window(priority: Priority, end: float, expected: ServiceClass) -> None:
    assert classify_window(priority, end) is expected


def test_classes_are_served_in_order() -> None:
    queue = create_queue(
        *(
            QueuedItem(i, 0.1, rank)
            for i, rank in enumerate([ServiceClass.BULK, ServiceClass.FILE, ServiceClass.CLIP, ServiceClass.LIVE])
        )
    )
    first = queue.take(8)
    assert [item.rank for item in first] == [ServiceClass.LIVE]


def test_a_clips_batch_is_filled_up_halfway_from_below() -> None:
    queue = create_queue(
        *create_windows(1, ServiceClass.CLIP, 1),
        *create_windows(2, ServiceClass.FILE, 9),
        *create_windows(3, ServiceClass.BULK, 9),
    )
    assert [item.rank for item in queue.take(4)] == [ServiceClass.CLIP, ServiceClass.FILE]
    queue.push(QueuedItem(4, 1.0, ServiceClass.CLIP))
    assert [item.rank for item in queue.take(1)] == [ServiceClass.CLIP], "a full batch takes nobody in"


def test_a_files_batch_is_filled_up_from_below() -> None:
    queue = create_queue(*create_windows(2, ServiceClass.FILE, 1), *create_windows(3, ServiceClass.BULK, 9))
    assert [item.rank for item in queue.take(4)] == [ServiceClass.FILE, ServiceClass.BULK, ServiceClass.BULK, ServiceClass.BULK]


def test_a_batch_holds_one_key() -> None:
    items = [QueuedItem(id, 1.0, ServiceClass.FILE, key=id % 2) for id in range(6)]
    queue = create_queue(*items)
    assert [[item.request_id for item in queue.take(8)] for _ in range(2)] == [[0, 2, 4], [1, 3, 5]]


def test_windows_of_about_one_length_are_decoded_together() -> None:
    queue = FairQueue[QueuedItem]()
    for id, costs in enumerate([(9.0, 2.0, 2.3), (2.1, 9.5, 1.9), (8.5, 2.2, 2.4)]):
        for number, cost in enumerate(costs):
            queue.push(QueuedItem(id, cost, ServiceClass.FILE, number))
    batches = [sorted(item.cost for item in queue.take(3)) for _ in range(3)]
    assert sum(max(batch) - min(batch) for batch in batches) < 3


def test_a_window_of_odd_length_is_not_passed_over_for_long() -> None:
    queue = create_queue(
        QueuedItem(1, 9.0, ServiceClass.FILE),
        *create_windows(1, ServiceClass.FILE, 20, 2.0)[1:],
        *create_windows(2, ServiceClass.FILE, 400, 2.0),
    )
    assert any(item.cost == 9.0 for _ in range(4) for item in queue.take(4))


def test_order_is_kept_among_windows_of_one_length() -> None:
    queue = create_queue(*create_windows(1, ServiceClass.FILE, 9, 10.0))
    assert [item.number for _ in range(3) for item in queue.take(3)] == list(range(9))


def test_an_empty_queue_gives_nothing() -> None:
    assert FairQueue[QueuedItem]().take(4) == []


@settings(deadline=None)
@given(requests, limits)
def test_nothing_is_lost_doubled_or_mixed(mix: Mix, limit: int) -> None:
    items = create_items(mix)
    queue = create_queue(*items)
    served: list[QueuedItem] = []
    while batch := queue.take(limit):
        assert 1 <= len(batch) <= limit
        assert len({item.key for item in batch}) == 1
        guests = [item for item in batch if item.rank != batch[0].rank]
        assert all(item.rank > batch[0].rank for item in guests)
        assert not guests or len(batch) <= limit * FILL_SHARE[batch[0].rank]
        served += batch
    assert Counter(served) == Counter(items)


@settings(deadline=None, max_examples=count_cases(50))
@given(st.lists(st.floats(0.5, LONGEST_S), min_size=2, max_size=6), limits)
def test_requests_of_one_class_get_the_same_seconds(window_lengths: list[float], limit: int) -> None:
    """While all of them wait, nobody is far ahead, whatever the windows' lengths."""
    queue = create_queue(
        *(i for id, cost in enumerate(window_lengths) for i in create_windows(id, ServiceClass.FILE, int(400 / cost) + 1, cost))
    )
    left = Counter({id: int(400 / cost) + 1 for id, cost in enumerate(window_lengths)})
    served: dict[int, float] = defaultdict(float)
    while min(left.values()) > 0:
        for item in queue.take(limit):
            served[item.request_id] += item.cost
            left[item.request_id] -= 1
        if min(left.values()) > 0:
            seconds = [served[id] for id in range(len(window_lengths))]
            assert max(seconds) - min(seconds) <= MAX_DEBT_S + QUANTUM_S + 2 * max(window_lengths)


def test_a_request_with_many_windows_does_not_hold_up_one_with_few() -> None:
    queue = create_queue(*create_windows(1, ServiceClass.FILE, 100), *create_windows(2, ServiceClass.FILE, 1))
    assert any(item.request_id == 2 for _ in range(3) for item in queue.take(1))


def test_a_request_that_was_away_has_saved_nothing_up() -> None:
    queue = create_queue(*create_windows(1, ServiceClass.FILE, 3, cost=0.1))
    while queue.take(1):
        pass
    for item in [*create_windows(1, ServiceClass.FILE, 200, cost=1.0), *create_windows(2, ServiceClass.FILE, 200, cost=1.0)]:
        queue.push(item)
    served = Counter(item.request_id for _ in range(40) for item in queue.take(1))
    assert served[1] == served[2]


@settings(deadline=None, max_examples=count_cases(50))
@given(
    st.sampled_from([ServiceClass.CLIP, ServiceClass.FILE, ServiceClass.BULK]),
    st.floats(1, LONGEST_S),
    st.floats(1, LONGEST_S),
    limits,
)
def test_lower_classes_keep_their_share_under_endless_load(
    lower: ServiceClass, above_s: float, below_s: float, limit: int
) -> None:
    whole_s = 60 * LONGEST_S
    queue = create_queue(*create_windows(2, lower, int(whole_s / below_s), below_s))  # more than its share
    served = dict.fromkeys(ServiceClass, 0.0)
    total = 0.0
    while total < whole_s:
        for item in create_windows(1, ServiceClass.PARTIAL, limit, above_s):
            queue.push(item)
        batch = queue.take(limit)
        served[batch[0].rank] += sum(item.cost for item in batch)
        total = sum(served.values())
        # Within one batch of either class the share is exact.
        slack = limit * max(above_s, below_s)
        assert served[lower] >= LOWER_SHARE * total - slack
        assert served[lower] <= LOWER_SHARE * total + slack


def test_lower_classes_take_turns_in_their_share() -> None:
    lower = [ServiceClass.CLIP, ServiceClass.FILE, ServiceClass.BULK]
    queue = create_queue(*(item for id, rank in enumerate(lower, 2) for item in create_windows(id, rank, 500)))
    served: Counter[ServiceClass] = Counter()
    for _ in range(150):
        queue.push(QueuedItem(1, 10.0, ServiceClass.LIVE))
        served[queue.take(1)[0].rank] += 1
    assert served[ServiceClass.LIVE] == 150 * (1 - LIVE_SHARE)
    assert {served[rank] for rank in lower} == {5}


def test_a_share_is_not_saved_up_while_nobody_needs_it() -> None:
    queue = create_queue(*create_windows(1, ServiceClass.LIVE, 50))
    for _ in range(49):
        queue.take(1)
    for item in create_windows(2, ServiceClass.BULK, 20):
        queue.push(item)
    for item in create_windows(1, ServiceClass.LIVE, 3):
        queue.push(item)
    assert queue.take(1)[0].rank is ServiceClass.LIVE


def test_a_debt_is_forgotten_once_nobody_waits_for_the_share() -> None:
    queue = create_queue(*create_windows(1, ServiceClass.LIVE, 3), *create_windows(2, ServiceClass.BULK, 8, LONGEST_S))
    assert [batch[0].rank for batch in (queue.take(1), queue.take(8))] == [ServiceClass.LIVE, ServiceClass.BULK]
    while queue.take(1):
        pass
    for item in [*create_windows(1, ServiceClass.LIVE, 20), *create_windows(3, ServiceClass.BULK, 1)]:
        queue.push(item)
    assert any(item.rank is ServiceClass.BULK for _ in range(6) for item in queue.take(1))


def test_drop_removes_all_of_one_request_and_nothing_else() -> None:
    queue = create_queue(
        *create_windows(1, ServiceClass.CLIP, 3),
        *create_windows(1, ServiceClass.FILE, 4),
        *create_windows(2, ServiceClass.FILE, 2),
    )
    assert len(queue.drop(1)) == 7
    assert queue.drop(1) == []
    assert [item.request_id for _ in range(3) for item in queue.take(4)] == [2, 2]


@settings(deadline=None)
@given(requests, st.data())
def test_dropping_while_serving_loses_nobody_elses_windows(mix: Mix, data: st.DataObject) -> None:
    items = create_items(mix)
    queue = create_queue(*items)
    served = [item for _ in range(data.draw(st.integers(0, 10))) for item in queue.take(2)]
    gone = data.draw(st.integers(0, len(mix) - 1))
    dropped = queue.drop(gone)
    assert all(item.request_id == gone for item in dropped)
    while batch := queue.take(2):
        assert all(item.request_id != gone for item in batch)
        served += batch
    assert Counter(served + dropped) == Counter(items)


def test_a_final_of_live_speech_waits_for_one_window_of_a_file_at_most() -> None:
    """It may also meet one that is in hand. Ten sessions end at once, again and again, and a file of an hour is there."""
    queue = create_queue(*create_windows(99, ServiceClass.FILE, 360))
    waiting: dict[int, int] = {}
    met = []
    for number in range(400):
        if number % 12 == 0:
            for session in range(10):
                queue.push(QueuedItem(session, 5.0, ServiceClass.LIVE, number * 10 + session))
                waiting[number * 10 + session] = 0
        for item in queue.take(1, live=True):
            if item.rank is ServiceClass.LIVE:
                met.append(waiting.pop(item.number))
            else:
                waiting = {n: files + 1 for n, files in waiting.items()}
    assert max(met) == 1
    assert len(met) > 320


def test_finals_go_before_partials_and_partials_before_clips() -> None:
    queue = create_queue(
        QueuedItem(1, 1.0, ServiceClass.CLIP), QueuedItem(2, 1.0, ServiceClass.PARTIAL), QueuedItem(3, 1.0, ServiceClass.LIVE)
    )
    assert queue.take(1, live=True)[0].request_id == 3
    queue = create_queue(QueuedItem(1, 1.0, ServiceClass.CLIP), QueuedItem(2, 1.0, ServiceClass.PARTIAL))
    assert queue.take(1, live=True)[0].request_id == 2


def test_while_somebody_speaks_clips_and_files_are_decoded_one_by_one() -> None:
    queue = create_queue(*create_windows(1, ServiceClass.FILE, 8))
    assert len(queue.take(4, live=True)) == 1
    assert len(queue.take(4, live=False)) == 4


def test_clips_alone_are_in_no_batch_and_nothing_is_while_they_wait() -> None:
    queue = create_queue(*create_windows(1, ServiceClass.CLIP, 6), *create_windows(2, ServiceClass.FILE, 20))
    batches = [queue.take(4, clips_alone=True) for _ in range(8)]
    served = [batch[0].rank for batch in batches]
    assert served.count(ServiceClass.FILE) >= 1, "files keep their share"
    last = max(number for number, rank in enumerate(served) if rank is ServiceClass.CLIP)
    assert all(len(batch) == 1 for batch in batches[: last + 1])
    assert len(queue.take(4, clips_alone=True)) == 4


def test_only_clips_and_live_speech_are_urgent() -> None:
    ranks = (ServiceClass.BULK, ServiceClass.FILE, ServiceClass.CLIP, ServiceClass.PARTIAL, ServiceClass.LIVE)
    queue = create_queue(*(QueuedItem(number, 10.0, rank) for number, rank in enumerate(ranks)))
    served = [[item.rank for item in queue.take_urgent(20.0)] for _ in range(4)]
    assert served == [[ServiceClass.LIVE], [ServiceClass.PARTIAL], [ServiceClass.CLIP], []]
    assert queue.take(1)[0].rank is ServiceClass.FILE


def test_only_a_higher_class_goes_before_the_rest_of_a_batch() -> None:
    ranks = (ServiceClass.BULK, ServiceClass.FILE, ServiceClass.CLIP, ServiceClass.PARTIAL, ServiceClass.LIVE)
    for rank in ranks:
        queue = create_queue(*(QueuedItem(number, 1.0, waiting) for number, waiting in enumerate(ranks)))
        taken = []
        while found := queue.take_ahead_of(rank, 4):
            taken += [item.rank for item in found]
        urgent = [waiting for waiting in (ServiceClass.LIVE, ServiceClass.PARTIAL, ServiceClass.CLIP) if waiting < rank]
        assert taken == urgent, rank.name


def test_files_are_not_interrupted_once_they_are_owed_a_full_window() -> None:
    queue = create_queue(*create_windows(1, ServiceClass.LIVE, 60), *create_windows(2, ServiceClass.FILE, 3))
    taken = 0.0
    while found := queue.take_ahead_of(ServiceClass.FILE, 1):
        taken += found[0].cost
    assert QUANTUM_S <= taken * LIVE_SHARE / (1 - LIVE_SHARE) < QUANTUM_S + 10.0
    assert queue.take(1)[0].rank is ServiceClass.FILE, "then it is their turn"
    assert len(queue.take_ahead_of(ServiceClass.FILE, 4)) == 4, "which pays for it"
