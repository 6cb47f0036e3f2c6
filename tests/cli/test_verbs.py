"""The verbs from end to end on a tiny model in a folder: train, store, use, leave."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from test_pooling import write
from tiny_models import counting_rows, make_classifier, make_model, make_seq2seq, make_tokenizer
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from polyvera.adapter.inject import eject, load
from polyvera.adapter.method import METHODS
from polyvera.cli import app
from polyvera.store.registry import Registry


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_model().save_pretrained("base")
    make_tokenizer().save_pretrained("base")
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in counting_rows(16)))
    return tmp_path


def polyvera(*words: str, fails: bool = False) -> Result:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert (result.exit_code != 0) == fails, result.output
    return result


def trained(name: str = "acme", *more: str) -> None:
    polyvera(
        "train", "--model", "base", "--data", "rows.jsonl", "--rank", "4", "--max-steps", "3", "--name", name, *more
    )


def test_train_publishes_and_the_adapter_is_used() -> None:
    trained("acme/support", "--alias", "prod", "--validation", "0.25", "--output", "run")
    assert Path("run/curve.png").read_bytes()[:4] == b"\x89PNG"
    adapter = Registry("adapters").get("acme/support@prod")
    assert adapter.model == "base" and adapter.base and "eval_loss" in adapter.scores
    scores = json.loads(polyvera("eval", "acme/support", "--data", "rows.jsonl", "--json").stdout)
    assert set(scores) == {"acme/support", "base"}
    assert scores["acme/support"]["loss"] != scores["base"]["loss"]
    answers = json.loads(
        polyvera("generate", "acme/support@1", "-p", "w1 w2", "-p", "w3 w4", "--json", "--max-new-tokens", "4").stdout
    )
    assert [set(row) for row in answers] == [{"prompt", "base", "acme/support@1"}] * 2
    assert "acme/support" in polyvera("ls").output and "1 in adapters" in polyvera("ls").output
    shown = polyvera("show", "acme/support").output
    assert "prod" in shown and "sha256" in shown and "model.layers.*.self_attn.q_proj" in shown
    assert "1 adapters checked, 0 problems" in polyvera("verify").output


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_file_and_its_flags_are_the_same_run(method: str) -> None:
    Path("run.toml").write_text(
        'model = "base"\ndata = "rows.jsonl"\nrank = 4\nmax_steps = 3\nbatch_size = 2\n'
        f'method = "{method}"\ntargets = ["q_proj", "up_proj"]\nname = "file"\nstore = "shelf"\ncolumns = {{}}\n'
    )
    polyvera("train", "--recipe", "run.toml")
    trained(
        "flags",
        "--method",
        method,
        "--batch-size",
        "2",
        "--targets",
        "q_proj",
        "--targets",
        "up_proj",
        "--store",
        "shelf",
    )
    polyvera("train", "--recipe", "run.toml", "--name", "other", "--max-steps", "2")
    a, b, c = (Registry("shelf").get(n) for n in ("file", "flags", "other"))
    assert a.spec == b.spec and torch.equal(a.flat, b.flat) and not torch.equal(a.flat, c.flat)
    assert "file" in polyvera("eval", "--recipe", "run.toml").output


def test_the_environment_names_the_store_and_the_model_of_train_and_import(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    monkeypatch.setenv("POLYVERA_STORE", "shelf")
    monkeypatch.setenv("POLYVERA_MODEL", "base")
    polyvera("train", "--data", "rows.jsonl", "--rank", "4", "--max-steps", "1", "--name", "one")
    polyvera("export", "one", "peft")
    polyvera("import", "peft", "--name", "two")
    assert [ref.name for ref in Registry("shelf").list()] == ["one", "two"] and not Path("adapters").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (("train", "--model", "base", "--data", "rows.jsonl"), "nothing would be kept"),
        (("train", "--model", "base", "--name", "x"), "--data is missing"),
        (("train", "--model", "base", "--data", "row.jsonl", "--name", "x"), "row.jsonl"),
        (("train", "--model", "bass", "--data", "rows.jsonl", "--name", "x"), "bass"),
        (("train", "--model", "base", "--data", "rows.jsonl", "--name", "../x"), "the name '../x'"),
        (
            ("train", "--model", "base", "--data", "rows.jsonl", "--name", "x", "--method", "verra"),
            "did you mean 'vera'",
        ),
        (
            ("train", "--model", "base", "--data", "rows.jsonl", "--name", "x", "--targets", "q_prj"),
            "did you mean 'q_proj'",
        ),
        (("train", "--model", "base", "--data", "rows.jsonl", "--name", "x", "--lr", "fast"), "--lr='fast'"),
        (
            ("train", "--model", "base", "--data", "rows.jsonl", "--name", "x", "--columns", "prompt"),
            "KEY=VALUE",
        ),
        (
            (
                "train",
                "--model",
                "base",
                "--data",
                "rows.jsonl",
                "--name",
                "x",
                "--budget-rank",
                "2",
                "--method",
                "lora",
            ),
            "trains d",
        ),
        (
            ("train", "--model", "base", "--data", "rows.jsonl", "--alias", "x", "--output", "o"),
            "needs --name",
        ),
        (("train", "--recipe", "nowhere.toml"), "nowhere.toml can't be read"),
        (("generate", "nobody", "-p", "w1"), "nobody"),
        (("generate", "--model", "base"), "--prompt"),
        (("show", "nobody"), "nobody"),
        (("rm", "nobody@1"), "nobody"),
        (("plan", "nowhere/at/all"), "nowhere/at/all"),
    ],
)
def test_a_mistake_gets_one_message_and_changes_nothing(words: tuple[str, ...], said: str) -> None:
    found = polyvera(*words, fails=True)
    assert said in " ".join(found.stderr.split()) and "Traceback" not in found.output
    assert not Path("adapters").exists()


def test_a_dry_run_prints_the_cost_and_trains_nothing() -> None:
    found = polyvera("train", "--model", "base", "--data", "rows.jsonl", "--name", "x", "--dry-run").output
    assert "full fine-tuning" in found and not Path("adapters").exists()


def test_plan_needs_no_weights() -> None:
    Path("base/model.safetensors").unlink()
    rows = json.loads(polyvera("plan", "base", "--json", "--rank", "4").output)
    assert [row["method"] for row in rows] == [*METHODS, "full fine-tuning"]
    assert "10,000 adapters" in polyvera("plan", "base", "--targets", "all-linear").output


def test_merge_writes_an_ordinary_checkpoint_with_the_adapters_logits() -> None:
    trained("acme", "--method", "dvora", "--lr", "0.5")
    polyvera("merge", "acme", "merged")
    assert "not empty" in polyvera("merge", "acme", "merged", fails=True).stderr
    ids = torch.arange(3, 12)[None]
    base = AutoModelForCausalLM.from_pretrained("base")
    bare = base(ids).logits
    load(base, Registry("adapters").get("acme"))
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained("merged")(ids).logits
        assert torch.allclose(merged, base(ids).logits, atol=1e-4) and not torch.allclose(merged, bare, atol=1e-2)
    eject(base)


def test_merge_says_that_it_ended_a_tie() -> None:
    model = make_model()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained("base")
    trained("acme", "--method", "lora", "--targets", "q_proj", "--targets", "lm_head", "--lr", "0.5")
    assert "tie_word_embeddings: false" in polyvera("merge", "acme", "merged").output
    assert not json.loads(Path("merged/config.json").read_text())["tie_word_embeddings"]
    trained("other", "--method", "lora")
    assert "tie_word_embeddings" not in polyvera("merge", "other", "merged-2").output


def test_aliases_and_removal() -> None:
    trained()
    trained()
    assert "acme@prod is acme@1" in polyvera("alias", "acme@1", "prod").output
    assert "prod" in polyvera("rm", "acme@1", fails=True).stderr
    polyvera("rm", "acme@1", "--with-aliases")
    assert [r.version for r in Registry("adapters").list()] == [2]


def test_a_broken_file_is_found_by_verify() -> None:
    trained()
    path = next(Path("adapters").rglob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    assert "1 problems" in polyvera("verify", fails=True).output


@pytest.mark.parametrize("pooling", [{}, {"pooling_mode_mean_tokens": True}])
def test_a_classifier_keeps_its_head_and_its_labels(tmp_path: Path, pooling: dict[str, bool]) -> None:
    if pooling:
        write(tmp_path / "encoder", pooling)
    make_classifier().base_model.save_pretrained("encoder")
    make_tokenizer().save_pretrained("encoder")
    rows = [{"text": f"w{i % 7} w{20 + i % 5}", "label": ("even", "odd")[i % 2]} for i in range(24)]
    Path("classes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    polyvera(
        "train", "--model", "encoder", "--data", "classes.jsonl", "--name", "parity", "--max-steps", "4", "--rank", "4"
    )
    adapter = Registry("adapters").get("parity")
    assert adapter.labels == ("even", "odd") and adapter.layout.num_head_params == 2 * 32 + 2
    scores = json.loads(polyvera("eval", "parity", "--data", "classes.jsonl", "--json").stdout)
    assert set(scores) == {"parity"} and 0 <= scores["parity"]["accuracy"] <= 1
    assert "head classifier" in " ".join(polyvera("show", "parity").output.split())
    polyvera("merge", "parity", "merged")
    merged = json.loads(polyvera("eval", "--model", "merged", "--data", "classes.jsonl", "--json").stdout)
    assert merged == {"base": scores["parity"]}
    assert "no trained head" in polyvera("eval", "--model", "encoder", "--data", "classes.jsonl", fails=True).output


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_goes_the_whole_way(family: str) -> None:
    make_seq2seq(family).save_pretrained("base")
    trained("acme/answers")
    scores = json.loads(polyvera("eval", "acme/answers", "--data", "rows.jsonl", "--json").stdout)
    assert set(scores) == {"base", "acme/answers"} and {"exact_match", "perplexity"} <= set(scores["base"])
    words = ("--prompt", "w1 w2", "--max-new-tokens", "4", "--json")
    [answers] = json.loads(polyvera("generate", "acme/answers", *words).stdout)
    polyvera("merge", "acme/answers", "merged")
    [merged] = json.loads(polyvera("generate", "--model", "merged", *words).stdout)
    assert merged["base"] == answers["acme/answers"]
    polyvera("export", "acme/answers", "peft")
    assert json.loads(Path("peft/adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    polyvera("import", "peft", "--name", "acme/again", "--model", "base")
    store = Registry("adapters")
    assert torch.equal(store.get("acme/again").flat, store.get("acme/answers").flat)
    assert "encoder-decoder, which no engine serves" in polyvera("serve", "base", "--port", "0", fails=True).output
    assert "seq2seq" in polyvera("show", "acme/answers").stdout
    polyvera("plan", "base")
    Path("rows").mkdir()
    for name in ("ann", "bob"):
        Path(f"rows/{name}.jsonl").write_text(Path("rows.jsonl").read_text())
    polyvera("train", "--model", "base", "--data", "rows", "--fleet", "--max-steps", "2", "--name", "fleet")
    assert {ref.name for ref in store.list("fleet")} == {"fleet/ann", "fleet/bob"}


def test_what_cannot_be_done_is_said_in_one_line() -> None:
    trained()
    Path("labels.jsonl").write_text(
        "".join(json.dumps({"text": f"w{i}", "label": "ab"[i % 2]}) + "\n" for i in range(4))
    )
    for words, said in (
        (("export", "acme", "/proc/none/x"), "No such file or directory"),
        (("eval", "acme", "--data", "labels.jsonl"), "has labels, and the adapter answers with text"),
        (("generate", "acme", "--prompt", "\ud83d"), "prompt 1 is not valid Unicode"),
    ):
        result = polyvera(*words, fails=True)
        assert result.exit_code == 1 and said in " ".join(result.output.split())


def test_columns_that_are_not_read_are_told_by_every_verb() -> None:
    rows = [{**row, "id": i} for i, row in enumerate(counting_rows(16))]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = "rows.jsonl: columns not read: id (16 rows)"
    given = ("--model", "base", "--data", "rows.jsonl", "--max-steps", "2", "--name", "acme")
    for words in (
        ("train", *given, "--dry-run"),
        ("train", *given),
        ("eval", "acme", "--data", "rows.jsonl", "--json"),
    ):
        result = polyvera(*words)
        assert result.stderr.count(told) == 1 and told not in result.stdout


def test_the_version_is_that_of_the_package() -> None:
    assert polyvera("--version").output == f"polyvera {version('polyvera')}\n"
