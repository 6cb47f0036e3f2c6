"""The config of mlx-lm: the kinds that are adapters, and the keys that decide what they compute."""

import json

import pytest

from polyvera.errors import FormatError, SpecError
from polyvera.store.foreign import CONFIG_NAME
from polyvera.store.mlx.config import KINDS, read_mlx_config, row_named

PARAMETERS = {"rank": 4, "scale": 20.0, "dropout": 0.0}


def config(tmp_path, **keys):
    (tmp_path / CONFIG_NAME).write_text(json.dumps({"num_layers": 2, "lora_parameters": PARAMETERS, **keys}))
    return read_mlx_config(tmp_path)


def test_the_kinds_are_rows_without_and_with_a_magnitude(tmp_path):
    assert [("m" in row.trained) for row in KINDS.values()] == [False, True]
    for name, row in KINDS.items():
        assert config(tmp_path, fine_tune_type=name, batch_size=4).row is row is row_named(name)
    assert "m" not in config(tmp_path).row.trained


def test_what_is_no_adapter_is_refused(tmp_path):
    with pytest.raises(SpecError, match="fine_tune_type='full'"):
        config(tmp_path, fine_tune_type="full", lora_parameters=None)
    with pytest.raises(FormatError, match=r"lora_parameters\.scale"):
        config(tmp_path, lora_parameters={"rank": 4})
