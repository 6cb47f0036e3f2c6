"""A header that was changed by hand, under true sums, is refused as what it is, and costs no more than its bytes."""

import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drawn_adapters import drawn
from forged_files import forged, header_of

from polyvera.errors import FormatError
from polyvera.store.file.codec import decode, encode
from polyvera.store.registry import Registry

METHODS = ("vera", "lora", "adalora", "dvora")
OTHERS: tuple[Any, ...] = (None, True, -1, 0, 1, 2**31, 2**62, 1e300, "", "x", "0" * 64, [], [1], {}, {"x": 1})
GONE = object()


def places(data: bytes) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every key of both lines, and of what is in the first."""
    _, kind, own = header_of(data)
    for key, value in kind.items():
        yield "kind", (key,)
        yield from (("kind", (key, inner)) for inner in (value if isinstance(value, dict) else ()))
        yield from (("kind", (key, 0, inner)) for inner in (value[0] if isinstance(value, list) else ()))  # type: ignore[misc]
    yield from (("own", (key,)) for key in own)


def changed(data: bytes, line: str, place: tuple[Any, ...], value: Any) -> bytes:
    def change(tree: Any, kind: Any, own: Any) -> None:
        at = {"kind": kind, "own": own}[line]
        for key in place[:-1]:
            at = at[key]
        if value is GONE:
            del at[place[-1]]
        else:
            at[place[-1]] = value

    return forged(data, change)


@pytest.mark.parametrize("method", METHODS)
def test_whatever_is_changed_nothing_but_a_format_error_comes_of_it(method: str) -> None:
    data = encode(drawn(method))
    num_refused = 0
    for line, place in places(data):
        for value in (GONE, *OTHERS):
            try:
                decode(changed(data, line, place, value))
            except FormatError as error:
                num_refused += 1
                assert str(error)
    assert num_refused > 100


@pytest.mark.parametrize(
    "keys", [("spec", "method"), ("basis", None), ("spec", None), ("sites", None), ("dtype", None)]
)
def test_what_is_missing_is_named(keys: tuple[str, str | None]) -> None:
    def change(tree: Any, kind: Any, own: Any) -> None:
        if keys[1] is None:
            del kind[keys[0]]
        else:
            del kind[keys[0]][keys[1]], kind["basis"]

    with pytest.raises(FormatError, match=keys[1] or keys[0]):
        decode(forged(encode(drawn("vera")), change))


def test_a_forged_file_hides_no_other(tmp_path: Path) -> None:
    def change(tree: Any, kind: Any, own: Any) -> None:
        del kind["spec"]["method"], kind["basis"]

    registry = Registry(tmp_path)
    registry.put("t/good", drawn("vera"))
    registry.put("t/bad", drawn("vera"))
    Path(registry.files.location("adapters/t/bad/2.safetensors")).write_bytes(forged(encode(drawn("vera")), change))
    assert [problem.path for problem in registry.verify()] == ["adapters/t/bad/2.safetensors"]
    assert [str(ref) for ref in registry.list()] == ["t/bad@1", "t/bad@2", "t/good@1"]


SITES: list[list[dict[str, Any]]] = [
    [{"name": "l{i}.*.q", "layers": "0-99998", "in": 8, "out": 8}],
    [{"name": "l{i}.*.q", "layers": ",".join(["0-999999999"] * 50), "in": 1, "out": 1}],
    [{"name": "l{i}.*." + str(j), "layers": "0-9999", "in": 1, "out": 1} for j in range(9)],
    [{"name": "l{i}.q", "in": 2**24, "out": 2**24}],
]


@pytest.mark.parametrize("sites", SITES, ids=range(len(SITES)))
@pytest.mark.parametrize("method", ["vera", "lora"])
def test_layers_that_the_data_cannot_hold_are_not_made(method: str, sites: list[dict[str, Any]]) -> None:
    good = encode(drawn(method))
    files = [
        forged(
            good, lambda tree, kind, own, i=i: kind.update(sites=[{**s, "name": s["name"].format(i=i)} for s in sites])
        )
        for i in range(20)
    ]
    begun = time.process_time()
    tracemalloc.start()
    for file in files:
        with pytest.raises(FormatError):
            decode(file)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2**20, "nothing is kept of what was refused"
    assert time.process_time() - begun < 20, "twenty files, of which one took seconds"


def test_a_basis_that_no_machine_would_draw_is_refused() -> None:
    def change(tree: Any, kind: Any, own: Any) -> None:
        kind["basis"].update(rank=2**14, in_max=2**24, out_max=2**24)
        kind["spec"].update(in_max=2**24, out_max=2**24)

    with pytest.raises(FormatError, match="a basis has at most"):
        decode(forged(encode(drawn("vera")), change))


def test_a_rank_that_differs_in_every_layer_is_read_in_time() -> None:
    pattern = {f"model.layers.{i}.q": 1 for i in range(20_000)}
    begun = time.process_time()
    with pytest.raises(FormatError):
        decode(forged(encode(drawn("lora")), lambda tree, kind, own: kind["spec"].update(rank_pattern=pattern)))
    assert time.process_time() - begun < 20
