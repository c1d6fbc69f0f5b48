"""The buffer that both packers take items from: by length, first come first served among equals.

Items wait in one queue per length. Placing an item therefore costs a binary search over the lengths, whatever the
number of items.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class LengthBuffer(Generic[Item]):
    """Items in order of arrival; the longest one that fits and the shortest one are found by a binary search."""

    def __init__(self, length_of: Callable[[Item], int], items: Iterable[Item] = ()) -> None:
        self._length_of = length_of
        self._queues: dict[int, deque[tuple[int, Item]]] = {}
        self._lengths: list[int] = []  # the keys of the queues, sorted
        self._arrivals = 0
        self._count = 0
        for item in items:
            self.add(item)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        """Yield the items in order of arrival."""
        waiting = [entry for queue in self._queues.values() for entry in queue]
        return iter([item for _, item in sorted(waiting, key=lambda entry: entry[0])])

    def add(self, item: Item) -> None:
        """Add an item after all others."""
        length = self._length_of(item)
        queue = self._queues.get(length)
        if queue is None:
            queue = self._queues[length] = deque()
            bisect.insort(self._lengths, length)
        queue.append((self._arrivals, item))
        self._arrivals += 1
        self._count += 1

    def take_longest_within(self, limit: int) -> Item | None:
        """Remove and return the longest item of at most `limit`, or None if all are longer."""
        i = bisect.bisect_right(self._lengths, limit)
        return self._take(i - 1) if i else None

    def take_oldest(self) -> Item:
        """Remove and return the item that arrived first."""
        assert self._count, "the buffer is empty"
        return self._take(min(range(len(self._lengths)), key=lambda i: self._queues[self._lengths[i]][0][0]))

    def take_shortest(self) -> Item:
        """Remove and return the shortest item."""
        assert self._count, "the buffer is empty"
        return self._take(0)

    def _take(self, i: int) -> Item:
        length = self._lengths[i]
        queue = self._queues[length]
        _, item = queue.popleft()
        if not queue:
            del self._queues[length]
            del self._lengths[i]
        self._count -= 1
        return item
