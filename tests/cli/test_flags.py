"""The flags of a verb are its settings: a flag wins over a recipe file, that over the environment and the default."""

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_args

import pytest
import typer
from drawn_adapters import drawn
from typer.testing import CliRunner, Result

from polyvera.adapter.method import METHODS
from polyvera.cli import app
from polyvera.cli.flags import Taken, Whole, with_settings
from polyvera.server.config import Serving
from polyvera.settings.model import SettingsModel
from polyvera.store.registry import Registry
from polyvera.train.recipe import Recipe

MODELS = {"train": Recipe, "serve": Serving}
VERBS = {command.name: command.callback for command in app.registered_commands}


def options(verb: str) -> dict[str, typer.models.ParameterInfo]:
    found = inspect.signature(VERBS[verb]).parameters
    return {name: one for name, p in found.items() for one in get_args(p.annotation)[1:]}


def polyvera(*words: str, fails: bool = False) -> Result:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert (result.exit_code != 0) == fails, result.output
    return result


def seen(kind: type[SettingsModel], name: str) -> tuple[typer.Typer, list[object]]:
    """A program of one verb that takes a setting, and what it was given."""
    program, given = typer.Typer(), []

    def verb(value: Annotated[object, Taken(name, kind)]) -> None:
        given.append(value)

    program.command()(with_settings(verb))
    return program, given


@pytest.mark.parametrize("verb", MODELS)
def test_every_setting_has_a_flag_and_every_name_of_it_has_one(verb: str) -> None:
    kind = MODELS[verb]
    for path, one in kind.settings().items():
        for word in (path, *one.about.aliases):
            if path != "budget":
                assert word.replace(".", "_") in options(verb), word
        assert one.about.text.endswith(".") and one.about.group


WITH_A_STORE = [name for name in VERBS if "store" in options(name)]


def test_every_verb_of_adapters_takes_a_store() -> None:
    assert {*VERBS} - {*WITH_A_STORE} == {"plan", "compare", "keys", "align"}


@pytest.mark.parametrize("verb", WITH_A_STORE)
def test_a_store_is_one_setting_everywhere(verb: str) -> None:
    store = Recipe.settings()["store"].about
    assert store is Serving.settings()["store"].about and options(verb)["store"].help.startswith(store.text)
    assert {"store", "recipe"} <= set(options(verb))


PLACES = {"flag": "a", "recipe": "b", "environment": "c", "default": "adapters"}
SAID = {
    "ls": ["ls"],
    "show": ["show", "x"],
    "verify": ["verify"],
    "rm": ["rm", "x@1"],
    "alias": ["alias", "x@1", "live"],
    "export": ["export", "x", "out"],
    "merge": ["merge", "x", "out"],
    "eval": ["eval", "x", "--data", "rows.jsonl"],
    "generate": ["generate", "x", "-p", "hello"],
}


@pytest.mark.parametrize("verb", SAID)
@pytest.mark.parametrize("first", PLACES)
def test_the_first_place_that_names_a_store_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, first: str
) -> None:
    """Each verb looks into the store of the first place, and says which it was."""
    monkeypatch.chdir(tmp_path)
    publish(PLACES[first])
    found = CliRunner().invoke(app, [*SAID[verb], *from_place(first, monkeypatch)])
    if verb in ("merge", "eval", "generate"):
        assert "nomodel" in found.output  # the adapter was found, and names a base that is not there
    else:
        assert found.exit_code == 0, found.output


