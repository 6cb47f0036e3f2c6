"""The cells of one family: each way that a model goes, and whether that gives what it should, or is refused."""

from __future__ import annotations

import copy
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from family import BY_ROW, EQUAL, EXPERTS, METHODS, DifferentError, Family, close, output_of
from family_rows import SORTS
from peft import PeftModel
from torch import Tensor

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import eject, extract, inject, load
from polyvera.adapter.layer_use import gets_chosen_tokens
from polyvera.adapter.merge import merge
from polyvera.adapter.route import route
from polyvera.adapter.targets import find_sites
from polyvera.engine.factory import engine_for
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import SamplingParams
from polyvera.engine.generation.row_runner import RowForward
from polyvera.engine.limits import Limits
from polyvera.errors import PolyveraError
from polyvera.model.config import end_tokens
from polyvera.model.load import Base, load_base
from polyvera.model.shapes import model_shapes
from polyvera.model.task import LABEL
from polyvera.store.peft import export_peft, import_peft
from polyvera.store.registry import Registry
from polyvera.train.trainer import TrainResult, train


def plan(family: Family, method: str, targets: str) -> None:
    spec = family.spec(method, targets)
    shapes = model_shapes(
        str(family.base), spec, kind="classification" if SORTS[family.row.sort].task == LABEL else None
    )
    if dict(shapes.sites) != find_sites(family.model, spec):
        raise DifferentError("plan counts other layers than are trained")


def trains(family: Family, method: str, targets: str) -> None:
    if not family.verbs:
        return _trains_by_hand(family, method, targets)
    result = train(family.recipe(method, targets), base=family.load(), progress=False)
    try:
        _check_published(family, result, method, targets)
    except PolyveraError as error:
        raise DifferentError(f"published, and then {error}") from error


def _check_published(family: Family, result: TrainResult, method: str, targets: str) -> None:
    """What was trained is whole, and answers the same in a freshly loaded base."""
    assert result.adapter is not None
    _check_trained(result.adapter)
    fresh = family.load().model
    [slot] = load(fresh, Registry(family.folder / targets).get(f"t/{method}"))
    [own] = load(result.base.model, result.adapter)
    with torch.no_grad():
        with route(slot):
            found = output_of(fresh, family.inputs)
        with route(own):
            expected = output_of(result.base.model, family.inputs)
    if not torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max())):
        raise DifferentError("the stored adapter answers otherwise in a freshly loaded base")


def _trains_by_hand(family: Family, method: str, targets: str) -> None:
    model = family.model
    bank = inject(model, family.spec(method, targets))
    try:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            output_of(model, family.inputs).square().mean().backward()
            optimizer.step()
        adapter = extract(bank, bank.first, model)
    finally:
        eject(model)
    _check_trained(adapter)
    ref = Registry(family.folder / targets).put(f"t/{method}", adapter)
    again = Registry(family.folder / targets).get(ref)
    if not torch.equal(again.flat, adapter.flat):
        raise DifferentError("the store gives other numbers back")


def _check_trained(adapter: Adapter) -> None:
    letter = "b" if "b" in adapter.layout.method.trained else "B"
    names = [site.name for site in adapter.layout.sites]
    sites = [name for name in names if not gets_chosen_tokens(name)]  # some get none in 3 steps
    dead = [name for name in sites if not bool(adapter.tensors[f"{name}.{letter}"].any())]
    if dead:
        raise DifferentError(f"{len(dead)} of {len(adapter.layout.sites)} layers were never trained, {dead[0]}")


def mixed(family: Family, method: str, targets: str) -> None:
    model, given = family.model, family.inputs
    one, other = family.strong(method, targets, 5), family.strong(method, targets, 6)
    slots = [*load(model, [one, other]), 0]
    try:
        with torch.no_grad():
            with route(slots):
                found = output_of(model, given)
            for i, slot in enumerate(slots):
                with route(slot):
                    close(found[i], output_of(model, {k: v[i : i + 1] for k, v in given.items()})[0])
    finally:
        eject(model)


def merges(family: Family, method: str, targets: str) -> None:
    adapter = family.strong(method, targets)
    expected = family.adapted(adapter)
    with torch.no_grad():
        plain = output_of(family.model, family.inputs)
    if torch.allclose(plain, expected, rtol=1e-3):
        raise DifferentError("a strong adapter changes nothing")
    whole = copy.deepcopy(family.model)
    [slot] = load(whole, adapter)
    with torch.no_grad():
        close(output_of(merge(whole, slot), family.inputs), expected)


