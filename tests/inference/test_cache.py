from __future__ import annotations

from dataclasses import dataclass

from bimba.inference.cache import LRUCache


@dataclass
class Item:
    num_bytes: int


def test_the_least_recently_used_goes_first():
    cache: LRUCache[Item] = LRUCache(max_bytes=10)
    for key in "abc":
        cache.put(key, Item(3))
    cache.get("a")
    cache.put("d", Item(3))
    assert [key for key in "abcd" if cache.get(key)] == ["a", "c", "d"]
    assert cache.num_bytes == 9


def test_bytes_are_never_exceeded():
    cache: LRUCache[Item] = LRUCache(max_bytes=10)
    cache.put("a", Item(4))
    cache.put("b", Item(4))
    cache.put("c", Item(10))
    assert len(cache) == 1
    assert cache.get("c") is not None
    cache.put("d", Item(11))
    assert cache.get("d") is None
    assert cache.get("c") is not None


def test_replacing_an_item_does_not_count_it_twice():
    cache: LRUCache[Item] = LRUCache(max_bytes=10)
    cache.put("a", Item(6))
    cache.put("a", Item(7))
    assert (len(cache), cache.num_bytes) == (1, 7)


def test_no_bytes_is_no_cache():
    cache: LRUCache[Item] = LRUCache(max_bytes=0)
    cache.put("a", Item(1))
    assert cache.get("a") is None


def test_what_is_discarded_makes_room():
    cache: LRUCache[Item] = LRUCache(max_bytes=10)
    cache.put("a", Item(6))
    cache.discard("a")
    cache.discard("never there")
    assert (len(cache), cache.num_bytes, cache.get("a")) == (0, 0, None)
