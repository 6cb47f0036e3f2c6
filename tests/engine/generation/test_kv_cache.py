import random

import pytest
import torch
from tiny_serve import make_prompt

from polyvera.engine.generation.kv_cache import MIN_PREFIX, KVCache, PrefixCache

HEADS, WIDTH = 2, 3
TOKEN_BYTES = 2 * 4 * HEADS * WIDTH


def step(cache: KVCache, slot_mapping: list[int], layer: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Writes keys that are their slot_mapping, and values that are the slot_mapping and a half."""
    cache.slot_mapping = torch.tensor(slot_mapping)
    keys = cache.slot_mapping.float().view(1, 1, -1, 1).expand(1, HEADS, -1, WIDTH)
    return cache.update(keys, keys + 0.5, layer)


def pairs(length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.ones(length, HEADS, WIDTH), torch.ones(length, HEADS, WIDTH))]


def test_tokens_lie_at_their_row_and_position() -> None:
    cache = KVCache(3, 8)
    assert cache.token_bytes == 0
    keys, values = step(cache, [8, 9, 3, 22])
    assert keys.shape == (3, 8, HEADS, WIDTH) and cache.token_bytes == TOKEN_BYTES
    expected = torch.zeros(24)
    expected[[8, 9, 3, 22]] = torch.tensor([8.0, 9.0, 3.0, 22.0])
    assert torch.equal(keys[..., 0, 0].flatten(), expected)
    assert torch.equal(values[..., 1, 2].flatten()[[8, 9, 3, 22]], expected[[8, 9, 3, 22]] + 0.5)
    again, _ = step(cache, [10])
    assert again.data_ptr() == keys.data_ptr() and keys[1, 2, 0, 0] == 10


def test_a_row_begins_with_the_copy_of_another_and_is_cleared() -> None:
    cache = KVCache(2, 4)
    for layer in range(2):
        step(cache, [0, 1, 2], layer)
    kept = cache.read(0, 2)
    step(cache, [0], 0)
    cache.write(1, kept, 0, 2)
    for keys, values in cache._layers.values():
        assert torch.equal(keys[1, :2], keys[0, :2]) and torch.equal(values[1, :2], values[0, :2])
        assert not keys[1, 2:].any()
    cache.clear(0, 3)
    assert all(not t[0].any() and t[1].any() for pair in cache._layers.values() for t in pair)
    assert kept[0][1].any()  # a copy


def longest(prefixes: PrefixCache, owner: object, tokens: list[int]) -> int:
    return prefixes.longest(owner, tokens)[1]


def test_the_longest_shared_beginning_is_found_by_its_owner_alone() -> None:
    prefixes, tokens = PrefixCache(1 << 20), make_prompt(0, 60, 60)
    prefixes.keep("a", tokens, pairs(60))
    assert longest(prefixes, "a", [*tokens, 1]) == 60
    assert longest(prefixes, "a", tokens) == 59  # the last one gives the first logits
    assert longest(prefixes, "a", [*tokens[:40], 0, 0, 0]) == 40
    assert longest(prefixes, "a", [*tokens[: MIN_PREFIX - 1], 0, 0]) == 0
    assert longest(prefixes, "b", [*tokens, 1]) == 0
    assert longest(prefixes, "a", [1]) == 0


def test_a_prefix_takes_the_place_of_those_that_it_continues() -> None:
    prefixes, tokens = PrefixCache(1 << 20), make_prompt(0, 90, 90)
    assert not prefixes.wants("a", tokens[: MIN_PREFIX - 1], TOKEN_BYTES)
    for length in (40, 60, 90):
        assert prefixes.wants("a", tokens[:length], TOKEN_BYTES)
        prefixes.keep("a", tokens[:length], pairs(length))
        assert len(prefixes) == 1 and not prefixes.wants("a", tokens[:length], TOKEN_BYTES)
    assert prefixes.num_bytes == 90 * TOKEN_BYTES and not prefixes.wants("a", tokens[:50], TOKEN_BYTES)
    assert prefixes.wants("b", tokens[:50], TOKEN_BYTES)


@pytest.mark.parametrize("seed", range(4))
def test_memory_is_bounded_and_the_latest_used_stay(seed: int) -> None:
    draw, room = random.Random(seed), 200 * TOKEN_BYTES
    prefixes, kept = PrefixCache(room), {}
    for number in range(60):
        tokens, owner = make_prompt(1000 * seed + number, 32, 80), draw.choice("abc")
        assert prefixes.wants(owner, tokens, TOKEN_BYTES)
        prefixes.keep(owner, tokens, pairs(len(tokens)))
        kept[number] = owner, tokens
        assert longest(prefixes, owner, [*tokens, 0]) == len(tokens)
        used = draw.choice(list(kept))
        longest(prefixes, kept[used][0], [*kept[used][1], 0])
        known = [p for own in prefixes._kept.values() for p in own]
        assert prefixes.num_bytes == sum(p.num_bytes for p in known) <= room and len(known) == len(prefixes)
    assert longest(prefixes, kept[0][0], [*kept[0][1], 0]) == 0
    assert not prefixes.wants("a", make_prompt(0, 201, 201), TOKEN_BYTES)
