import csv
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import counting_rows, make_classifier, make_model, make_tokenizer

from polyvera.adapter.inject import banks_of, load
from polyvera.data.tables import Table, read
from polyvera.errors import DataError
from polyvera.evaluate.evaluate import bleu, evaluate
from polyvera.evaluate.fleet_scores import TenantScores, draw, fleet_scores, page, write
from polyvera.model.load import Base
from polyvera.model.task import TASKS
from polyvera.train.fleet.train_fleet import train_fleet
from polyvera.train.recipe import Recipe

ROWS = {"rank": 4, "batch_size": 4, "max_steps": 30, "lr": 0.1, "targets": "all-linear", "model": "tiny", "fleet": True}


def tables(place: Path, make: Any, num: int = 4) -> dict[str, Table]:
    place.mkdir()
    for k in range(num):
        (place / f"t{k}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make(k)))
    return {f"t{k}": read(place / f"t{k}.jsonl") for k in range(num)}


def trained(place: Path, base: Base) -> dict[str, Any]:
    result = train_fleet(Recipe(**ROWS, data=str(place)), base=base)
    return {outcome.name: outcome.adapter for outcome in result.outcomes}


def test_a_fleet_is_scored_as_each_adapter_is_alone(tmp_path: Path) -> None:
    found = tables(tmp_path / "a", lambda k: counting_rows(5 + k))
    base = Base(make_model(), make_tokenizer())
    adapters = trained(tmp_path / "a", base)
    several = list(fleet_scores(base, adapters, found, at_a_time=3))
    assert sorted(one.name for one in several) == sorted(found)
    assert not banks_of(base.model)
    for one in several:
        model = make_model()
        [slot] = load(model, adapters[one.name])
        alone = evaluate(model, make_tokenizer(), found[one.name], slot).scores
        bare = evaluate(model, make_tokenizer(), found[one.name], 0).scores
        assert one.num_rows == len(found[one.name])
        for name, value in alone.items():
            assert one.scores[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
        for name, value in bare.items():
            assert one.base[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_a_tenant_that_cannot_be_scored_is_skipped_only_where_asked(tmp_path: Path) -> None:
    found = tables(tmp_path / "a", lambda k: counting_rows(4 + k))
    base = Base(make_model(), make_tokenizer())
    adapters = trained(tmp_path / "a", base)
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "w1 " * 200, "completion": "w2"}) + "\n")
    bad = found | {"t1": read(tmp_path / "long.jsonl")}
    with pytest.raises(DataError, match="tokens"):
        list(fleet_scores(base, adapters, bad))
    problems: dict[str, str] = {}
    several = list(fleet_scores(base, adapters, bad, skip=lambda name, error: problems.update({name: str(error)})))
    assert sorted(one.name for one in several) == ["t0", "t2", "t3"] and set(problems) == {"t1"}
    assert "tokens" in problems["t1"] and not banks_of(base.model)
    right = {one.name: one.scores for one in fleet_scores(base, adapters, found)}
    for one in several:
        assert one.scores == pytest.approx(right[one.name], rel=1e-4)


def test_tenants_may_name_their_classes_each_in_its_own_way(tmp_path: Path) -> None:
    names = [("even", "odd"), ("no", "yes"), ("a", "b"), ("z", "x")]
    found = tables(
        tmp_path / "a", lambda k: [{"text": f"w{i % 7} w{20 + i % 2}", "label": names[k][i % 2]} for i in range(8)]
    )
    base = Base(make_classifier(), make_tokenizer())
    adapters = trained(tmp_path / "a", base)
    for one in fleet_scores(base, adapters, found):
        assert one.scores["accuracy"] == 1.0 and one.base == {}  # the word w20 or w21 gives the class away


def test_the_table_and_the_picture(tmp_path: Path) -> None:
    several = [
        TenantScores("a", {"exact_match": 0.5, "majority": 0.25, "loss": 1.0}, {"exact_match": 0.0, "loss": 2.0}, 8),
        TenantScores(
            "b", {"exact_match": 0.0, "majority": 0.0, "rouge_l": 0.5}, {"exact_match": 0.0, "rouge_l": 0.1}, 8
        ),
    ]
    with write(several, tmp_path / "new" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["tenant"], row["main"], row["exact_match"]) for row in rows] == [
        ("a", "exact_match", "0.5000"),
        ("b", "rouge_l", "0.0000"),
    ]
    assert rows[0]["base_loss"] == "2.0000" and rows[1]["loss"] == ""
    text = page(several, tmp_path / "scores.md").read_text()
    assert "2 adapters: median 0.500, of the base model 0.050; 2 are better" in text
    assert "| b | rouge_l | 0.5000 | 0.1000 | 0.0000 | 8 |" in text
    assert draw(several, tmp_path / "scores.png", "two").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("task", [name for name, row in TASKS.items() if row.metrics])
def test_the_score_to_compare_by_is_the_first_of_the_task(task: str) -> None:
    scores = dict.fromkeys(TASKS[task].metrics, 0.5)
    assert TenantScores("a", scores, {}, 4).main == TASKS[task].metrics[0]


def test_bleu_is_that_of_the_corpus(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    cat = "the cat sat on the mat"
    rows = [{"prompt": "x", "completion": cat, "refs": [cat, "a cat sat"]}] * 2
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = read(path).examples
    assert bleu([cat] * 2, examples)["bleu"] == pytest.approx(100.0)
    assert bleu(["dogs run"] * 2, examples)["bleu"] == pytest.approx(0.0, abs=5.0)