def from_place(first: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names a store in this place and in all after it; returns the words of the command line for it."""
    at, words = list(PLACES).index(first), []
    if at <= 0:
        words += ["--store", PLACES["flag"]]
    if at <= 1:
        Path("r.toml").write_text(f"store = {PLACES['recipe']!r}\n")
        words += ["--recipe", "r.toml"]
    if at <= 2:
        monkeypatch.setenv("POLYVERA_STORE", PLACES["environment"])
    return words


@pytest.mark.parametrize("kind", MODELS.values())
@pytest.mark.parametrize("first", PLACES)
def test_training_and_serving_read_the_places_in_the_same_order(tmp_path, monkeypatch, kind, first: str) -> None:
    monkeypatch.chdir(tmp_path)
    program, given = seen(kind, "store")
    assert CliRunner().invoke(program, from_place(first, monkeypatch)).exit_code == 0
    assert given == [PLACES[first]]


def publish(store: str) -> None:
    """An adapter called x in a store; its base is a folder that is not there."""
    Registry(store).put("x", replace(drawn(next(iter(METHODS))), model="nomodel"))


@pytest.mark.parametrize(
    ("kind", "name", "flag", "text"),
    [
        (Recipe, "store", "--store", "adapters"),
        (Recipe, "batch_size", "--batch-size", "8"),
        (Serving, "port", "--port", "8000"),
    ],
)
def test_a_flag_that_equals_the_default_was_given(tmp_path, monkeypatch, kind, name, flag, text) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(kind.settings()[name].env, "7")
    Path("r.toml").write_text("store = 'other'\nbatch_size = 3\n")
    program, given = seen(kind, name)
    assert CliRunner().invoke(program, [flag, text, "--recipe", "r.toml"]).exit_code == 0
    assert [str(value) for value in given] == [text]


def test_flags_are_read_as_the_values_they_name(tmp_path: Path) -> None:
    words = {
        "validation": (["--validation", "0.1"], 0.1),
        "lr": (["--lr", "1e-3"], 1e-3),
        "columns": (["--columns", "text=t", "--columns", "label=l"], {"text": "t", "label": "l"}),
        "targets": (["--targets", "q_proj"], "q_proj"),
        "target_modules": (["--target-modules", "q", "--target-modules", "k"], ("q", "k")),
        "exclude": (["--exclude", "q_proj"], ("q_proj",)),
        "chat": (["--no-chat"], False),
        "rank_pattern": (["--rank-pattern", "layer=4"], {"layer": 4}),
    }
    for word, (flags, value) in words.items():
        program, given = seen(Recipe, {"target_modules": "targets"}.get(word, word))
        assert CliRunner().invoke(program, flags).exit_code == 0
        assert given == [value]


NEEDED = ["train", "--model", "m", "--data", "d"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--data", "x"], "--model is missing"),
        (["train", "--model", "x"], "--data is missing"),
        (["plan"], "MODEL is missing"),
        (["serve"], "MODEL is missing"),
        (["keys"], "FILE is missing"),
        (["import", "folder", "--model", "x"], "--name is missing"),
        ([*NEEDED, "--lr", "fast"], "--lr='fast': must be a valid number"),
        ([*NEEDED, "--clip", "0"], "--clip='0': must be greater than 0"),
        ([*NEEDED, "--max-grad-norm", "0"], "--max-grad-norm='0': must be greater than 0"),
        ([*NEEDED, "--clip", "1", "--max-grad-norm", "1"], "--clip and --max-grad-norm are two names of one setting"),
        ([*NEEDED, "--early-stopping", "2"], "--early-stopping=2 needs --validation"),
        ([*NEEDED, "--epochs", "2", "--max-steps", "1"], "--epochs=2.0 and --max-steps=1 both say"),
        ([*NEEDED, "--full", "--rank", "8"], "--full trains every parameter, so --rank would have no effect"),
        ([*NEEDED, "--slots", "3"], "--slots=3 has no effect without --fleet"),
        ([*NEEDED, "--alias", "x"], "--alias='x' needs --name"),
        ([*NEEDED, "--rank-pattern", "x"], "--rank-pattern: 'x' is not of the form KEY=VALUE"),
        (["serve", "m", "--max-rows", "0"], "--max-rows='0': must be greater than or equal to 1"),
        (["serve", "m", "--max-rows", "8", "--max-num-seqs", "8"], "--max-rows and --max-num-seqs are two names"),
        (["serve", "m", "--max-loras", "0"], "--max-loras='0'"),
        (["eval", "x", "--batch-size", "0"], "--batch-size='0'"),
    ],
)
def test_an_error_uses_the_word_that_was_typed(tmp_path, monkeypatch, words: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in " ".join(polyvera(*words, fails=True).stderr.split())


def test_a_key_that_no_recipe_has_is_refused_by_every_verb(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.toml").write_text("stor = 'other'\n")
    for verb, words in SAID.items():
        told = polyvera(*words, "--recipe", "r.toml", fails=True).stderr
        assert "r.toml: unknown recipe key 'stor'; did you mean 'store'?" in " ".join(told.split()), verb
    assert "'stor'" in polyvera("serve", "m", "--recipe", "r.toml", fails=True).stderr
    assert "serving key 'stor'" in polyvera("serve", "m", "--config", "r.toml", fails=True).stderr


def test_a_server_takes_its_base_and_its_store_from_a_recipe(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.toml").write_text('model = "nowhere/at/all"\ndata = "d"\nmax_rows = 3\n')
    assert "nowhere/at/all" in polyvera("serve", "--recipe", "r.toml", "--dry-run", fails=True).stderr


@pytest.mark.parametrize("verb", MODELS)
def test_the_schema_allows_what_the_model_does(verb: str) -> None:
    schema = json.loads(polyvera(verb, "--schema").output)
    names = {n for path, one in MODELS[verb].settings().items() if "." not in path for n in (path, *one.about.aliases)}
    assert set(schema["properties"]) == names and schema["additionalProperties"] is False
    assert all("description" in one for one in schema["properties"].values())


def test_a_budget_in_a_file_and_one_in_flags_are_one(tmp_path, monkeypatch) -> None:
    able = next(name for name, row in METHODS.items() if "d" in row.trained)
    program, given = typer.Typer(), []

    def verb(recipe: Annotated[Recipe, Whole()]) -> None:
        given.append(recipe)

    program.command()(with_settings(verb))
    monkeypatch.chdir(tmp_path)
    Path("r.toml").write_text(f'model = "m"\ndata = "d"\nmethod = "{able}"\nrank = 16\n[budget]\nrank = 8\nfinal = 2\n')
    result = CliRunner().invoke(program, ["--recipe", "r.toml", "--budget-rank", "4"])
    assert result.exit_code == 0, result.output
    assert (given[0].budget.rank, given[0].budget.final) == (4, 2)
