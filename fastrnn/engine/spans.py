"""Spans of time, and which of them meet: a segment tree."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Spans(Generic[Item]):
    """Items with spans of the times 0 to ``count`` - 1; adding one and asking take the logarithm of that."""

    def __init__(self, count: int) -> None:
        self._leaves = 1 << (max(count, 1) - 1).bit_length()
        self._whole: dict[int, list[Item]] = {}  # those that last throughout the time of a node of the tree
        self._part: dict[int, list[Item]] = {}  # and those that do so in one below it

    def add(self, first: int, last: int, item: Item) -> None:
        """An item from ``first`` to ``last``."""
        above: set[int] = set()
        for node in self._cover(first, last):
            self._whole.setdefault(node, []).append(item)
            while (node := node // 2) and node not in above:
                above.add(node)
                self._part.setdefault(node, []).append(item)

    def meeting(self, first: int, last: int, most: int) -> list[Item] | None:
        """The items whose spans have a time in common with that from ``first`` to ``last``; None if more than
        ``most`` are found."""
        found: set[Item] = set()
        for node in self._cover(first, last):
            lists = [self._part.get(node, ())]
            while node:
                lists.append(self._whole.get(node, ()))
                node //= 2
            for items in lists:
                if len(items) > most:
                    return None
                found.update(items)
            if len(found) > most:
                return None
        return list(found)

    def _cover(self, first: int, last: int) -> Iterator[int]:
        """The fewest nodes of the tree that have just these times."""
        low, high = first + self._leaves, last + self._leaves + 1
        while low < high:
            if low & 1:
                yield low
                low += 1
            if high & 1:
                high -= 1
                yield high
            low, high = low // 2, high // 2
