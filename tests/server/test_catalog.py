"""Names within a caller's scope, and what is told of them."""

from pathlib import Path

import pytest
from tiny_server import make_base, some_adapters

from polyvera.errors import AccessError, NotFoundError
from polyvera.server.api_keys import EVERYONE, Caller
from polyvera.server.catalog import Catalog
from polyvera.store.registry import Registry

ACME = Caller("acme", ("acme/*",), base=False, admin=False)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    registry = Registry(tmp_path_factory.mktemp("store"))
    for name, adapter in some_adapters(make_base()).items():
        registry.put(name, adapter, alias="prod")
    return Catalog(registry, "tiny")


@pytest.mark.parametrize("model", ["base", "tiny"])
def test_the_base_needs_a_right(catalog: Catalog, model: str) -> None:
    assert catalog.resolve(EVERYONE, model) is None
    with pytest.raises(AccessError, match="not the bare base model"):
        catalog.resolve(ACME, model)


@pytest.mark.parametrize("model", ["acme/one", "acme/one@1", "acme/one@prod", "base:acme/one", "tiny:acme/one@1"])
def test_an_adapter_has_many_names(catalog: Catalog, model: str) -> None:
    for caller in (EVERYONE, ACME):
        assert str(catalog.resolve(caller, model)) == "acme/one@1"


@pytest.mark.parametrize("model", ["globex/secret", "globex/nothing", "globex/secret@prod", "../x", "", "acme/none"])
def test_what_is_out_of_scope_reads_like_what_is_not_there(catalog: Catalog, model: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        catalog.resolve(ACME, model)
    assert str(caught.value) == f"The model {model!r} does not exist or you do not have access to it."


def test_a_missing_version_of_a_known_name_says_so(catalog: Catalog) -> None:
    with pytest.raises(NotFoundError, match=r"does not exist or you do not have access to it\. \("):
        catalog.resolve(ACME, "acme/one@9")


@pytest.mark.parametrize("model", ["acme/gone", "acme/gone@1", "acme/gone@prod", "acme/gone@9"])
def test_a_name_whose_versions_are_all_removed_tells_of_no_other(model: str, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for name, adapter in {"acme/gone": None, **some_adapters(make_base())}.items():
        registry.put(name, adapter or some_adapters(make_base())["acme/one"])
    registry.alias("acme/gone", "prod", 1)
    registry.remove("acme/gone@1", with_aliases=True)
    with pytest.raises(NotFoundError) as caught:
        Catalog(registry, "tiny").find(ACME, model)
    assert "globex" not in str(caught.value) and str(tmp_path) not in str(caught.value)
    assert str(caught.value).startswith(f"The model {model!r} does not exist or you do not have access to it.")


def test_a_name_out_of_service_is_not_there_until_it_is_opened(catalog: Catalog) -> None:
    catalog.close("acme/two")
    assert [ref.name for ref in catalog.names(ACME)] == ["acme/one"]
    with pytest.raises(NotFoundError):
        catalog.find(ACME, "acme/two")
    catalog.open("acme/two")
    assert [ref.name for ref in catalog.names(ACME)] == ["acme/one", "acme/two"]
    assert [ref.name for ref in catalog.names(EVERYONE, "globex")] == ["globex/secret"]


def test_facts_are_read_once_and_a_damaged_file_has_none(catalog: Catalog, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    ref = registry.put("a/b", some_adapters(make_base())["acme/one"])
    other = Catalog(registry, "tiny")
    facts = other.facts(ref)
    assert facts is not None and facts.rank == 4 and facts.created_s > 0
    assert other.told(ref)["aliases"] == {} and other.told(ref)["id"] == "a/b@1"
    Path(ref.path).write_bytes(b"damaged")
    new = Catalog(registry, "tiny")
    assert other.facts(ref) is facts and new.facts(ref) is None
    assert new.told(ref)["damaged"] is True and new.told(ref)["servable"] is False


def test_without_a_store_there_are_no_adapters() -> None:
    empty = Catalog(None, "tiny")
    assert empty.resolve(EVERYONE, "tiny") is None and list(empty.names(EVERYONE)) == []
    with pytest.raises(NotFoundError):
        empty.find(EVERYONE, "acme/one")
