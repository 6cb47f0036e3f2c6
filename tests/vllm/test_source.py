"""Where an adapter comes from: a store, a file, a folder of PEFT's; what has matrices alone is left to vLLM."""

import gc

import pytest
import torch

from polyvera.adapter.basis import basis_at_hand, given_basis
from polyvera.adapter.inject import eject, extract, inject
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import FormatError, NotFoundError
from polyvera.store.file.codec import encode
from polyvera.store.peft import export_peft
from polyvera.store.registry import Registry
from polyvera.vllm.source import PEFT_TYPES, SCHEME, read_adapter

VECTORS = [name for name, row in METHODS.items() if row.peft_type in PEFT_TYPES and "m" not in row.factors]
MATRICES = [name for name, row in METHODS.items() if row.peft_type and row.peft_type not in PEFT_TYPES]


def adapter_of(model, scramble, method):
    bank = inject(model, AdapterSpec(method, rank=2))
    scramble(bank)
    return extract(bank, bank.slots[0])


def no_skeleton():
    raise AssertionError("only a folder of PEFT's is read against the base")


@pytest.mark.parametrize("method", METHODS)
def test_a_store_and_a_file_give_what_was_put(tmp_path, small_llama, scramble, method):
    adapter = adapter_of(small_llama, scramble, method)
    ref = Registry(tmp_path / "store").put("acme/one", adapter)
    file = tmp_path / "one.safetensors"
    file.write_bytes(encode(adapter))
    for path in (f"{SCHEME}{ref}", f"{SCHEME}acme/one", str(file)):
        found = read_adapter(path, str(tmp_path / "store"), no_skeleton)
        assert found is not None and found.spec == adapter.spec and torch.equal(found.flat, adapter.flat)


def test_a_file_that_names_a_made_basis_is_whole_with_its_store(tmp_path, small_llama, scramble):
    A, B = torch.randn(2, 32), torch.randn(32, 2)
    sha256, file = given_basis(A, B).sha256, tmp_path / "one.safetensors"
    Registry(tmp_path / "store").bases.put(given_basis(A, B))
    basis = given_basis(A, B)
    bank = inject(small_llama, AdapterSpec(VECTORS[0], rank=2, init=sha256, in_max=32, out_max=32))
    scramble(bank)
    file.write_bytes(encode(extract(bank, bank.slots[0])))
    eject(small_llama)
    del basis, bank
    gc.collect()
    assert basis_at_hand(sha256) is None
    found = read_adapter(str(file), str(tmp_path / "store"), no_skeleton)
    assert found is not None and torch.equal(found.basis().A, A)
    with pytest.raises(NotFoundError, match="or its basis is in a store"):
        read_adapter(str(file), "", no_skeleton)


@pytest.mark.parametrize("method", VECTORS)
def test_a_folder_of_vectors_is_read_against_the_base(tmp_path, built, small_llama, scramble, method):
    adapter = adapter_of(small_llama, scramble, method)
    export_peft(adapter, tmp_path / "out")
    found = read_adapter(str(tmp_path / "out"), "", lambda: built["llama"])
    assert found is not None and set(found.tensors) == set(adapter.tensors)  # PEFT has no tied ones: each is its own
    assert all(torch.equal(tensor, adapter.tensors[name]) for name, tensor in found.tensors.items())


@pytest.mark.parametrize("method", MATRICES)
def test_a_folder_of_matrices_is_left_to_vllm(tmp_path, small_llama, scramble, method):
    export_peft(adapter_of(small_llama, scramble, method), tmp_path / "out")
    assert read_adapter(str(tmp_path / "out"), "", no_skeleton) is None


def test_a_path_into_a_store_that_is_not_there_is_refused():
    with pytest.raises(NotFoundError, match="POLYVERA_STORE"):
        read_adapter("polyvera://acme@3", "", no_skeleton)


def test_a_folder_without_a_config_is_left_to_vllm_and_a_broken_one_refused(tmp_path):
    assert read_adapter(str(tmp_path), "", no_skeleton) is None
    assert read_adapter(str(tmp_path / "nothing"), "", no_skeleton) is None
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(FormatError, match="JSON"):
        read_adapter(str(tmp_path), "", no_skeleton)
