"""What is told over and over is held back, and nothing else."""

from itertools import count

from xencolod.dirty import Calm


def test_what_is_told_now_and_then_is_due_at_once() -> None:
    calm = Calm()
    assert all(calm.sift({5}, now) == {5} for now in range(100))
    assert calm.patience == float("inf")


def test_a_few_at_once_are_due() -> None:
    calm = Calm()
    assert [calm.sift({5}, 1.0) for _ in range(50)] == [{5}] * 50


def test_a_flood_is_held_back_and_delays_no_other() -> None:
    calm = Calm()
    looks = [calm.sift({5, 100 + i} if i % 100 == 0 else {5}, i / 1000) for i in range(2000)]
    assert all(5 in look for look in looks[:500])
    assert 18 <= sum(5 in look for look in looks[1000:]) <= 22
    assert all(100 + i in looks[i] for i in range(0, 2000, 100))


def test_the_last_word_of_a_flood_is_heard() -> None:
    calm = Calm()
    for number in count():
        if calm.sift({5}, number / 1000) == set():
            break
    assert calm.waiting == {5}
    assert calm.sift(set(), number / 1000 + calm.patience) == {5}
    assert calm.waiting == set()


def test_all_domains_at_once_are_held_back_too() -> None:
    calm = Calm()
    looks = [calm.sift({None}, i / 1000) for i in range(2000)]
    assert sum(None in look for look in looks[1000:]) <= 22


def test_what_is_remembered_does_not_grow() -> None:
    calm = Calm()
    for number in range(10_000):
        calm.sift({number}, float(number))
        assert len(calm._left) < 3
