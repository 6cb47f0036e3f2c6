"""default_targets: the layers that 'default' means, block by block, so that no block of a hybrid is left out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Row = tuple[str, ...]

# The query and value projections under the names that model families give them; the first row of which a block has
# every name is taken.
ATTENTION: tuple[Row, ...] = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("q_lin", "v_lin"),
    ("q", "v"),
    ("query_proj", "value_proj"),
    ("q_b_proj", "kv_b_proj"),  # MLA: what makes queries and values of their compressed forms
    ("q_proj", "kv_b_proj"),
    ("q_b_proj", "kv_proj"),
    ("q_proj", "v_proj_current"),
    ("to_q", "to_kv"),
    ("to_q", "to_v"),
    ("q_head", "v_head"),
    ("linear_q", "linear_v"),
    ("Wq", "Wv"),
    ("receptance", "value"),
    ("qkv_proj",),
    ("query_key_value",),
    ("c_attn",),
    ("Wqkv",),
    ("qkv",),
    ("kv_proj",),
)
# What mixes tokens in the blocks of a hybrid that have no attention, and last what stands in for it.
MIXERS: tuple[Row, ...] = (
    ("in_proj", "x_proj"),
    ("in_proj_qkvz",),
    ("in_proj_qkv",),
    ("in_proj",),
    ("linear_x", "linear_y"),
    ("up_proj", "down_proj"),
    ("fc1", "fc2"),
)
BLOCK = re.compile(r"(?:(.*?)\.)?(\d+)\.")


def default_targets(names: Sequence[str]) -> set[str]:
    """Of the linear layers of a model those that 'default' adapts; empty where none is known."""
    blocks: dict[tuple[str, str], list[str]] = {}
    for name in names:
        blocks.setdefault(block_of(name), []).append(name)
    chosen = {block: _first(ATTENTION, own) for block, own in blocks.items()}
    lists = {block[0] for block, found in chosen.items() if found and block[1]}
    if not any(chosen.values()):
        return _of_any_name(names) or _united(_first(MIXERS, own) for block, own in blocks.items() if block[1])
    for block, own in blocks.items():  # a block beside those with attention
        if not chosen[block] and block[0] in lists and block[1]:
            chosen[block] = _first(MIXERS, own)
    return _united(chosen.values())


def block_of(name: str) -> tuple[str, str]:
    """(the list that a layer's block is in, its number there); ('', '') outside of any."""
    found = BLOCK.match(name)
    return ("", "") if found is None else (found[1] or "", found[2])


def _first(rows: Iterable[Row], names: Sequence[str]) -> set[str]:
    last = {name: name.rpartition(".")[2] for name in names}
    row = next((row for row in rows if set(row) <= set(last.values())), ())
    return {name for name, ending in last.items() if ending in row}


def _of_any_name(names: Sequence[str]) -> set[str]:
    """Where no block has a whole row: the first row of which any layer has a name."""
    parts = (tuple((ending,) for ending in row) for row in ATTENTION)
    return next((found for row in parts if (found := _united(_first((one,), names) for one in row))), set())


def _united(sets: Iterable[set[str]]) -> set[str]:
    return set().union(*sets)
