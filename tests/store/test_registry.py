"""Laws of a registry, the same on a local folder, on memory:// and on S3."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import xxhash
from drawn_adapters import alike, drawn, with_given_basis, with_value

from polyvera.adapter.fingerprint import fingerprint
from polyvera.adapter.inject import add_bank, eject, extract, inject, load
from polyvera.adapter.method import METHODS
from polyvera.adapter.route import route
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import FingerprintError, FormatError, NotFoundError, ReferenceNameError, SlotError, StoreError
from polyvera.store.file.codec import decode, encode, read_header
from polyvera.store.file.stored_dtype import STORED_DTYPES
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry
from polyvera.store.stored_versions import StoredVersions

FIRST, *_ = METHODS
SHARED = next(name for name, row in METHODS.items() if row.shares_basis)


@pytest.fixture
def folder(tmp_path):
    return Registry(tmp_path / "registry")


# --- put, get, resolve ------------------------------------------------------------------------------------------------


def test_what_was_put_is_what_is_got(opened):
    for i, method in enumerate(METHODS):
        adapter = drawn(method, seed=i)
        ref = opened().put(f"team/{method}", adapter, alias="prod")
        assert (str(ref), ref.version, len(ref.digest)) == (f"team/{method}@1", 1, 64)
        for which in (ref, f"team/{method}", f"team/{method}@1", f"team/{method}@latest", f"team/{method}@prod"):
            assert alike(opened().get(which), adapter)
    assert opened().verify() == []


def test_versions_count_up_and_never_change(registry):
    adapters = [drawn(FIRST, seed=i) for i in range(3)]
    refs = [registry.put("a", adapter) for adapter in adapters]
    assert [ref.version for ref in refs] == [1, 2, 3]
    assert all(alike(registry.get(f"a@{i + 1}"), adapter) for i, adapter in enumerate(adapters))
    assert registry.resolve("a").version == registry.resolve("a@latest").version == 3
    assert registry.resolve("a@2").num_bytes == refs[1].num_bytes


@pytest.mark.parametrize("dtype", STORED_DTYPES)
def test_every_stored_dtype(registry, dtype):
    registry.put("a", drawn(FIRST), dtype=dtype)
    assert torch.equal(registry.get("a").flat, decode(encode(drawn(FIRST), dtype)).flat)
    header = registry.header("a")
    assert header.index.stored.name == dtype and header.own.base == drawn(FIRST).base


def test_an_empty_registry_is_empty(registry):
    assert registry.list() == []
    with pytest.raises(NotFoundError, match="there is no store"):
        registry.get("a")


def test_what_cannot_be_stored_leaves_no_trace(registry):
    bad = with_value(drawn(FIRST), next(iter(drawn(FIRST).layout.entries)), float("nan"))
    with pytest.raises(FormatError, match="NaN"):
        registry.put("a", bad)
    with pytest.raises(FormatError, match="must be one of"):
        registry.put("a", drawn(FIRST), dtype="int5")
    for name, alias in (("../a", None), ("a", "latest"), ("a", "7")):
        with pytest.raises(ReferenceNameError):
            registry.put(name, drawn(FIRST), alias=alias)
    assert registry.list() == []


def test_what_is_missing_is_told_with_its_neighbours(registry):
    for name in ("customer-a", "customer-b", "else"):
        registry.put(name, drawn(FIRST), alias="prod")
    with pytest.raises(NotFoundError, match=r"3 names, the nearest are customer-\w, customer"):
        registry.resolve("custmer-a")
    with pytest.raises(NotFoundError, match="versions 1"):
        registry.get("else@2")
    with pytest.raises(NotFoundError, match="the nearest are prod"):
        registry.resolve("else@prd")
    with pytest.raises(NotFoundError):
        registry.aliases("nothing")
    assert registry.aliases("else") == {"prod": 1}


# --- list -------------------------------------------------------------------------------------------------------------


def test_list_is_sorted_and_can_be_narrowed(registry):
    for name in ("b", "a/x", "a", "a/x", "ab/c/d", "a/x"):
        registry.put(name, drawn(FIRST), alias="prod")
    every = ["a@1", "a/x@1", "a/x@2", "a/x@3", "ab/c/d@1", "b@1"]
    assert list(map(str, registry.list())) == every
    assert list(map(str, registry.list("a/"))) == every[1:4]
    assert list(map(str, registry.list("a", latest=True))) == ["a@1", "a/x@3", "ab/c/d@1"]
    assert all(registry.resolve(str(ref)) == ref for ref in registry.list())


def test_more_than_nine_versions_are_in_number_order(registry):
    for _ in range(11):
        registry.put("a", drawn(FIRST))
    assert [ref.version for ref in registry.list()] == list(range(1, 12))
    assert registry.resolve("a").version == 11


# --- aliases and removal ----------------------------------------------------------------------------------------------


def test_an_alias_moves(registry):
    for _ in range(3):
        registry.put("a", drawn(FIRST), alias="canary")
    assert registry.alias("a", "prod", 1).version == 1
    assert registry.aliases("a") == {"canary": 3, "prod": 1}
    registry.alias("a", "prod", 2)
    assert registry.resolve("a@prod").version == 2
    with pytest.raises(NotFoundError):
        registry.alias("a", "prod", 9)
    registry.unalias("a", "prod")
    assert registry.aliases("a") == {"canary": 3}
    with pytest.raises(NotFoundError):
        registry.unalias("a", "prod")


def test_aliases_of_a_name_and_names_below_it_are_apart(registry):
    registry.put("a", drawn(FIRST), alias="b")
    registry.put("a/b", drawn(FIRST), alias="c")
    assert registry.aliases("a") == {"b": 1} and registry.aliases("a/b") == {"c": 1}


def test_a_removed_version_is_gone_and_its_number_with_it(registry):
    for _ in range(2):
        ref = registry.put("a", drawn(FIRST))
    registry.remove(ref)
    assert list(map(str, registry.list())) == ["a@1"] and registry.resolve("a").version == 1
    for which in ("a@2", ref):
        with pytest.raises(NotFoundError, match="was removed"):
            registry.get(which)
    with pytest.raises(NotFoundError):
        registry.remove("a@2")
    assert registry.put("a", drawn(FIRST)).version == 3
    for which in ("a@1", "a@3"):
        registry.remove(which)
    with pytest.raises(NotFoundError):
        registry.resolve("a")
    assert registry.put("a", drawn(FIRST)).version == 4 and registry.verify() == []


def test_a_version_in_use_is_kept(registry):
    registry.put("a", drawn(FIRST), alias="prod")
    with pytest.raises(StoreError, match="prod points to it.*with_aliases=true"):
        registry.remove("a@1")
    with pytest.raises(StoreError, match="names no version"):
        registry.remove("a")
    assert registry.get("a@prod")
    registry.remove("a@1", with_aliases=True)
    assert registry.list() == [] and registry.verify() == []


# --- many at once -----------------------------------------------------------------------------------------------------


def test_publishers_in_many_threads_never_overwrite(opened, request):
    if "memory" in request.node.name:
        pytest.skip("memory:// looks first and then writes")
    adapters = [drawn(FIRST, seed=i) for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        refs = list(pool.map(lambda adapter: opened().put("a", adapter, alias="prod"), adapters))
    assert sorted(ref.version for ref in refs) == list(range(1, 13))
    assert all(alike(opened().get(ref), adapter) for ref, adapter in zip(refs, adapters, strict=True))
    assert opened().verify() == []


def test_a_publisher_with_an_old_listing_never_overwrites(registry, monkeypatch):
    adapters = [drawn(FIRST, seed=i) for i in range(4)]
    for adapter in adapters[:3]:
        registry.put("a", adapter)
    registry.remove("a@2")
    monkeypatch.setattr(StoredVersions, "published", lambda self, name: {})
    assert registry.put("a", adapters[3]).version == 4
    assert all(alike(registry.get(f"a@{i + 1}"), adapters[i]) for i in (0, 2, 3))


def test_readers_meet_whole_adapters_while_aliases_and_versions_move(folder):
    adapters = [drawn(FIRST, seed=i) for i in range(8)]
    folder.put("a", adapters[0], alias="prod")
    done = threading.Event()

    def read():
        while not done.is_set():
            got = folder.get("a@prod")
            assert any(torch.equal(got.flat, adapter.flat) for adapter in adapters)

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for adapter in adapters:
            folder.put("a", adapter, alias="prod")
        done.set()
        assert [reader.result() for reader in readers] == [None, None]


def test_get_all_keeps_the_order_asked_for(registry):
    refs = [registry.put("a", drawn(FIRST, seed=i)) for i in range(5)]
    which = [refs[3], "a@1", refs[4], "a@1"]
    assert all(alike(g, drawn(FIRST, seed=s)) for g, s in zip(registry.get_all(which), (3, 0, 4, 0), strict=True))
    assert registry.get_all([]) == []


# --- from a model to a bank -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_from_training_to_serving(registry, small_llama, scramble, ids, method):
    spec = AdapterSpec(method=method, rank=4)
    bank = inject(small_llama, spec, num_slots=2)
    scramble(bank)
    refs = [registry.put("a", extract(bank, slot, small_llama)) for slot in bank.slots]
    with torch.no_grad(), route([1, 2, 0, 1]):
        before = small_llama(ids).logits
    served = eject(small_llama)
    slots = load(served, registry.get_all(refs))
    with torch.no_grad(), route([slots[0], slots[1], 0, slots[0]]):
        assert torch.equal(served(ids).logits, before)


def bank_for(model, adapter, num_slots):
    return add_bank(model, adapter.layout, num_slots, adapter.basis())


def from_llama(model, scramble, num):
    spec = AdapterSpec(method=SHARED, rank=4)
    bank = inject(model, spec, num_slots=num)
    scramble(bank)
    return [extract(bank, slot, model) for slot in bank.slots]


def test_load_into_fills_the_slots_of_a_bank(registry, small_llama, scramble):
    adapters = from_llama(small_llama, scramble, 5)
    refs = [registry.put("a", adapter) for adapter in adapters]
    bank = bank_for(small_llama, adapters[0], 6)
    slots = registry.load_into(bank, refs, base=fingerprint(small_llama))
    assert slots == list(bank.slots)[:5] and bank.occupied == set(range(5))
    assert all(torch.equal(bank.take(slot), a.flat) for slot, a in zip(slots, adapters, strict=True))
    chosen = [bank.slots[5], bank.slots[0]]
    assert registry.load_into(bank, ["a@1", "a@2"], slots=chosen) == chosen
    assert torch.equal(bank.take(chosen[1]), adapters[1].flat)


def test_load_into_refuses_what_does_not_fit(registry, small_llama, scramble):
    adapters = from_llama(small_llama, scramble, 2)
    refs = [registry.put("a", adapter) for adapter in adapters]
    bank = bank_for(small_llama, adapters[0], 1)
    with pytest.raises(SlotError, match="2 adapters for 1 slots"):
        registry.load_into(bank, refs)
    with pytest.raises(FingerprintError):
        registry.load_into(bank, refs[:1], base="0" * 16 + "-" + "0" * 16)
    with pytest.raises(NotFoundError):
        registry.load_into(bank, [AdapterRef("a", 9, "", 0)])
    assert bank.occupied == set() and not bank.flat.any()


# --- damage -----------------------------------------------------------------------------------------------------------


def test_verify_names_every_damaged_file(registry):
    for name in ("a", "a", "b", "c"):
        registry.put(name, drawn(FIRST), alias="prod")
    files = registry.files
    data = bytearray(files.read("adapters/a/1.safetensors"))
    data[-5] ^= 4
    files.replace("adapters/a/1.safetensors", bytes(data))
    files.replace("adapters/b/1.safetensors", b"")
    files.replace("adapters/notes.txt", b"hello")
    files.replace("aliases/c/@prod", b"seven")
    files.replace("aliases/a/@old", b"9\n")
    found = {problem.path: problem.message for problem in registry.verify()}
    expected = ["adapters/a/1", "adapters/b/1", "adapters/notes.txt", "aliases/a/@old", "aliases/c/@prod"]
    assert [path.removesuffix(".safetensors") for path in sorted(found)] == expected
    assert "checksum" in found["adapters/a/1.safetensors"] and "a@9" in found["aliases/a/@old"]
    with pytest.raises(FormatError, match="a@1 is damaged.*checksum"):
        registry.get("a@1")
    with pytest.raises(FormatError, match="seven"):
        registry.resolve("c@prod")
    assert registry.get("c")


def test_verify_sees_a_digest_that_is_not_the_file_s(registry):
    registry.put("a", drawn(FIRST))
    path = "adapters/a/1.safetensors"
    data = bytes(registry.files.read(path))
    stated = read_header(data).own.digest
    sums = {stated.encode(): b"f" * 64, read_header(data).own.checksum.encode(): b"0" * 32}
    for old, new in sums.items():
        data = data.replace(old, new)
    registry.files.replace(path, data.replace(b"0" * 32, xxhash.xxh3_128_hexdigest(data).encode(), 1))
    assert registry.get("a")
    assert [problem.path for problem in registry.verify()] == [path]


def test_a_version_that_was_swapped_is_not_taken_for_the_one_put(registry):
    ref = registry.put("a", drawn(FIRST))
    registry.put("a", drawn(FIRST, seed=1))
    registry.files.replace("adapters/a/1.safetensors", bytes(registry.files.read("adapters/a/2.safetensors")))
    with pytest.raises(FormatError, match="as asked for"):
        registry.get(ref)


def test_a_given_basis_travels(registry):
    adapter = with_given_basis(drawn(SHARED))
    registry.put("a", adapter)
    assert alike(registry.get("a"), adapter)