def peft(family: Family, method: str, targets: str) -> None:
    adapter = family.strong(method, targets)
    expected, folder = family.adapted(adapter), family.folder / "peft"
    shutil.rmtree(folder, ignore_errors=True)
    export_peft(adapter, folder)
    again = import_peft(folder, family.model)
    close(family.adapted(again), expected)
    theirs = PeftModel.from_pretrained(copy.deepcopy(family.model), str(folder)).eval()
    with torch.no_grad():
        close(output_of(theirs, family.inputs), expected)


def serves(family: Family, method: str, targets: str) -> str:
    """Two rows of very different length side by side, the base's and the adapter's."""
    if not family.verbs:
        with engine_for(load_base(str(family.base), task="auto")):
            pass
    base = family.load()
    adapter = family.strong(method, targets)
    registry = Registry(family.folder / "served")
    ref = registry.put(f"{method}/{targets}", adapter)
    rows = [[7, 8, 9], [10 + i % 30 for i in range(40)]]
    limits = Limits(max_rows=4, num_slots=4, chunk=32)
    with engine_for(base, registry, limits) as engine:
        how = BY_ROW if isinstance(getattr(engine._parts.workload, "_forward", None), RowForward) else EQUAL
        if isinstance(engine, Generator):
            params = SamplingParams(max_tokens=6, min_tokens=6)
            asked = [engine.answer(row, who, params) for row in rows for who in (ref, None)]
            found = [one.result(60).ids for one in asked]
        else:
            asked = [engine.embed([row], who) for row in rows for who in (ref, None)]
            vectors = [one.result(60)[0] for one in asked]
    expected = [(row, who) for row in rows for who in (adapter, None)]
    if isinstance(engine, Generator):
        for (row, who), ids in zip(expected, found, strict=True):
            alone = _generated(base, row, who)
            if ids != alone:
                raise DifferentError(f"{len(row)} tokens: {ids}, and {alone} alone")
    else:
        for (row, who), vector in zip(expected, vectors, strict=True):
            close(vector, _vector(base.model, row, who))
    return how


def _generated(base: Base, row: list[int], adapter: Adapter | None) -> list[int]:
    model: Any = base.model
    if adapter is not None:
        load(model, adapter)
    try:
        ids, ends = torch.tensor([row]), sorted(end_tokens(model, base.tokenizer))
        given = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "eos_token_id": ends}
        # Without a cache, since Moshi's in transformers forgets what its attention would see.
        given["use_cache"] = False
        with torch.inference_mode():
            return model.generate(ids, attention_mask=torch.ones_like(ids), **given)[0, len(row) :].tolist()
    finally:
        eject(model)


def _vector(model: Any, row: list[int], adapter: Adapter | None) -> Tensor:
    if adapter is not None:
        load(model, adapter)
    try:
        with torch.inference_mode():
            hidden = model.base_model(input_ids=torch.tensor([row]))[0][0]
        return torch.nn.functional.normalize(hidden.mean(0), dim=0)
    finally:
        eject(model)


CELLS: dict[str, Callable[[Family, str, str], str | None]] = {
    "plan": plan,
    "train, store, load": trains,
    "mixed batch": mixed,
    "merge": merges,
    "PEFT": peft,
    "engine": serves,
}
# What doesn't depend on the method, or takes long, goes with some of them.
ONLY = {
    ("engine", "default"): ("vera",),
    ("engine", "all-linear"): ("lora",),
    ("plan", "default"): ("vera",),
    ("plan", "all-linear"): ("vera",),
    ("train, store, load", "default"): ("vera",),
    ("train, store, load", "all-linear"): ("lora", "dvora"),
    ("engine", EXPERTS): ("vera",),
    ("plan", EXPERTS): ("vera",),
    ("train, store, load", EXPERTS): ("vera",),
    ("mixed batch", EXPERTS): ("vera", "lora"),
}


def cells_of(family: Family) -> Iterator[tuple[str, str, str, str]]:
    """(cell, targets, method, what came of it)."""
    for name, cell in CELLS.items():
        for targets in family.targets:
            for method in ONLY.get((name, targets), METHODS):
                yield name, targets, method, outcome(cell, family, method, targets)


def outcome(cell: Callable[[Family, str, str], str | None], family: Family, method: str, targets: str) -> str:
    """'equal', or how it is equal, 'refused: the reason', or 'failed: ...'."""
    try:
        return cell(family, method, targets) or EQUAL
    except PolyveraError as error:
        return f"refused: {' '.join(str(error).split())}"
    except Exception as error:
        where = next(
            (f"{Path(f.filename).name}:{f.lineno}" for f in reversed(traceback.extract_tb(error.__traceback__))), ""
        )
        return f"failed: {type(error).__name__} {' '.join(str(error).split())[:200]} ({where})"
