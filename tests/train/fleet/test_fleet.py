"""A fleet member is what its tenant's rows alone would have given, whoever else is in the batch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_fleet import SETTINGS, apart, fleet, solo
from tiny_models import WORDS, counting_rows, make_classifier, make_model, make_tokenizer

from polyvera.adapter.inject import banks_of, inject, load
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import RecipeError
from polyvera.model.load import Base
from polyvera.store.registry import Registry
from polyvera.train.fleet.fleet import Fleet
from polyvera.train.fleet.journal import FINISHED, QUARANTINED, SKIPPED
from polyvera.train.fleet.optimizer import SlotAdamW
from polyvera.train.fleet.train_fleet import train_fleet
from polyvera.train.recipe import Recipe
from polyvera.train.tenants import Tenant, TenantRows
from polyvera.train.trainer import train


@pytest.mark.parametrize("method", METHODS)
def test_a_member_equals_its_solo_run(folder: Path, method: str) -> None:
    result = fleet(folder, method=method, max_steps=50)
    assert [outcome.status for outcome in result.outcomes] == [FINISHED] * 5
    for outcome in result.outcomes[::2]:
        alone = solo(folder / f"{outcome.name}.jsonl", method=method, max_steps=50)
        assert apart(outcome, alone) < 1e-4
        assert outcome.num_steps == alone.num_steps == 50
        assert outcome.train_loss == pytest.approx(alone.scores["train_loss"], rel=1e-4)


CHOICES: dict[str, dict[str, Any]] = {
    "a hash": {"hash_size": 40, "accumulate": 2, "clip": 0.01},
    "a hash, the best": {"hash_size": 40, "validation": 0.2, "eval_every": 2, "lr": 0.1},
    "epochs, so that each tenant has steps of its own": {"max_steps": None, "epochs": 3},
    "accumulated batches": {"accumulate": 3},
    "a cosine, warm-up, decay and a tight clip": {
        "schedule": "cosine",
        "warmup": 0.3,
        "weight_decay": 0.1,
        "clip": 0.05,
    },
    "rows of like length": {"group_by_length": True},
    "another order": {"run_seed": 7},
    "checkpointed activations": {"gradient_checkpointing": True},
    "validation and its best numbers": {"validation": 0.3, "eval_every": 2, "lr": 0.3},
    "early stopping": {"validation": 0.3, "eval_every": 1, "early_stopping": 2, "lr": 1.0, "max_steps": 40},
    "one slot": {"slots": 1},
    "a row a batch": {"batch_tokens": 1},
}


@pytest.mark.parametrize("case", CHOICES)
def test_every_choice_holds_for_a_member_as_for_a_solo_run(folder: Path, case: str) -> None:
    choices = {k: v for k, v in {**SETTINGS, **CHOICES[case]}.items() if v is not None}
    alone_choices = {k: v for k, v in choices.items() if k not in ("slots", "batch_tokens")}
    recipe = Recipe(**{"slots": 3, "batch_tokens": 60, **choices, "data": str(folder), "fleet": True})
    result = train_fleet(recipe, base=Base(make_model(), make_tokenizer()))
    for outcome in result.outcomes[1::2]:
        path = folder / f"{outcome.name}.jsonl"
        alone = train(
            Recipe(**alone_choices, data=str(path)), base=Base(make_model(), make_tokenizer()), progress=False
        )
        assert outcome.num_steps == alone.num_steps
        assert apart(outcome, alone) < 1e-4
        if "validation" in choices:
            assert outcome.eval_loss == pytest.approx(alone.scores["eval_loss"], rel=1e-4)


def test_members_with_heads_equal_their_solo_runs(tmp_path: Path) -> None:
    """Each tenant has its own head, and its own names for the classes."""
    for k, names in enumerate([("even", "odd"), ("no", "yes")]):
        rows = [{"text": f"w{(i + k) % 7} w{20 + i % 5}", "label": names[i % 2]} for i in range(11)]
        (tmp_path / f"t{k}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = fleet(tmp_path, base=Base(make_classifier(), make_tokenizer()), targets="default")
    for outcome in result.outcomes:
        alone = solo(
            tmp_path / f"{outcome.name}.jsonl", base=Base(make_classifier(), make_tokenizer()), targets="default"
        )
        assert apart(outcome, alone) < 1e-4
        assert outcome.adapter is not None and alone.adapter is not None
        assert outcome.adapter.labels == alone.adapter.labels
        assert outcome.adapter.layout.num_head_params > 0


def test_whole_texts_and_conversations_equal_their_solo_runs(tmp_path: Path) -> None:
    texts = [{"text": f"w{i} w{i + 1} w{i + 2}"} for i in range(6)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    (outcome,) = fleet(tmp_path).outcomes
    assert apart(outcome, solo(tmp_path / "texts.jsonl")) < 1e-4


def test_slots_that_are_absent_from_a_batch_do_not_move(folder: Path) -> None:
    """Neither decay nor old moments move a slot whose tenant has left."""
    seen: dict[str, torch.Tensor] = {}

    def watch(now: Fleet) -> None:
        busy = {member.slot for member in now.members}
        for index, slot in enumerate(now.bank.slots):
            if slot not in busy:
                key = str(slot)
                if key in seen:
                    assert torch.equal(now.bank.flat[index], seen[key])
                seen[key] = now.bank.flat[index].clone()

    result = fleet(folder, watch, max_steps=None, epochs=1, slots=5, weight_decay=0.5)
    assert len({outcome.num_steps for outcome in result.outcomes}) == 5
    assert seen


def test_a_bank_of_few_slots_trains_any_number_of_tenants(folder: Path) -> None:
    most = 0

    def watch(now: Fleet) -> None:
        nonlocal most
        most = max(most, len(now.members))

    result = fleet(folder, watch, slots=2)
    assert most == 2 and len(result.of(FINISHED)) == 5
    assert 0 <= result.traffic.padding_share < 0.5 and result.traffic.tokens > 0


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no rows"),
    "columns": (b'{"question": "w1", "reply": "w2"}\n', "question, reply"),
    "encoding": (b'{"prompt": "\xff\xfe", "completion": "w1"}\n', "not UTF-8"),
    "broken": (b'{"prompt": "w1", "completion"\n', "not valid JSON"),
    "long": (json.dumps({"prompt": "w1", "completion": "w2 " * 600}).encode() + b"\n", "longer than"),
    "half-emoji": (b'{"prompt": "w1 \\ud83d", "completion": "w2"}\n', "row 1: prompt is not valid Unicode"),
    "deep": (b'{"meta": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "row 1: it is nested too deeply"),
    "other-task": (b'{"text": "w1", "label": "a"}\n{"text": "w2", "label": "b"}\n' * 2, "holds label rows"),
}


def test_bad_data_of_one_tenant_harms_no_other(folder: Path) -> None:
    for name, (data, _) in BAD.items():
        (folder / f"{name}.jsonl").write_bytes(data)
    result = fleet(folder)
    found = {outcome.name: outcome for outcome in result.outcomes}
    assert {name for name, outcome in found.items() if outcome.status == SKIPPED} == set(BAD)
    for name, (_, words) in BAD.items():
        assert words in found[name].problem and name in found[name].problem
    assert apart(found["t3"], solo(folder / "t3.jsonl")) < 1e-4


def test_a_fleet_of_nothing_but_bad_data_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    (outcome,) = fleet(tmp_path).outcomes
    assert outcome.status == SKIPPED and "no rows" in outcome.problem


def test_a_loss_that_is_no_number_takes_only_its_tenant_out(folder: Path) -> None:
    def spoil(now: Fleet) -> None:
        if now.traffic.rounds == 3:
            member = next(m for m in now.members if m.name == "t1")
            with torch.no_grad():
                now.bank.flat[now.bank.slots.index(member.slot)] = float("nan")

    result = fleet(folder, spoil)
    found = {outcome.name: outcome for outcome in result.outcomes}
    assert found["t1"].status == QUARANTINED and "step 4" in found["t1"].problem and found["t1"].adapter is None
    assert len(result.of(FINISHED)) == 4
    for name in ("t0", "t2"):  # in the same batches as the spoilt one
        assert apart(found[name], solo(folder / f"{name}.jsonl")) < 1e-4


@pytest.mark.parametrize("lr", [1e30, 1e39])  # the second is no finite number in fp32
def test_numbers_that_the_last_step_broke_are_not_published(folder: Path, tmp_path: Path, lr: float) -> None:
    result = fleet(folder, max_steps=1, lr=lr, store=str(tmp_path / "store"), name="f")
    assert {outcome.status for outcome in result.outcomes} == {QUARANTINED}
    assert f"at a lower lr than {lr:g}" in result.outcomes[0].problem


@pytest.mark.parametrize("where", ["training", "validation"])
def test_a_tenant_whose_rows_raise_in_a_mixed_batch_harms_no_other(tmp_path: Path, where: str) -> None:
    def refusing() -> Base:
        """A model that breaks on one token, as a kernel may on one shape."""

        def check(module: Any, given: tuple[torch.Tensor]) -> None:
            if banks_of(model) and (given[0] == WORDS.index("w38")).any():
                raise RuntimeError("a kernel has failed")

        model = make_model()
        model.model.embed_tokens.register_forward_pre_hook(check)
        return Base(model, make_tokenizer())

    bad = {"prompt": "w1 w38", "completion": "w2"}
    for part in ("training", "validation"):
        (tmp_path / part).mkdir()
        for name in ("good", "zbad"):
            rows = counting_rows(8) + [bad] * (name == "zbad" and part == where)
            (tmp_path / part / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    choices = {**SETTINGS, "max_steps": 6, "eval_every": 2, "fleet": True}
    recipe = Recipe(**{**choices, "data": str(tmp_path / "training"), "validation": str(tmp_path / "validation")})
    good, broken = sorted(train_fleet(recipe, base=refusing()).outcomes, key=lambda outcome: outcome.name)
    assert (good.status, broken.status) == (FINISHED, QUARANTINED)
    assert "RuntimeError: a kernel has failed" in broken.problem
    for part in ("training", "validation"):
        (tmp_path / part / "zbad.jsonl").unlink()
    (alone,) = train_fleet(recipe, base=refusing()).outcomes
    torch.testing.assert_close(good.adapter.flat, alone.adapter.flat)  # type: ignore[union-attr]


def test_what_no_tenant_alone_raises_ends_the_fleet(folder: Path) -> None:
    def full(module: Any, given: tuple[torch.Tensor]) -> None:
        if banks_of(model) and len(given[0]) > 4:
            raise MemoryError("too many rows")

    model = make_model()
    model.model.embed_tokens.register_forward_pre_hook(full)
    with pytest.raises(MemoryError, match="too many rows"):
        fleet(folder, base=Base(model, make_tokenizer()), batch_size=2, batch_tokens=1000)


def test_adapters_land_in_the_store_as_they_are_finished(folder: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "store")
    result = fleet(folder, registry=registry, name="team")
    assert {str(ref) for ref in registry.list()} == {f"team/t{k}@1" for k in range(5)}
    assert all(outcome.reference == f"team/{outcome.name}@1" for outcome in result.outcomes)
    model = make_model()
    load(model, [registry.get(ref) for ref in registry.list()])


def test_a_name_that_no_store_takes_is_reported(folder: Path, tmp_path: Path) -> None:
    (folder / "bad name.jsonl").write_text((folder / "t0.jsonl").read_text())
    result = fleet(folder, registry=Registry(tmp_path / "store"))
    assert "bad name" in next(o.problem for o in result.outcomes if o.status == SKIPPED)


def test_every_member_starts_from_the_adapter_given(folder: Path) -> None:
    first = solo(folder / "t0.jsonl").adapter
    assert first is not None
    result = fleet(folder, start=first, max_steps=1, lr=1e-9)
    for outcome in result.outcomes:
        assert outcome.adapter is not None
        assert torch.allclose(outcome.adapter.flat, first.flat, atol=1e-6)
    with pytest.raises(RecipeError, match="has rank 4, .* and this run rank 5"):
        fleet(folder, start=first, rank=5)


def test_a_common_file_with_a_column_for_the_tenant(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"adapter": name, **json.loads(line)}
        for name in ("t0", "t1")
        for line in (folder / f"{name}.jsonl").read_text().splitlines()
    ]
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["prompt"])))
    names = [outcome.name for outcome in fleet(path).outcomes]
    assert sorted(names) == ["t0", "t1"]


def test_tenants_can_be_given_in_memory() -> None:
    rows = tuple(enumerate(counting_rows(6), 1))
    recipe = Recipe(**SETTINGS, data="memory", fleet=True)
    result = train_fleet(
        recipe, everyone=[Tenant("a", TenantRows("a", rows))], base=Base(make_model(), make_tokenizer())
    )
    assert [outcome.status for outcome in result.outcomes] == [FINISHED]


def test_memory_of_a_tenant_is_what_adam_needs() -> None:
    """A slot, its gradient and two moments: 16 bytes a trained number, and nothing beside them."""
    model = make_model()
    bank = inject(model, AdapterSpec(rank=4), 4)
    optimizer = SlotAdamW(bank, Recipe(**SETTINGS, data="memory"))
    optimizer.step([0, 2], [1.0, 1.0], optimizer.norms().tolist()[:2])
    kept = {"flat": bank.flat, **{k: t for k, t in vars(optimizer).items() if isinstance(t, torch.Tensor)}}
    assert sum(t.untyped_storage().nbytes() for t in kept.values()) == 16 * 4 * bank.layout.num_params


def test_the_base_is_bare_again(folder: Path, tmp_path: Path) -> None:
    base = Base(make_model(), make_tokenizer())
    before: Callable[[], Any] = make_model().state_dict
    fleet(folder, base=base)
    assert all(torch.equal(base.model.state_dict()[k], v) for k, v in before().items())
