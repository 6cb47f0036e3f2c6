"""A made basis lies in a store once, under its sha256; adapters name it, and are whole again when they are read."""

import gc

import pytest
import torch
from drawn_adapters import SMALL, alike

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.basis import Basis, basis_at_hand, draw_basis, given_basis
from polyvera.adapter.inject import add_bank, banks_of, load
from polyvera.adapter.layout import layout_of
from polyvera.adapter.method import METHODS
from polyvera.adapter.route import route
from polyvera.adapter.spec import AdapterSpec, BasisKey
from polyvera.errors import BasisError, ConflictError, DamagedFileError, NotFoundError, ReferenceNameError
from polyvera.store.file.codec import decode, encode
from polyvera.store.file.stored_dtype import STORED_DTYPES
from polyvera.store.paths import basis_path
from polyvera.store.peft.reader import import_peft
from polyvera.store.peft.writer import export_peft
from polyvera.store.registry import Registry

PROJECTIONS = (("q_proj", 32), ("v_proj", 16))
SHARED = next(name for name, row in METHODS.items() if row.shares_basis)


def made(seed: int = 0) -> Basis:
    numbers = torch.Generator().manual_seed(seed)
    return given_basis(torch.randn(4, 9, generator=numbers), torch.randn(11, 4, generator=numbers))


def on(basis: Basis, seed: int = 0, **choices: object) -> Adapter:
    """An adapter that names the basis."""
    key = basis.key
    spec = AdapterSpec(SHARED, rank=4, init=basis.sha256, in_max=key.in_max, out_max=key.out_max, **choices)
    layout = layout_of(spec, SMALL)
    assert layout.basis == basis.key
    return Adapter(spec, layout, torch.randn(layout.num_params), basis.sha256)


def test_a_basis_is_found_by_its_name_and_by_its_sha256(opened):
    basis, registry = made(), opened()
    with pytest.raises(NotFoundError, match="it has no bases"):
        registry.bases.get("pca")
    sha256 = registry.bases.put(basis, "pca", {"kind": "drawn"})
    registry.bases.put(basis, "other")  # the same file
    assert [ref.names for ref in opened().bases.list()] == [("other", "pca")]
    assert opened().bases.about(sha256) == {"kind": "drawn"}
    for which in ("pca", sha256, sha256[:8]):
        found = opened().bases.get(which)
        assert found is basis  # of one process
    with pytest.raises(NotFoundError, match="other, pca"):
        registry.bases.get("pcb")
    with pytest.raises(BasisError, match="beginning of a sha256"):
        registry.bases.put(basis, "abcdef0")
    with pytest.raises(ReferenceNameError):
        registry.bases.put(basis, "a/b")
    assert opened().verify() == []


def test_a_drawn_basis_can_be_kept_too(tmp_path):
    drawn, registry = draw_basis(BasisKey("orthogonal", 0, 4, 9, 11)), Registry(tmp_path)
    sha256 = registry.bases.put(drawn, "orthogonal-4")
    assert torch.equal(registry.bases.get("orthogonal-4").A, drawn.A) and sha256 == drawn.sha256


@pytest.mark.parametrize("dtype", STORED_DTYPES)
def test_an_adapter_holds_only_the_digest(registry, dtype):
    basis = made()
    registry.put("a", on(basis), dtype=dtype)  # puts the basis too
    registry.put("b", on(basis), dtype=dtype)
    assert [ref.sha256 for ref in registry.bases.list()] == [basis.sha256]
    values = basis.A.clone(), basis.B.clone()
    del basis
    gc.collect()
    again = registry.get("a")
    found = again.basis()
    assert found is not None and torch.equal(found.A, values[0]) and torch.equal(found.B, values[1])
    assert registry.get("b").given is found
    assert registry.resolve("a").num_bytes < 4 * found.key.num_params + 4 * again.num_params + 1500
    assert registry.verify() == []


def test_no_file_names_another_basis_than_its_spec(tmp_path):
    adapter = on(made())
    data = encode(adapter)
    assert alike(decode(data), adapter) and b'\\"format\\":4' in data
    other = made(1)
    with pytest.raises(ValueError, match="sha256|belong together|basis"):
        Adapter(adapter.spec, on(other).layout, adapter.flat, other.sha256)


def test_adapters_of_several_bases_are_loaded_side_by_side(tmp_path):
    registry, model = Registry(tmp_path), torch.nn.Module()
    for name, (wide, tall) in SMALL.items():
        holder = model
        *path, last = name.split(".")
        for part in path:
            if not hasattr(holder, part):
                setattr(holder, part, torch.nn.Module())
            holder = getattr(holder, part)
        setattr(holder, last, torch.nn.Linear(wide, tall))
    for i in range(4):
        registry.put(f"t{i}", on(made(i % 2)))
    slots = load(model, [registry.get(f"t{i}") for i in range(4)])
    banks = {slot: next(b for b in banks_of(model) if slot in b.slots) for slot in slots}
    assert banks[slots[0]] is banks[slots[2]] is not banks[slots[1]] and banks[slots[1]] is banks[slots[3]]
    bank = add_bank(model, registry.get("t0").layout, 2, registry.get("t0").basis())
    registry.load_into(bank, ["t0", "t2"])
    assert torch.equal(bank.take(bank.slots[1]), registry.get("t2").flat)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-4],
        lambda data: data[:-4] + b"\0\0\xc0\x7f",
        lambda data: data[:-4] + b"\0\0\0\0",
        lambda data: b"{}" * 8,
        lambda data: data.replace(b'"A"', b'"C"', 1),
        lambda data: data.replace(b'"F32"', b'"I32"'),
    ],
)
def test_a_damaged_basis_is_refused_and_healed(tmp_path, damage):
    registry = Registry(tmp_path)
    sha256 = registry.bases.put(made(3), "pca")
    registry.put("a", on(made(3)))
    gc.collect()
    assert basis_at_hand(sha256) is None
    path = tmp_path / basis_path(sha256)
    path.write_bytes(damage(path.read_bytes()))
    for read in (lambda: registry.bases.get("pca"), lambda: registry.get("a")):
        with pytest.raises(DamagedFileError, match=sha256[:12]):
            read()
    assert len(registry.verify()) == 3
    registry.bases.put(made(3))
    assert registry.get("a").basis() is not None and registry.verify() == []


