"""[6] The least recently used cache of encoded videos, bounded by bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class _Sized(Protocol):
    @property
    def num_bytes(self) -> int: ...


Item = TypeVar("Item", bound=_Sized)


class LRUCache(Generic[Item]):
    """Keeps the items used last while their ``num_bytes`` sum to at most ``max_bytes``.

    An item larger than that is not kept at all, so ``max_bytes=0`` switches the cache off.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._items: OrderedDict[Hashable, Item] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def num_bytes(self) -> int:
        return sum(item.num_bytes for item in self._items.values())

    def get(self, key: Hashable) -> Item | None:
        if key not in self._items:
            return None
        self._items.move_to_end(key)
        return self._items[key]

    def put(self, key: Hashable, item: Item) -> None:
        self._items.pop(key, None)
        if item.num_bytes > self.max_bytes:
            return
        self._items[key] = item
        self.make_room(0)

    def discard(self, key: Hashable) -> None:
        """Forgets an item, if it is there."""
        self._items.pop(key, None)

    def make_room(self, num_bytes: int) -> None:
        """Forgets what was used least recently until ``num_bytes`` more fit, or nothing is left."""
        while self._items and self.num_bytes + num_bytes > self.max_bytes:
            self._items.popitem(last=False)
