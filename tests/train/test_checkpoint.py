"""checkpoint: files that are there whole or not at all, and a folder that holds one run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from polyvera.data.encoding import Encoded
from polyvera.errors import RecipeError
from polyvera.train import checkpoint
from polyvera.train.recipe import Recipe

ROWS = Encoded(({"input_ids": [1, 2], "labels": [1, 2]},))


def recipe(**choices: object) -> Recipe:
    return Recipe(**{"model": "m", "data": "d", "rank": 2, **choices})  # type: ignore[arg-type]


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    layers[0].requires_grad_(False)
    return layers


def test_only_trained_parameters_are_written_and_read(tmp_path: Path) -> None:
    first, second = model(), model()
    nn.init.zeros_(second[1].weight)  # type: ignore[index, arg-type]
    assert list(checkpoint.trained(first)) == ["1.weight", "1.bias"]
    checkpoint.write(tmp_path / "x.safetensors", checkpoint.trained(first))
    checkpoint.read_into(tmp_path / "x.safetensors", second)
    assert all(torch.equal(first.state_dict()[key], value) for key, value in second.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]  # nothing is left aside


def test_what_cannot_be_read_or_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"half")
    with pytest.raises(RecipeError, match="cannot|can't"):
        checkpoint.read(path)
    checkpoint.write(path, {"other": torch.zeros(2)})
    with pytest.raises(RecipeError, match="tensors of another run"):
        checkpoint.read_into(path, model())


def test_the_last_whole_checkpoint_counts(tmp_path: Path) -> None:
    assert checkpoint.last(tmp_path) is None
    for step, text in ((4, json.dumps({"global_step": 4})), (12, json.dumps({"global_step": 12})), (20, '{"glob')):
        folder = tmp_path / f"{checkpoint.PREFIX}{step}"
        folder.mkdir()
        (folder / checkpoint.STATE).write_text(text)
    assert checkpoint.last(tmp_path) == tmp_path / "checkpoint-12"


WHOLE = {"trained.safetensors": {"x": torch.zeros(3)}, "optimizer.pt": {"step": 3}, "rng_state.pth": {"cpu": 1}}


def ended(folder: Path, step: int) -> Path:
    """A checkpoint with a file of each kind."""
    at = folder / f"{checkpoint.PREFIX}{step}"
    at.mkdir(parents=True)
    for name, content in WHOLE.items():
        checkpoint.write(at / name, content) if name.endswith("safetensors") else torch.save(content, at / name)  # type: ignore[arg-type]
    (at / checkpoint.STATE).write_text(json.dumps({"global_step": step}))
    return at


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("left", [0, 7, 0.5])
def test_a_damaged_checkpoint_does_not_count(tmp_path: Path, name: str, left: float) -> None:
    first, second = ended(tmp_path, 4), ended(tmp_path, 8)
    assert checkpoint.last(tmp_path) == second and checkpoint.damaged_file(second) is None
    whole = (second / name).read_bytes()
    (second / name).write_bytes(whole[: int(left * len(whole)) if left < 1 else int(left)])
    assert checkpoint.last(tmp_path) == first and checkpoint.damaged_file(second) == second / name
    checkpoint.check_new(tmp_path, resume=True)
    (first / name).write_bytes(b"")
    with pytest.raises(RecipeError, match=f"checkpoint-8/{name} is damaged"):
        checkpoint.check_new(tmp_path, resume=True)
    with pytest.raises(RecipeError, match="holds a run already"):
        checkpoint.check_new(tmp_path, resume=False)


@pytest.mark.parametrize("name", [*WHOLE, checkpoint.STATE, checkpoint.FILES])
@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda file: file.write_bytes(b"[]"), lambda file: file.write_text("{}")]
)
def test_a_sealed_checkpoint_has_what_was_written(tmp_path: Path, name: str, damage: Callable[[Path], object]) -> None:
    first, second = ended(tmp_path, 4), ended(tmp_path, 8)
    for one in (first, second):
        checkpoint.seal(one)
    assert checkpoint.last(tmp_path) == second
    damage(second / name)
    is_unsealed = not (second / checkpoint.FILES).exists()  # as those of earlier versions are
    assert checkpoint.last(tmp_path) == (second if is_unsealed else first)


@pytest.mark.parametrize("text", ["{", "3", "", "\udcff"])
def test_a_damaged_recipe_is_named(tmp_path: Path, text: str) -> None:
    ended(tmp_path, 4)
    (tmp_path / checkpoint.RECIPE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(RecipeError, match=r"recipe\.json cannot be read"):
        checkpoint.begin(tmp_path, recipe(), ROWS, resume=True)


def test_a_folder_holds_one_run(tmp_path: Path) -> None:
    assert checkpoint.begin(tmp_path, recipe(), ROWS, resume=False) is None
    done = tmp_path / f"{checkpoint.PREFIX}4"
    done.mkdir()
    (done / checkpoint.STATE).write_text('{"global_step": 4}')
    with pytest.raises(RecipeError, match="holds a run already"):
        checkpoint.begin(tmp_path, recipe(), ROWS, resume=False)
    assert checkpoint.begin(tmp_path, recipe(), ROWS, resume=True) == done
    with pytest.raises(RecipeError, match="rank was 2 and is 3"):
        checkpoint.begin(tmp_path, recipe(rank=3), ROWS, resume=True)
    others = Encoded(({"input_ids": [1, 3], "labels": [1, 3]},))
    with pytest.raises(RecipeError, match="sha256 of the rows was"):
        checkpoint.begin(tmp_path, recipe(), others, resume=True)


def test_a_run_goes_on_on_its_own_base(tmp_path: Path) -> None:
    checkpoint.begin(tmp_path, recipe(), ROWS, "one", resume=False)
    assert checkpoint.begin(tmp_path, recipe(), ROWS, "one", resume=True) is None
    ended(tmp_path, 3)
    with pytest.raises(RecipeError, match="fingerprint of the base model was 'one' and is 'two'"):
        checkpoint.begin(tmp_path, recipe(), ROWS, "two", resume=True)
    file = tmp_path / checkpoint.RECIPE
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != checkpoint.BASE}))
    assert checkpoint.begin(tmp_path, recipe(), ROWS, "two", resume=True) is not None


def test_a_sealed_checkpoint_without_a_whole_state_is_not_taken_for_none(tmp_path: Path) -> None:
    only = ended(tmp_path, 4)
    checkpoint.seal(only)
    (only / checkpoint.STATE).write_text("{")
    with pytest.raises(RecipeError, match=f"checkpoint-4/{checkpoint.STATE} is damaged, and there is no other"):
        checkpoint.check_new(tmp_path, resume=True)
