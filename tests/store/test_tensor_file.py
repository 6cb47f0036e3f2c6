"""Tensors of another program's file: looked at before they are read, and refused in words."""

import pytest
import torch
from safetensors.torch import save_file

from polyvera.errors import FormatError, LayoutError
from polyvera.store.tensor_file import open_tensors, unpickled_tensors

TENSORS = {"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.ones(1, dtype=torch.int32)}


@pytest.fixture(params=["safetensors", "pickle", "nested"])
def read(request, tmp_path):
    """A function that is given the tensors of a file."""
    path = tmp_path / request.param
    if request.param == "safetensors":
        save_file(TENSORS, path)

        def with_file(look):
            with open_tensors(path) as file:
                return look(file)

        return with_file
    torch.save(TENSORS if request.param == "pickle" else {"epoch": 3, "state_dict": TENSORS}, path)
    return lambda look: look(unpickled_tensors(path))


def test_each_tensor_is_there_with_its_shape_and_its_dtype(read):
    assert read(lambda file: {k: t.shape for k, t in file.items()}) == {"a": (2, 3), "b": (4,), "c": (1,)}
    found = read(lambda file: file["b"].floats("b", (4,), "someone"))
    assert found.dtype == torch.float32 and torch.equal(found, torch.ones(4))


def test_what_does_not_fit_is_refused(read):
    with pytest.raises(LayoutError, match=r"\(2, 3\).*you want \(3, 2\)"):
        read(lambda file: file["a"].floats("a", (3, 2), "you"))
    with pytest.raises(FormatError, match="c is of dtype"):
        read(lambda file: file["c"].floats("c", (1,), "you"))


@pytest.mark.parametrize("reads", [lambda p: open_tensors(p).__enter__(), unpickled_tensors])
def test_a_pointer_of_git_lfs_is_named(reads, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 133\n")
    with pytest.raises(FormatError, match="git lfs pull"):
        reads(path)


def test_what_is_not_tensors_is_refused(tmp_path):
    for tree in ([1, 2], {"a": 1}, {"a": torch.ones(1), "b": "x"}):
        torch.save(tree, tmp_path / "x.bin")
        with pytest.raises(FormatError, match="not a state dict"):
            unpickled_tensors(tmp_path / "x.bin")
    (tmp_path / "x.bin").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="not a plain state dict"):
        unpickled_tensors(tmp_path / "x.bin")
