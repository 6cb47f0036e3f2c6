"""A candidate's bytes are those of the file that its run would store, and its layers are named in few words."""

import pytest

from polyvera.adapter.method import METHODS
from polyvera.search.candidate import Candidate, Sizer, endings, sites_of
from polyvera.store.file.codec import encode
from polyvera.train.trainer import train

LAYERS = tuple(f"layers.{i}.{kind}" for i in range(2) for kind in ("q", "v"))


@pytest.mark.parametrize(
    ("sites", "names"),
    [
        (LAYERS, ("q", "v")),
        (LAYERS[:2], ("layers.0.q", "layers.0.v")),
        ((LAYERS[0], LAYERS[2], LAYERS[3]), ("q", "layers.1.v")),
        ((LAYERS[0],), ("layers.0.q",)),
    ],
)
def test_whole_kinds_are_named_by_their_ending(sites: tuple[str, ...], names: tuple[str, ...]) -> None:
    assert endings(sites, LAYERS) == names


@pytest.mark.parametrize("hash_size", [None, 8])
@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.hashed == row.trained])
def test_the_size_is_that_of_the_file(sizer: Sizer, method: str, hash_size: int | None) -> None:
    sites = tuple(sites_of(sizer.recipe, sizer.base))[1:4]
    candidate = Candidate(method, 4, sites, "int4", hash_size)
    result = train(sizer.recipe.replaced(**sizer.choices(candidate), max_steps=1), base=sizer.base, progress=False)
    assert result.adapter is not None
    assert result.adapter.layout.site_names == candidate.sites
    assert abs(sizer.file_bytes(candidate) - len(encode(result.adapter, "int4"))) < 160  # of scores and their digits
    assert sizer.num_params(candidate) == result.adapter.num_params
    assert str(len(candidate.sites)) in candidate.text
