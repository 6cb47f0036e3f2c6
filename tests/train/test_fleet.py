"""A fleet member is what its tenant's rows alone would have given, whoever else is in the batch."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import counting_rows, make_classifier, make_model, make_tokenizer

from polyvera.adapter.inject import inject, load
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import LayoutError, RecipeError
from polyvera.store.registry import Registry
from polyvera.train.fleet import Fleet, FleetResult, train_fleet
from polyvera.train.ledger import FINISHED, QUARANTINED, SKIPPED, Outcome
from polyvera.train.member import SlotWeights
from polyvera.train.model import Base
from polyvera.train.recipe import Recipe
from polyvera.train.tenant import Source, Tenant
from polyvera.train.trainer import TrainResult, train

SETTINGS: dict[str, Any] = {"model": "tiny", "rank": 4, "batch_size": 2, "max_steps": 12, "targets": "all-linear"}
SHARED = next(name for name, row in METHODS.items() if row.shares_basis)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five tenants of unequal size, each with rows of its own."""
    place = tmp_path / "tenants"
    place.mkdir()
    for k in range(5):
        rows = counting_rows(9 + 3 * k)
        (place / f"t{k}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[k:] + rows[:k]))
    return place


def fleet(place: Path, watch: Any = lambda fleet: None, base: Base | None = None, **choices: Any) -> FleetResult:
    own = {"registry", "prefix", "start", "resume"} & set(choices)
    given = {name: choices.pop(name) for name in own}
    settings = {**SETTINGS, "data": str(place), "fleet": True, "slots": 3, "batch_tokens": 60, **choices}
    recipe = Recipe(**{name: value for name, value in settings.items() if value is not None})
    return train_fleet(recipe, base=base or Base(make_model(), make_tokenizer()), watch=watch, **given)


def solo(path: Path, base: Base | None = None, **choices: Any) -> TrainResult:
    recipe = Recipe(**{**SETTINGS, "data": str(path), **choices})
    return train(recipe, base=base or Base(make_model(), make_tokenizer()), progress=False)


def apart(outcome: Outcome, alone: TrainResult) -> float:
    """The relative difference of the trained numbers."""
    assert outcome.adapter is not None and alone.adapter is not None
    one, other = outcome.adapter.flat, alone.adapter.flat
    return float((one - other).norm() / other.norm())


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
    "encoding": (b'{"prompt": "\xff\xfe", "completion": "w1"}\n', "no UTF-8"),
    "broken": (b'{"prompt": "w1", "completion"\n', "no JSON"),
    "long": (json.dumps({"prompt": "w1", "completion": "w2 " * 600}).encode() + b"\n", "longer than"),
    "other-kind": (b'{"text": "w1 w2"}\n', "holds text rows"),
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


def test_adapters_land_in_the_store_as_they_are_finished(folder: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "store")
    result = fleet(folder, registry=registry, prefix="team/")
    assert {str(ref) for ref in registry.list()} == {f"team/t{k}@1" for k in range(5)}
    assert all(outcome.reference == f"team/{outcome.name}@1" for outcome in result.outcomes)
    model = make_model()
    load(model, [registry.get(ref) for ref in registry.list()])


def test_a_name_that_no_store_takes_is_reported(folder: Path, tmp_path: Path) -> None:
    (folder / "bad name.jsonl").write_text((folder / "t0.jsonl").read_text())
    result = fleet(folder, registry=Registry(tmp_path / "store"))
    assert "bad name" in next(o.problem for o in result.outcomes if o.status == SKIPPED)


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_fleet
from polyvera.store.registry import Registry
def kill(now):
    if now.traffic.rounds == {rounds}:
        os.kill(os.getpid(), signal.SIGKILL)
test_fleet.fleet(Path({data!r}), kill, registry=Registry({store!r}), output={output!r}, save_every=4, **{choices!r})
"""


@pytest.mark.parametrize("method", [SHARED, next(name for name in METHODS if name != SHARED)])
def test_a_fleet_killed_in_the_middle_ends_as_if_it_had_not_been(folder: Path, tmp_path: Path, method: str) -> None:
    choices = {"method": method, "validation": 0.3, "eval_every": 3, "max_steps": 10}
    store, output = str(tmp_path / "store"), str(tmp_path / "run")
    own = str(Path(__file__).parent)
    script = SCRIPT.format(tests=own, rounds=15, data=str(folder), store=store, output=output, choices=choices)
    done = subprocess.run([sys.executable, "-c", script], check=False, cwd=own, env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    registry = Registry(store)
    before = {str(ref) for ref in registry.list()}
    assert before == {"t0@1", "t1@1", "t2@1"}
    with pytest.raises(RecipeError, match="resume it"):
        fleet(folder, registry=registry, output=output, save_every=4, **choices)
    with pytest.raises(RecipeError, match="another recipe.*lr was"):
        fleet(folder, registry=registry, output=output, save_every=4, resume=True, lr=0.5, **choices)
    result = fleet(folder, registry=registry, output=output, save_every=4, resume=True, **choices)
    assert {str(ref) for ref in registry.list()} == {f"t{k}@1" for k in range(5)}
    assert len(result.of(FINISHED)) == 5
    whole = fleet(folder, **choices)
    for outcome in whole.outcomes:
        assert outcome.adapter is not None
        assert torch.equal(registry.get(outcome.name).flat, outcome.adapter.flat)


def test_a_kill_between_publishing_and_the_record_publishes_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyvera.train.ledger import Ledger

    registry, output = Registry(tmp_path / "store"), str(tmp_path / "run")

    def cut(self: Ledger, outcome: Outcome) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Ledger, "_append", cut)
        fleet(folder, registry=registry, output=output)
    assert len(registry.list()) == 1
    fleet(folder, registry=registry, output=output, resume=True)
    assert {str(ref) for ref in registry.list()} == {f"t{k}@1" for k in range(5)}


def test_rows_that_changed_are_not_resumed(folder: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "run")

    def cut(now: Fleet) -> None:
        if now.traffic.rounds == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fleet(folder, cut, output=output, save_every=2)
    (folder / "t0.jsonl").write_text((folder / "t4.jsonl").read_text())
    result = fleet(folder, output=output, save_every=2, resume=True)
    changed = next(outcome for outcome in result.outcomes if outcome.name == "t0")
    assert changed.status == SKIPPED and "changed" in changed.problem
    assert len(result.of(FINISHED)) == 4


def test_every_member_starts_from_the_adapter_given(folder: Path) -> None:
    first = solo(folder / "t0.jsonl").adapter
    assert first is not None
    result = fleet(folder, start=first, max_steps=1, lr=1e-9)
    for outcome in result.outcomes:
        assert outcome.adapter is not None
        assert torch.allclose(outcome.adapter.flat, first.flat, atol=1e-6)
    with pytest.raises(LayoutError):
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
    result = train_fleet(recipe, everyone=[Tenant("a", Source("a", rows))], base=Base(make_model(), make_tokenizer()))
    assert [outcome.status for outcome in result.outcomes] == [FINISHED]


def test_memory_of_a_tenant_is_what_adam_needs() -> None:
    """A slot, its gradient and two moments: 16 bytes a trained number, and nothing beside them."""
    model = make_model()
    bank = inject(model, AdapterSpec(rank=4), 4)
    grads = bank.gradients()
    weights = SlotWeights.of(bank, 0, grads)
    optimizer = weights.optimizer(Recipe(**SETTINGS, data="memory"))
    optimizer.step()
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for w in weights.all for t in (w, w.grad)}
    moments = [t for state in optimizer.state.values() for t in state.values() if t.dim() > 0]
    assert sum(kept.values()) == 2 * 4 * bank.flat.numel()  # slots and gradients, of all four
    assert sum(4 * t.numel() for t in moments) == 8 * bank.layout.num_params


def test_the_base_is_bare_again(folder: Path, tmp_path: Path) -> None:
    base = Base(make_model(), make_tokenizer())
    before: Callable[[], Any] = make_model().state_dict
    fleet(folder, base=base)
    assert all(torch.equal(base.model.state_dict()[k], v) for k, v in before().items())
