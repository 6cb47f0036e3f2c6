"""What a folder is instead is said, with what to do."""

import json

import pytest
import torch
from safetensors.torch import save_file

from polyvera.store.foreign import CONFIG_NAME, FOREIGN, MLX, diagnosis, foreign

FOLDERS = {
    "mlx-lm": ({"adapters.safetensors": ""}, {"lora_parameters": {"rank": 4}}),
    "`adapters` library": ({"pytorch_adapter.bin": ""}, {"model_class": "BertModel", "config": {}}),
    "diffusers": ({"pytorch_lora_weights.safetensors": ""}, None),
    "a whole model": ({"config.json": "{}", "model.safetensors": ""}, None),
    "GGUF": ({"x.gguf": ""}, None),
}


def made(folder, files, config):
    for name, text in files.items():
        (folder / name).write_text(text)
    if config is not None:
        (folder / CONFIG_NAME).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("said", FOLDERS)
def test_a_folder_of_another_program_is_named(said, tmp_path):
    folder = made(tmp_path, *FOLDERS[said])
    assert foreign(folder) in FOREIGN and said in diagnosis(folder, "a PEFT folder")
    assert (foreign(folder) is MLX) == (said == "mlx-lm")


def test_a_folder_of_pefts_is_not_another_programs(tmp_path):
    made(tmp_path, {"adapter_model.safetensors": ""}, {"peft_type": "LORA"})
    assert foreign(tmp_path) is None


def test_a_folder_of_folders_a_missing_one_and_a_file(tmp_path):
    (tmp_path / "one").mkdir()
    made(tmp_path / "one", {}, {})
    assert "holds the adapters one" in diagnosis(tmp_path, "a PEFT folder")
    assert "there is no folder" in diagnosis(tmp_path / "none", "a PEFT folder")
    assert foreign(tmp_path / "none") is None
    save_file({"lora_unet_x.lora_down.weight": torch.ones(1)}, tmp_path / "k.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "p.safetensors", {"polyvera": "{}"})
    (tmp_path / "x.gguf").touch()
    for name, said in (("k.safetensors", "kohya"), ("p.safetensors", "polyvera's own"), ("x.gguf", "GGUF")):
        assert "give the folder" in diagnosis(tmp_path / name, "a PEFT folder")
        assert said in diagnosis(tmp_path / name, "a PEFT folder")