def test_what_is_no_basis_is_named_by_verify(tmp_path):
    registry = Registry(tmp_path)
    sha256 = registry.bases.put(made(), "pca")
    (tmp_path / "bases/@pca").write_text("nothing")
    (tmp_path / "bases/notes.txt").write_text("x")
    assert [problem.path for problem in registry.verify()] == ["bases/@pca", "bases/notes.txt"]
    with pytest.raises(DamagedFileError, match="set it again"):
        registry.bases.get("pca")
    assert registry.bases.get(sha256[:6]).sha256 == sha256


@pytest.mark.parametrize("as_lora", [False, True])
def test_it_goes_to_peft_and_comes_back(tmp_path, small_llama, as_lora):
    widths = {f"model.layers.{i}.self_attn.{name}": (32, out) for i in range(3) for name, out in PROJECTIONS}
    basis = given_basis(torch.randn(4, 32), torch.randn(32, 4))
    spec = AdapterSpec(SHARED, rank=4, init=basis.sha256, in_max=32, out_max=32, targets=("q_proj", "v_proj"))
    layout = layout_of(spec, widths)
    adapter = Adapter(spec, layout, torch.randn(layout.num_params), basis.sha256)
    again = import_peft(export_peft(adapter, tmp_path / "out", as_lora=as_lora), small_llama)
    ids = torch.arange(5)[None]
    slots = load(small_llama, [adapter, again], check_base=False)
    with torch.no_grad():
        own, other = (_logits(small_llama, slot, ids) for slot in slots)
    assert torch.allclose(own, other, atol=1e-4)
    assert as_lora or again.basis_sha256 == basis.sha256


def _logits(model, slot, ids):
    with route(slot):
        return model(input_ids=ids).logits


def test_a_basis_that_adapters_name_stays_and_another_goes_with_its_names(opened):
    basis, other, registry = made(), made(1), opened()
    for name in ("pca", "other"):
        registry.bases.put(basis, name)
    registry.bases.put(other, "free")
    registry.put("acme/a", on(basis))
    registry.put("acme/a", on(basis))
    for which in ("pca", basis.sha256, basis.sha256[:8]):
        with pytest.raises(ConflictError, match="adapters name it: acme/a@1, acme/a@2; remove them first"):
            registry.bases.remove(which)
    assert registry.bases.remove("free") == other.sha256
    with pytest.raises(NotFoundError):
        registry.bases.get("free")
    for version in (1, 2):
        registry.remove(f"acme/a@{version}")
    assert [ref.names for ref in registry.bases.list()] == [("other", "pca")]
    registry.bases.remove("other")
    assert opened().bases.list() == () and registry.verify() == []
    with pytest.raises(NotFoundError):
        registry.bases.remove("pca")


def test_an_adapter_published_while_its_basis_is_removed_keeps_it(tmp_path, monkeypatch):
    """Before the last look: the removal is taken back. After it: the publish puts the basis back."""
    basis, registry = made(), Registry(tmp_path)
    registry.bases.put(basis, "pca")
    naming, looks = registry.bases._naming, []

    def looked(sha256):
        looks.append(sha256)
        found = naming(sha256)
        if len(looks) == 1:
            Registry(tmp_path).put("a", on(basis))
        return found

    monkeypatch.setattr(registry.bases, "_naming", looked)
    with pytest.raises(ConflictError, match="a@1"):
        registry.bases.remove("pca")
    assert [ref.names for ref in registry.bases.list()] == [("pca",)] and registry.verify() == []
    monkeypatch.setattr(registry.bases, "_naming", lambda sha256: ())
    create, removals = registry.files.create, [basis.sha256]

    def created(data, paths):
        if removals:
            registry.bases.remove(removals.pop())
        return create(data, paths)

    monkeypatch.setattr(registry.files, "create", created)
    registry.put("b", on(basis))
    assert [ref.sha256 for ref in registry.bases.list()] == [basis.sha256] and registry.verify() == []


def test_an_adapter_whose_basis_is_nowhere_is_not_published(tmp_path):
    data = encode(on(made(7)))
    gc.collect()
    adapter = decode(data)
    with pytest.raises(BasisError, match="which this store does not have: copy bases/"):
        Registry(tmp_path).put("a", adapter)
    assert Registry(tmp_path).list() == []
    Registry(tmp_path).bases.put(made(7))
    Registry(tmp_path).put("a", adapter)
    assert Registry(tmp_path).get("a").basis() is not None
