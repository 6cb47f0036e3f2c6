"""Adapters are read beside the steps, each once at a time; what goes wrong comes back as an error."""

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from tiny_serve import LONGEST_WAIT, make_adapter, make_llama, publish, until

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.fingerprint import fingerprint
from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.adapter_loader import AdapterLoader, LoadedAdapter, key_of
from polyvera.errors import FingerprintError, LayoutError, NotFoundError, StoreError
from polyvera.model.answer import OF_TEXT, Meaning
from polyvera.model.task import LABEL
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry

Store = tuple[Registry, list[AdapterRef]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    model = make_llama()
    specs = [AdapterSpec(rank=2), AdapterSpec(rank=2, magnitude=True)]
    return publish(tmp_path_factory.mktemp("store"), [make_adapter(model, spec, 1) for spec in specs])


@pytest.fixture
def make(store: Store) -> Iterator[Callable[..., AdapterLoader]]:
    made: list[AdapterLoader] = []

    def one(registry: Registry | None = store[0], base: str = "", **given: Any) -> AdapterLoader:
        ways = {
            "check": lambda ref, adapter: (adapter, Meaning(LABEL, ("a", "b"))),
            "observe": lambda name, seconds: None,
            "wake": lambda: None,
        }
        made.append(AdapterLoader(registry, base or fingerprint(make_llama()), **{**ways, **given}))
        return made[-1]

    yield one
    for loader in made:
        loader.close()


def ended(loader: AdapterLoader, num: int = 1) -> list[Any]:
    found: list[Any] = []
    until(lambda: found.extend(loader.finished()) or len(found) >= num)
    return found


def test_a_load_is_checked_timed_and_announced(store: Store, make: Any) -> None:
    seen, woken = [], Event()
    loader = make(observe=lambda name, seconds: seen.append((name, seconds)), wake=woken.set)
    loader.load(store[1][0])
    ((ref, loaded),) = ended(loader)
    assert ref == store[1][0] and isinstance(loaded, LoadedAdapter) and loaded.meaning == Meaning(LABEL, ("a", "b"))
    assert not loaded.needs_norms and loaded.num_bytes == loaded.adapter.flat.nbytes and loaded.basis is not None
    assert woken.wait(LONGEST_WAIT) and seen[0][0] == "load_s" and seen[0][1] > 0


def test_magnitudes_need_norms(store: Store, make: Any) -> None:
    loader = make()
    loader.load(store[1][1])
    ((_, loaded),) = ended(loader)
    assert isinstance(loaded, LoadedAdapter) and loaded.needs_norms


def test_an_adapter_is_loaded_once_at_a_time_and_waited_for_briefly(store: Store, make: Any) -> None:
    gate, started = Event(), []

    def slow(ref: AdapterRef, adapter: Adapter) -> tuple[Adapter, Meaning]:
        started.append(ref)
        gate.wait(LONGEST_WAIT)
        return adapter, OF_TEXT

    loader = make(check=slow)
    for _ in range(5):
        loader.load(store[1][0])
    until(lambda: started)
    assert loader.wait_briefly() == [] and loader.finished() == []
    gate.set()
    assert len(ended(loader)) == len(started) == 1
    loader.load(store[1][0])
    assert len(ended(loader)) == 1 and len(started) == 2


def refuse(ref: AdapterRef, adapter: Adapter) -> tuple[str, ...]:
    raise LayoutError("not here")


def crash(ref: AdapterRef, adapter: Adapter) -> tuple[str, ...]:
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"registry": None}, StoreError),
        ({"base": "0" * 16 + "-" + "1" * 16}, FingerprintError),
        ({"check": refuse}, LayoutError),
        ({"check": crash}, StoreError),
    ],
    ids=["no store", "another base", "a layout", "an error that nobody raised on purpose"],
)
def test_what_goes_wrong_comes_back(store: Store, make: Any, given: dict[str, Any], error: type[Exception]) -> None:
    loader = make(**given)
    loader.load(store[1][0])
    ((ref, found),) = ended(loader)
    assert ref == store[1][0] and type(found) is error


def test_what_is_not_there_comes_back_and_a_closed_loader_reads_no_more(store: Store, make: Any) -> None:
    loader = make()
    loader.load(AdapterRef("team/none", 1, "", 0))
    assert isinstance(ended(loader)[0][1], NotFoundError)
    loader.close()
    loader.load(store[1][0])
    assert loader.finished() == [] and loader.wait_briefly() == []


def test_a_key_is_a_name_and_a_version(tmp_path: Path) -> None:
    assert key_of(AdapterRef("a/b", 3, str(tmp_path), 9)) == ("a/b", 3)
