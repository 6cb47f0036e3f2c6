"""Adapters from and to other programs, from the command line."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from command_line import polyvera
from hub_server import running_hub
from peft import LoraConfig, PeftModel
from peft_oracle import saved_by_peft
from safetensors.torch import load_file
from tiny_models import make_classifier, make_tokenizer

from polyvera.cli.exchange import check_options, exported
from polyvera.errors import RecipeError, SpecError
from polyvera.store.formats import FORMATS
from polyvera.store.registry import Registry

pytestmark = [pytest.mark.usefixtures("tenants"), pytest.mark.filterwarnings("ignore")]
OPTIONS = {"peft": (), "mlx": (), "gguf": (".gguf",)}


def trained(name="ann", *more):
    words = ("--model", "base", "--rank", "4", "--max-steps", "2", "--lr", "0.5", "--data", f"train/{name}.jsonl")
    polyvera("train", *words, "--name", name, *more)


def config_of(folder):
    return json.loads(Path(folder, "adapter_config.json").read_text())


def test_export_and_import_bring_the_same_numbers_back():
    trained()
    polyvera("export", "ann", "peft")
    polyvera("import", "peft", "--name", "back", "--model", "base", "--alias", "prod")
    a, b = Registry("adapters").get("ann"), Registry("adapters").get("back@prod")
    assert torch.equal(a.flat, b.flat) and a.base == b.base and b.model == "base" and a.scores == b.scores
    polyvera("export", "ann", "plain", "--as-lora")
    config = config_of("plain")
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 4)
    assert "--rank-at-most" not in polyvera("export", "ann", "small", "--as-lora", "--rank-at-most", "4").output
    assert "rank 4" in polyvera("export", "ann", "x", "--as-lora", "--rank-at-most", "2", fails=True).stderr


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_written(form):
    trained()
    target = f"out{FORMATS[form].file_name and '.gguf'}"
    polyvera("export", "ann", target, "--format", form)
    assert Path(target).exists()
    said = polyvera("export", "ann", target, "--format", form, fails=True).stderr
    assert "is there already" in said or "overwrite" in said
    polyvera("export", "ann", target, "--format", form, "--overwrite")


def test_an_option_that_a_format_does_not_use_is_refused():
    trained()
    for words, said in (
        (("--format", "mlx", "--as-lora"), "--as-lora has no meaning for the format mlx"),
        (("--format", "gguf", "--without-basis"), "--without-basis"),
        (("--format", "safetensor"), "must be one of: peft, mlx, gguf"),
    ):
        assert said in polyvera("export", "ann", "out", *words, fails=True).stderr.replace("\n", " ")
    with pytest.raises(RecipeError, match="did you mean 'mlx'"):
        exported(Registry("adapters").get("ann"), Path("out"), "mlxx", None, {})
    with pytest.raises(SpecError, match="--pickle"):
        check_options("mlx", FORMATS["mlx"].read, ["pickle"])


def test_mlx_folders_are_taken_in():
    trained()
    polyvera("export", "ann", "mlx", "--format", "mlx")
    polyvera("import", "mlx", "--name", "back", "--model", "base")
    assert Registry("adapters").get("back").model == "base"


def test_a_classifier_is_imported_without_a_word_of_its_classes():
    make_classifier().save_pretrained("encoder")
    make_tokenizer().save_pretrained("encoder")
    model = type(make_classifier()).from_pretrained("encoder", num_labels=3, ignore_mismatched_sizes=True)
    source = saved_by_peft(Path("cls"), model, LoraConfig(r=4, target_modules=["query"]), task="SEQ_CLS")
    polyvera("import", str(source), "--name", "cls", "--model", "encoder")
    adapter = Registry("adapters").get("cls")
    assert adapter.labels == ("LABEL_0", "LABEL_1", "LABEL_2") and adapter.origin["task_type"] == "SEQ_CLS"
    polyvera("export", "cls", "again")
    before, after = (load_file(Path(f) / "adapter_model.safetensors") for f in ("cls", "again"))
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_what_was_imported_is_evaluated_on_the_rows_that_it_is_for():
    make_classifier().base_model.save_pretrained("encoder")
    make_tokenizer().save_pretrained("encoder")
    rows = {"pairs": {"anchor": "w1", "positive": "w2"}, "tags": {"tokens": ["w1", "w2"], "tags": ["B-X", "O"]}}
    for name, row in rows.items():
        Path(f"{name}.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    words = ("--model", "encoder", "--rank", "4", "--max-steps", "2", "--lr", "0.5")
    polyvera("train", *words, "--data", "tags.jsonl", "--name", "tags")
    polyvera("export", "tags", "tags")
    task = "FEATURE_EXTRACTION"
    saved_by_peft(Path("pairs"), make_classifier().base_model, LoraConfig(r=4, target_modules=["query"]), task=task)
    for name in rows:
        polyvera("import", name, "--name", f"{name}/back", "--model", "encoder")
        polyvera("eval", f"{name}/back", "--data", f"{name}.jsonl")
        polyvera("merge", f"{name}/back", f"{name}-merged")


@pytest.mark.parametrize("end", ["ForQuestionAnswering", "ForMultipleChoice", "ForMaskedLM"])
def test_an_adapter_that_nobody_asks_goes_out_again_and_is_merged(end):
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    torch.manual_seed(0)
    kind = getattr(transformers, f"Bert{end}")
    model = kind(transformers.BertConfig(**sizes, num_attention_heads=2)).eval()
    model.save_pretrained("asked")
    make_tokenizer().save_pretrained("asked")
    task, saved = {"ForQuestionAnswering": ("QUESTION_ANS", None), "ForMultipleChoice": (None, ["classifier"])}.get(
        end, (None, None)
    )
    config = LoraConfig(r=4, target_modules=["query"], modules_to_save=saved)
    source = saved_by_peft(Path("peft"), model, config, task=task)
    assert "one@1" in polyvera("import", str(source), "--name", "one", "--model", "asked").output
    polyvera("export", "one", "out", "--model", "asked")
    first, second = (load_file(Path(f) / "adapter_model.safetensors") for f in (source, "out"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    polyvera("merge", "one", "merged", "--model", "asked")
    ids = torch.arange(3, 12).reshape(1, 1, -1) if end == "ForMultipleChoice" else torch.arange(3, 12)[None]
    wanted = PeftModel.from_pretrained(copy.deepcopy(model), source)(input_ids=ids)[0]
    torch.testing.assert_close(kind.from_pretrained("merged")(input_ids=ids)[0], wanted, rtol=1e-4, atol=1e-4)
    if end == "ForMaskedLM":  # its vectors are asked
        return
    Path("rows.jsonl").write_text(json.dumps({"text": "w1", "label": "a"}) + "\n")
    Path("rows").mkdir()
    Path("rows/one.jsonl").write_text(Path("rows.jsonl").read_text())
    for words in (("eval", "one", "--data", "rows.jsonl"), ("generate", "one", "-p", "w1")):
        told = " ".join(polyvera(*words, "--model", "asked", fails=True).stderr.split())
        assert f"one is an adapter of Bert{end}, which answers none of the tasks here" in told
    told = polyvera("eval", "--fleet", "--data", "rows", "--model", "asked", fails=True).stderr
    assert f"one is an adapter of Bert{end}" in " ".join(told.split())
    assert f"none here (Bert{end})" in polyvera("show", "one").output


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere/at/all", "there is no folder"),
        ("someone/some-lora", "give the folder of a copy"),
        ("base", "a whole model"),
        ("base/config.json", "is a file"),
    ],
)
def test_what_is_not_an_adapters_folder_is_named_before_the_model_is_read(source, said):
    found = polyvera("import", source, "--name", "x", "--model", "no/model", fails=True)
    assert said in found.stderr.replace("\n", " ") and not Path("adapters").exists()


def test_push_and_pull(tmp_path):
    trained()
    with running_hub() as hub:
        known = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_x"}

        def run(*words):
            code = "from polyvera.cli import app; app()"
            done = subprocess.run(
                [sys.executable, "-c", code, *words],
                capture_output=True,
                text=True,
                env=os.environ | known,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        assert "team/ann/commit" in run("push", "ann", "team/ann")
        run("push", "ann", "team/ann", "--format", "gguf")
        files = {"README.md", "adapter_config.json", "adapter_model.safetensors", "adapter.gguf"}
        assert set(hub.repositories["team/ann"]) == files
        run("pull", "team/ann", "--name", "pulled", "--model", "base")
        run("import", "team/ann@main", "--name", "imported", "--model", "base")
    registry = Registry("adapters")
    assert all(torch.equal(registry.get(n).flat, registry.get("ann").flat) for n in ("pulled", "imported"))
