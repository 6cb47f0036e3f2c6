import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_classifier, make_model, make_tokenizer
from transformers import BitsAndBytesConfig, LlamaForCausalLM, TrainerCallback

from polyvera.adapter.inject import banks_of, inject, load
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import DataError, RecipeError
from polyvera.model.load import Base
from polyvera.train import checkpoint
from polyvera.train.recipe import Recipe
from polyvera.train.trainer import TrainResult, train

Write = Callable[..., str]
SHRINKING = [name for name, row in METHODS.items() if row.shrinks]


def run(
    data: str, base: Base | None = None, *, resume: bool = False, callbacks: Any = (), **choices: Any
) -> TrainResult:
    settings = {"model": "tiny", "data": data, "rank": 4, "batch_size": 4, "max_steps": 6, "lr": 0.02, **choices}
    base = base or Base(make_model(), make_tokenizer())
    settings = {name: value for name, value in settings.items() if value is not None}
    return train(Recipe(**settings), base=base, resume=resume, progress=False, callbacks=callbacks)


@pytest.mark.parametrize("method", METHODS)
def test_every_row_learns_and_leaves_the_base_bare(counting: str, method: str) -> None:
    base, before = Base(make_model(), make_tokenizer()), make_model().state_dict()
    result = run(counting, base, method=method, targets="all-linear", max_steps=24, lr=5 * METHODS[method].lr)
    losses = [loss for _, loss in result.history.training]
    assert len(losses) == result.num_steps == 24
    assert sum(losses[-6:]) < 0.97 * sum(losses[:6])
    after = base.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert result.adapter is not None
    assert result.num_trained == result.adapter.num_params == result.adapter.layout.num_params
    assert result.num_params == sum(p.numel() for p in base.model.parameters())
    assert result.adapter.base and result.adapter.scores == result.scores


