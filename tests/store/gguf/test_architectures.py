"""Families by transformers' name: each is one that the gguf package knows."""

import pytest
from transformers import CONFIG_MAPPING

from polyvera.errors import SpecError
from polyvera.store.gguf.architectures import ARCHITECTURES, architecture_of

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_row_is_known_on_both_sides(family):
    row = architecture_of(family)
    assert family in CONFIG_MAPPING and row.name in gguf.MODEL_ARCH_NAMES.values()


def test_another_family_is_refused_with_what_to_do():
    with pytest.raises(SpecError, match=r"mamba.*convert_hf_to_gguf\.py"):
        architecture_of("mamba")
