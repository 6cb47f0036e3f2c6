"""Soft caps and sinks, against the same written out for one row."""

import pytest
import torch

from polyvera.engine.generation.decode_attention import Visible
from polyvera.engine.generation.scored_attention import Scoring, attend, attend_single

KEY_HEADS, GROUPS, WIDTH, LENGTH = 2, 3, 4, 7
SCORINGS = {
    "cap": Scoring(2.0, None),
    "sinks": Scoring(None, torch.linspace(-1, 2, KEY_HEADS * GROUPS)),
    "both": Scoring(2.0, torch.linspace(-1, 2, KEY_HEADS * GROUPS)),
}


def alone(q, k, v, scoring, head):
    """One query (width,) over the keys of its head (length, width)."""
    scores = k @ q * WIDTH**-0.5
    scores = scores if scoring.softcap is None else scoring.softcap * torch.tanh(scores / scoring.softcap)
    weights = scores.exp()
    total = weights.sum() + (0 if scoring.sinks is None else scoring.sinks[head].exp())
    return (weights / total) @ v


@pytest.fixture
def drawn():
    torch.manual_seed(0)
    return torch.randn(2, KEY_HEADS * GROUPS, WIDTH), torch.randn(5, LENGTH, KEY_HEADS, WIDTH)


@pytest.mark.parametrize("name", SCORINGS)
def test_single_tokens_see_their_own_part_of_their_row(name, drawn):
    q, k = drawn
    v, scoring = k.flip(1).clone(), SCORINGS[name]
    v[1, 5:] = torch.nan  # another's numbers, past the end of what token 0 sees
    seen = Visible(torch.tensor([1, 3]), torch.tensor([2, 0]), torch.tensor([5, 7]))
    found = attend_single(q, k, v, seen, None, scoring)
    for token, (row, lo, hi) in enumerate(((1, 2, 5), (3, 0, 7))):
        for head in range(KEY_HEADS * GROUPS):
            keys, values = (t[row, lo:hi, head // GROUPS] for t in (k, v))
            torch.testing.assert_close(found[token, head], alone(q[token, head], keys, values, scoring, head))


@pytest.mark.parametrize("name", SCORINGS)
def test_spans_of_several_tokens_are_masked(name, drawn):
    q, k = drawn
    scoring, tokens = SCORINGS[name], 2
    grouped = q.transpose(0, 1).reshape(1, KEY_HEADS, GROUPS * tokens, WIDTH)
    keys = k[:1].transpose(1, 2)
    mask = torch.zeros(1, 1, tokens, LENGTH)
    mask[..., 0, 4:] = -torch.inf
    found = attend(grouped, keys, keys, mask.repeat(1, 1, GROUPS, 1), None, scoring)
    found = found.view(KEY_HEADS * GROUPS, tokens, WIDTH)
    for token, length in ((0, 4), (1, LENGTH)):
        for head in range(KEY_HEADS * GROUPS):
            own = k[0, :length, head // GROUPS]
            torch.testing.assert_close(found[head, token], alone(q[token, head], own, own, scoring, head))