@pytest.mark.parametrize("method", METHODS)
def test_every_row_learns_by_the_few_numbers_of_a_hash(counting: str, method: str) -> None:
    result = run(counting, method=method, targets="all-linear", hash_size=50, max_steps=24, lr=5 * METHODS[method].lr)
    losses = [loss for _, loss in result.history.training]
    assert sum(losses[-6:]) < sum(losses[:6])
    assert result.adapter is not None and result.num_trained == result.adapter.num_params >= 50
    assert result.adapter.layout.hash_size == 50 and result.adapter.flat.abs().max() > 0


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"fleet": True}, r"call train_fleet\(recipe\)"),
        ({"turns": "last"}, "turns='last' has no effect: the rows of .* have no turns"),
        ({"dtype": "bfloat16"}, "dtype='bfloat16', and the base that was given is in float32"),
        ({"head_lr": 0.1}, "head_lr=0.1 has no effect"),
        ({"stored": "int8"}, "stored='int8' needs name"),
        ({"store": "shelf"}, "store='shelf' needs name"),
    ],
)
def test_what_would_have_no_effect_is_refused(counting: str, choices: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        run(counting, **choices)


def test_one_place_says_where_to_begin(counting: str) -> None:
    first = run(counting, max_steps=1).adapter
    for choices, said in (({"init_from": "mean"}, "start and init_from"), ({"full": True}, "start would have no")):
        recipe = Recipe(model="tiny", data=counting, max_steps=1, **choices)
        with pytest.raises(RecipeError, match=said):
            train(recipe, base=Base(make_model(), make_tokenizer()), start=first)


def test_a_run_of_one_step_moves_what_it_trains(counting: str) -> None:
    one, other = (run(counting, max_steps=1, lr=lr).adapter for lr in (0.02, 1e-12))
    assert one is not None and other is not None and not torch.allclose(one.flat, other.flat, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_adapter_is_what_was_trained(counting: str, method: str) -> None:
    """Loaded into a fresh base, it has the validation loss that the run reports."""
    result = run(counting, method=method, validation=0.25, eval_every=3, max_steps=9, targets="all-linear")
    fresh = make_model()
    assert result.adapter is not None and result.held_out is not None
    load(fresh, result.adapter)
    total, count = 0.0, 0
    for row in result.held_out.rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        num = int((labels[:, 1:] != -100).sum())
        total += float(fresh(ids, labels=labels).loss.detach()) * num
        count += num
    assert result.scores["eval_loss"] == pytest.approx(total / count, rel=1e-5)
    assert result.scores["eval_loss"] == min(loss for _, loss in result.history.validation)


@pytest.mark.parametrize("kind", ["answers", "classes"])
def test_accumulated_batches_count_as_one(counting: str, classes: str, kind: str) -> None:
    data, make = (counting, make_model) if kind == "answers" else (classes, make_classifier)
    results = [
        run(data, Base(make(), make_tokenizer()), targets="all-linear", batch_size=8 // k, accumulate=k, max_steps=3)
        for k in (1, 2, 4)
    ]
    first = results[0].adapter
    assert first is not None
    for other in results[1:]:
        assert other.adapter is not None
        torch.testing.assert_close(other.adapter.flat, first.flat, rtol=1e-4, atol=1e-5)
        assert other.history.training[0][1] == pytest.approx(results[0].history.training[0][1], rel=1e-5)


def test_gradient_checkpointing_changes_no_bit(counting: str) -> None:
    plain, saved = (run(counting, gradient_checkpointing=on, targets="all-linear", dropout=0.1) for on in (False, True))
    assert plain.adapter is not None and saved.adapter is not None
    assert torch.equal(plain.adapter.flat, saved.adapter.flat)


def test_a_bf16_base_trains_fp32_vectors(counting: str) -> None:
    result = run(
        counting, Base(make_model(torch.bfloat16), make_tokenizer()), targets="all-linear", max_steps=24, lr=0.05
    )
    assert result.adapter is not None and result.adapter.flat.dtype == torch.float32
    losses = [loss for _, loss in result.history.training]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_rows_of_like_length_and_epochs(counting: str) -> None:
    result = run(counting, max_steps=None, epochs=1.5, group_by_length=True)
    assert result.num_steps == 9  # 24 rows in batches of 4


def test_a_classifier_trains_its_head_at_its_own_rate(classes: str) -> None:
    base = Base(make_classifier(), make_tokenizer())
    rates: dict[str, set[float]] = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            rates["seen"] = {group["initial_lr"] for group in given["optimizer"].param_groups}

    choices = {"lr": 0.02, "head_lr": 0.005, "test": classes, "callbacks": [Watch()]}
    result = run(classes, base, targets=["query", "value"], max_steps=30, **choices)
    assert rates["seen"] == {0.02, 0.005}
    assert result.labels == ("even", "odd")
    assert result.adapter is not None and result.adapter.spec.head == ("classifier",)
    assert "classifier.weight" in result.adapter.tensors
    assert result.scores["accuracy"] >= result.scores["majority"] == 0.5
    fresh = make_classifier()
    load(fresh, result.adapter)
    assert not torch.equal(fresh(torch.tensor([[8, 9]])).logits, make_classifier()(torch.tensor([[8, 9]])).logits)


def test_the_best_numbers_are_kept_and_patience_ends_the_run(counting: str) -> None:
    result = run(counting, validation=0.25, eval_every=2, early_stopping=2, max_steps=60, lr=3.0, targets="all-linear")
    losses = dict(result.history.validation)
    best = min(losses, key=lambda step: losses[step])
    assert result.num_steps == best + 4 < 60
    assert result.scores["eval_loss"] == losses[best]
    again = run(
        counting, validation=0.25, eval_every=2, max_steps=60, lr=3.0, targets="all-linear", callbacks=[Halt(best)]
    )
    assert result.adapter is not None and again.adapter is not None
    assert torch.equal(result.adapter.flat, again.adapter.flat)


class Halt(TrainerCallback):
    """Ends a run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> Any:
        control.should_training_stop = state.global_step >= self.step
        return control


def test_a_loss_that_is_no_number_names_step_and_lr(counting: str) -> None:
    with pytest.raises(RecipeError, match=r"the loss is nan at step \d+ with lr=.*at its highest it is 1e\+30"):
        run(counting, lr=1e30, warmup=0.0, targets="all-linear")


def test_a_damaged_base_is_not_blamed_on_the_rate(counting: str) -> None:
    base = Base(make_model(), make_tokenizer())
    base.model.lm_head.weight.data[3, 3] = float("nan")
    with pytest.raises(RecipeError, match=r"nan before anything was trained: the base's own weights"):
        run(counting, base)


@pytest.mark.parametrize("method", SHRINKING)
def test_a_rank_budget_is_met(counting: str, method: str) -> None:
    budget = {"rank": 1.5, "warmup": 4, "final": 6, "interval": 2}
    result = run(
        counting,
        method=method,
        budget=budget,
        max_steps=24,
        lr=0.05,
        targets="all-linear",
        validation=0.25,
        eval_every=4,
    )
    assert result.adapter is not None
    assert sum(result.ranks.values()) == round(1.5 * len(result.ranks))
    for site, rank in result.ranks.items():
        assert int((result.adapter.tensors[f"{site}.d"] != 0).sum()) == rank
    own = {"A", "B"} <= set(METHODS[method].trained)
    assert (result.adapter.num_params < result.num_trained) == own
    kept_by_then = [loss for step, loss in result.history.validation if step > 18]
    assert result.scores["eval_loss"] == min(kept_by_then)


def test_orthogonality_is_trained(counting: str) -> None:
    method = next(name for name in SHRINKING if {"A", "B"} <= set(METHODS[name].trained))
    plan = {"rank": 2, "warmup": 2, "final": 2}
    free, bound = (run(counting, method=method, budget={**plan, "orthogonal": w}, lr=0.05) for w in (0.0, 1.0))
    assert bound.history.training[-1][1] - bound.history.training[0][1] < -0.1
    assert free.adapter is not None and bound.adapter is not None
    assert not torch.equal(free.adapter.flat[:50], bound.adapter.flat[:50])


def test_full_fine_tuning_is_the_baseline(counting: str, tmp_path: Path) -> None:
    base = Base(make_model(), make_tokenizer())
    result = run(counting, base, rank=None, full=True, lr=1e-3, output=str(tmp_path / "full"), validation=0.25)
    assert result.adapter is None
    assert result.num_trained == result.num_params
    assert result.history.training[-1][1] < result.history.training[0][1]
    saved = type(base.model).from_pretrained(result.paths["model"])
    assert torch.equal(saved.lm_head.weight, result.base.model.lm_head.weight)
    assert not torch.equal(saved.lm_head.weight, make_model().lm_head.weight)


def test_a_run_writes_its_curve_and_keeps_no_base_weights(counting: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = run(counting, output=str(folder), save_every=3, validation=0.25)
    assert result.paths["curve"].read_bytes().startswith(b"\x89PNG")
    assert json.loads(result.paths["history"].read_text())["training"][0][0] == 1
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-6"]
    stored = checkpoint.read(folder / "checkpoint-6" / "trained.safetensors")
    assert sum(t.numel() for t in stored.values()) == result.num_trained
    assert {path.name for path in (folder / "checkpoint-6").iterdir()} == {
        "beside.safetensors",
        "files.json",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "trained.safetensors",
        "trainer_state.json",
    }


def test_a_folder_that_holds_a_run_is_not_overwritten(counting: str, tmp_path: Path) -> None:
    output, content = str(tmp_path / "run"), Path(counting).read_text()
    first = run(counting, output=output)
    with pytest.raises(RecipeError, match="holds a run already: resume it, or choose another folder"):
        run(counting, output=output)
    with pytest.raises(RecipeError, match=r"another recipe: lr was 0\.02 and is 0\.01"):
        run(counting, output=output, lr=0.01, resume=True)
    Path(counting).write_text("".join(Path(counting).read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(RecipeError, match="another recipe: sha256 of the rows was"):
        run(counting, output=output, resume=True)
    Path(counting).write_text(content)
    again = run(counting, output=output, resume=True)  # nothing is left to do, and nothing is done
    assert first.adapter is not None and again.adapter is not None
    assert torch.equal(first.adapter.flat, again.adapter.flat)
    assert again.history == first.history
    with pytest.raises(RecipeError, match="resume needs output"):
        run(counting, resume=True)


def test_a_run_that_came_to_nothing_leaves_its_folder_free(counting: str, tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    with pytest.raises(RecipeError, match="leave none of the 6 steps"):
        run(counting, output=output, budget={"rank": 2, "final": 6})
    with pytest.raises(RecipeError, match="the loss is nan"):
        run(counting, output=output, lr=1e30, warmup=0.0, targets="all-linear")
    assert run(counting, output=output).num_steps == 6


@pytest.mark.parametrize(
    ("choices", "error", "problem"),
    [
        ({"head_lr": 0.1}, RecipeError, "LlamaForCausalLM has no head that is trained"),
        ({"max_length": 65}, RecipeError, "max_length=65 is more than the 64 tokens that tiny reads"),
        ({"max_length": 2}, DataError, "the answers of 24 rows are longer than max_length=2"),
        ({"max_steps": 2, "budget": {"rank": 2, "final": 2}}, RecipeError, "leave none of the 2 steps"),
    ],
)
def test_what_only_the_model_or_the_data_shows_to_be_wrong(
    counting: str, choices: dict[str, Any], error: type[Exception], problem: str
) -> None:
    base = Base(make_model(), make_tokenizer())
    with pytest.raises(error, match=problem):
        run(counting, base, **choices)
    assert list(base.model.state_dict()) == list(make_model().state_dict())


def test_skipped_and_shortened_rows_are_reported(jsonl: Write) -> None:
    rows = [{"prompt": "w1 w2 w3 w4 w5", "completion": "w1"}, {"prompt": "w1", "completion": "w2 " * 9}]
    result = run(jsonl(rows), max_length=5, too_long="skip", max_steps=1)
    assert (result.rows.shortened, result.rows.skipped) == ((1,), (2,))


@pytest.mark.parametrize("method", [name for name in METHODS if name in SHRINKING or "m" in METHODS[name].trained])
def test_a_quantized_base_trains(counting: str, tmp_path: Path, method: str) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    make_model().save_pretrained(tmp_path / "tiny")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model = LlamaForCausalLM.from_pretrained(tmp_path / "tiny", quantization_config=config, device_map={"": "cpu"})
    result = run(counting, Base(model, make_tokenizer()), method=method, targets="all-linear", max_steps=24, lr=0.05)
    losses = [loss for _, loss in result.history.training]
    assert sum(losses[-6:]) < 0.97 * sum(losses[:6])
    assert result.adapter is not None and result.adapter.base.endswith("-")  # the quantized part has no fingerprint


def test_a_base_that_holds_adapters_is_not_stripped_of_them(counting: str) -> None:
    base = Base(make_model(), make_tokenizer())
    inject(base.model, AdapterSpec(rank=2))
    with pytest.raises(RecipeError, match="has adapters in it"):
        run(counting, base)
    assert len(banks_of(base.model)) == 1


def test_a_base_for_other_classes_is_refused(classes: str) -> None:
    with pytest.raises(
        RecipeError, match=r"has the classes even, odd, and the model's outputs are LABEL_0, LABEL_1, LABEL_2"
    ):
        run(classes, Base(make_classifier(3), make_tokenizer()))


def test_progress_is_a_line_now_and_then_without_a_terminal(counting: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = Base(make_model(), make_tokenizer())
    choices = {
        "model": "tiny",
        "data": counting,
        "validation": 0.25,
        "rank": 2,
        "batch_size": 9,
        "max_steps": 45,
        "eval_every": 15,
    }
    train(Recipe(**choices), base=base)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert "step 44/45: loss" in lines[-2] and "step 45/45: eval loss" in lines[-1]
    assert 20 < len(lines) < 50
