from dataclasses import fields
from pathlib import Path

import pytest

from polyvera.adapter.method import D_INIT, METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import RecipeError
from polyvera.train.recipe import FULL_LR, Recipe

SHRINKING = next(name for name, row in METHODS.items() if row.shrinks)

NEEDED = {"model": "m", "data": "d.jsonl"}


def test_every_choice_of_an_adapter_is_a_choice_of_a_recipe_with_the_same_default() -> None:
    spec = Recipe(**NEEDED).spec()
    assert spec == AdapterSpec()
    assert {f.name for f in fields(AdapterSpec)} <= set(Recipe.model_fields)


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_builds_the_spec_it_names(method: str) -> None:
    spec = Recipe(**NEEDED, method=method, rank=4, targets=["q_proj", "up_proj"], exclude="up_proj", seed=3).spec(
        ("score",)
    )
    assert spec == AdapterSpec(method, 4, ("q_proj", "up_proj"), ("up_proj",), seed=3, head=("score",))


@pytest.mark.parametrize("method", METHODS)
def test_lr_is_the_rows_own_unless_given(method: str) -> None:
    assert Recipe(**NEEDED, method=method).learning_rate == METHODS[method].lr
    assert Recipe(**NEEDED, method=method, lr=0.25).learning_rate == 0.25
    assert Recipe(**NEEDED, full=True).learning_rate == FULL_LR


@pytest.mark.parametrize("method", METHODS)
def test_a_rank_budget_is_for_rows_that_train_d(method: str) -> None:
    if METHODS[method].shrinks:
        assert Recipe(**NEEDED, method=method, budget={"rank": 2}).budget is not None
    else:
        with pytest.raises(
            RecipeError, match=f"budget needs a method that trains d for every rank, which {method} does not"
        ):
            Recipe(**NEEDED, method=method, budget={"rank": 2})


def test_a_toml_file_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        'model = "m"\ndata = "d.csv"\nlr = 1\ncolumns = {prompt = "q", completion = "a"}\n[budget]\nrank = 8\n'
    )
    recipe = Recipe.from_toml(path, lr=0.5, rank=16)
    assert (recipe.lr, recipe.rank, recipe.columns["completion"]) == (0.5, 16, "a")
    assert recipe.budget is not None and recipe.budget.rank == 8
    assert recipe.replaced(lr=0.25).rank == 16


def test_each_problem_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('model = "m"\ndata = "d"\nmetod = "vera"\nlr = -1\nvalidation = 3\n[budget]\nrank = 2\nfinl = 1\n')
    with pytest.raises(RecipeError) as caught:
        Recipe.from_toml(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert any("unknown recipe key 'metod'; did you mean 'method'?" in line for line in lines)
    assert any("unknown recipe key 'budget.finl'; did you mean 'budget.final'?" in line for line in lines)
    assert any("lr=-1: must be greater than 0" in line for line in lines)
    assert any("validation=3" in line for line in lines)


@pytest.mark.parametrize(
    ("choices", "problem"),
    [
        ({"method": "vara"}, "did you mean 'vera'"),
        ({"epochs": 1, "max_steps": 5}, "give one of them"),
        ({"early_stopping": 2}, "early_stopping=2 needs validation"),
        ({"eval_every": 2}, "eval_every=2 needs validation"),
        ({"save_every": 2}, "save_every=2 needs output"),
        ({"full": True, "rank": 8}, "full=true trains every parameter, so rank would have no effect"),
        ({"alpha": 8}, "alpha=8.0 is not used by vera"),
        ({"budget": {"rank": 300}}, "more than the rank of 256"),
        ({"budget": {"rank": 8, "orthogonal": 0.1}}, "whose A and B are frozen"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"lr": float("nan")}, "lr=nan"),
    ],
)
def test_impossible_choices(choices: dict[str, object], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem.replace("(", r"\(")):
        Recipe(**{**NEEDED, **choices})


