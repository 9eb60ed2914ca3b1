from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from services.common.long_lived import LongLived

OBJECTS = 150_000


class Circle:
    """Something that holds itself."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """No collection but those that a test asks for."""
    before = gc.get_threshold()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()
    assert gc.get_threshold() == before


def many(count: int) -> list[list[object]]:
    return [[] for _ in range(count)]


def test_what_survives_is_set_aside() -> None:
    with LongLived():
        kept = many(1_000)
        gc.collect()
        assert gc.get_freeze_count() >= len(kept)
        assert len(gc.get_objects(generation=2)) < 100
        # Reference counts free it all the same.
        before = gc.get_freeze_count()
        kept.clear()
        assert gc.get_freeze_count() <= before - 1_000


def test_nothing_is_set_aside_before_or_behind_the_block() -> None:
    gc.unfreeze()
    with LongLived():
        gc.collect()
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert gc.get_freeze_count() == 0


def test_circles_are_found_once_what_is_set_aside_has_doubled() -> None:
    with LongLived(collections_per_count=1, share_of_time_max=1e-9):
        gc.collect()
        circle = Circle()
        alive = weakref.ref(circle)
        gc.collect()
        del circle
        gc.collect()
        assert alive() is not None, "it was set aside while it was needed, so it is not looked at"
        kept = many(max(OBJECTS, gc.get_freeze_count()) * 2)
        gc.collect()
        gc.collect()
        assert alive() is None
        assert gc.get_freeze_count() >= len(kept), "what is needed is set aside again"


def test_circles_are_found_once_looking_costs_little_of_the_time() -> None:
    """Here all of the time, so that every other collection looks through everything."""
    with LongLived(share_of_time_max=1e9):
        gc.collect()
        circle = Circle()
        alive = weakref.ref(circle)
        gc.collect()
        del circle
        gc.collect()
        assert alive() is None
        assert gc.get_freeze_count() > 0


def test_full_collections_come_before_much_is_new() -> None:
    youngest, middle, oldest = gc.get_threshold()
    with LongLived():
        assert gc.get_threshold() == (youngest, middle, min(oldest, 2))
