"""A page of a listing: what was asked for, and what is answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.ledger.domain import pagination

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Size and token; both were checked as far as that goes without knowing the listing."""

    size: int
    token: str


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Items in the listing's order; the token is empty on the last page."""

    items: tuple[T, ...]
    next_token: str


def page_of(
    found: Sequence[T], size: int, listing: str, filters: pagination.Key, key: Callable[[T], pagination.Key]
) -> Page[T]:
    """The page made of the first `size` items; one item more says that another page follows."""
    items = tuple(found[:size])
    more = len(found) > size
    return Page(items, pagination.token_of(listing, filters, key(items[-1])) if more else "")