@pytest.mark.parametrize("method", METHODS)
def test_a_run_without_effect_is_refused(method: str) -> None:
    letters = METHODS[method].factors.values()
    if any(factor.init == D_INIT for factor in letters):
        with pytest.raises(RecipeError, match="d_init=0.0 has no effect: d and b would start at 0 and never move"):
            Recipe(**NEEDED, method=method, d_init=0.0)
    else:
        said = "alpha=0.0 multiplies the adapter by 0" if METHODS[method].takes_alpha else "alpha=0.0 is not used by"
        with pytest.raises(RecipeError, match=said):
            Recipe(**NEEDED, method=method, alpha=0.0)
    for name in ("lr", "head_lr"):
        with pytest.raises(RecipeError, match=f"{name}=1e-60 changes no 32-bit number"):
            Recipe(**NEEDED, method=method, **{name: 1e-60})


@pytest.mark.parametrize("choice", [{"weight_decay": 0.1}, {"budget": {"rank": 2}}], ids=str)
def test_what_would_break_the_ties_of_a_hash_is_refused(choice: dict[str, object]) -> None:
    assert Recipe(**NEEDED, hash_size=100).spec().hash_size == 100
    with pytest.raises(RecipeError, match="would break what hash_size ties together"):
        Recipe(**NEEDED, hash_size=100, **choice)


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="can't be read"):
        Recipe.from_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("model = \n")
    with pytest.raises(RecipeError, match=r"bad\.toml is not valid TOML"):
        Recipe.from_toml(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"slots": 3}, "slots=3 has no effect without fleet"),
        ({"batch_tokens": 3}, "batch_tokens=3"),
        ({"workers": 2}, "workers=2"),
        ({"adapter_column": "who"}, "adapter_column='who'"),
        ({"fleet": True, "full": True}, "full does not allow"),
        (
            {
                "fleet": True,
                "method": next(n for n, row in METHODS.items() if row.shrinks),
                "budget": {"rank": 2},
            },
            "budget does not allow",
        ),
        ({"full": True, "init_from": "mean"}, "init_from would have no effect"),
    ],
)
def test_choices_of_a_fleet_that_make_no_sense_are_refused(choices, words):
    with pytest.raises(RecipeError, match=words):
        Recipe(model="m", data="d", **choices)


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        ("gradient_accumulation_steps", "accumulate", 4),
        ("max_grad_norm", "clip", 0.5),
        ("warmup_ratio", "warmup", 0.1),
        ("lr_scheduler_type", "schedule", "cosine"),
        ("target_modules", "targets", ("q_proj", "v_proj")),
        ("modules_to_save", "head", ("score",)),
        ("use_dora", "magnitude", True),
    ],
)
def test_names_of_the_field_are_taken_too_but_not_both(alias: str, name: str, value: object) -> None:
    recipe = Recipe(**NEEDED, **{alias: value})
    assert recipe == Recipe(**NEEDED, **{name: value}) and getattr(recipe, name) == value
    with pytest.raises(RecipeError, match="are two names of one setting: give one of them"):
        Recipe(**NEEDED, **{name: value, alias: value})


def test_a_recipe_says_where_its_adapter_goes_and_a_run_goes_on_wherever_that_is() -> None:
    one = Recipe(**NEEDED, name="cafe/tickets", store="a", alias="live", stored="int8")
    assert one.of_the_run() == Recipe(**NEEDED, output="elsewhere").of_the_run() and one.store == "a"
    for wrong in (
        {"name": "../x"},
        {"name": ""},
        {"name": "x", "full": True},
        {"alias": "x"},
        {"name": "x", "alias": "3"},
    ):
        with pytest.raises(RecipeError):
            Recipe(**NEEDED, **wrong)


def test_a_file_wins_over_the_environment_and_arguments_over_the_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("POLYVERA_STORE", "shelf")
    monkeypatch.setenv("POLYVERA_TRAIN_BATCH_SIZE", "3")
    path = tmp_path / "run.toml"
    path.write_text('model = "m"\ndata = "d"\nbatch_size = 8\n')
    assert Recipe.from_toml(path).store == "shelf" and Recipe.from_toml(path).batch_size == 8
    assert Recipe.from_toml(path, name="x", store="adapters").store == "adapters"
    assert Recipe(**NEEDED).store == "adapters"
