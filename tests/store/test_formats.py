"""One row for each program's format: what is written as one is recognized as it, and read back."""

import pytest
import torch
from peft_oracle import here, logits, trained
from tiny_folder import save_tiny

from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import BasisError, FormatError
from polyvera.model.load import load_base
from polyvera.store.file.codec import decode, encode
from polyvera.store.formats import FORMATS, base_of, format_of

pytestmark = pytest.mark.filterwarnings("ignore")
READ = [form for form in FORMATS.values() if not form.file_name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base") / "base")


@pytest.mark.parametrize("form", READ, ids=lambda form: form.name)
def test_a_written_folder_is_known_and_read_back(form, folder, tmp_path):
    base = load_base(str(folder)).model
    adapter = trained(base, AdapterSpec(rank=4))
    path = form.write(adapter, tmp_path / "a", model=base)
    assert format_of(path) is form
    again = form.read(path, form.base(path, str(folder)))
    ids = torch.arange(3, 12)[None]
    one, other = here(base, adapter)[0], here(base, again)[0]
    torch.testing.assert_close(logits(one, ids), logits(other, ids), rtol=1e-5, atol=1e-5)


def test_a_format_that_is_only_written_reads_nothing(tmp_path):
    with pytest.raises(FormatError, match="GGUF"):
        (tmp_path / "x.gguf").touch()
        format_of(tmp_path)
    with pytest.raises(FormatError, match="GGUF"):
        FORMATS["gguf"].read(tmp_path, None)


def test_a_base_is_known_by_its_shapes(folder, tmp_path):
    base = load_base(str(folder)).model
    adapter = trained(base, AdapterSpec(rank=4))
    found = base_of(adapter, str(folder))
    assert type(found) is type(base) and all(p.is_meta for p in found.parameters())
    assert base_of(adapter) is None and base_of(adapter, str(tmp_path / "none")) is None


@pytest.mark.parametrize("form", READ, ids=lambda form: form.name)
def test_a_stored_adapter_on_its_bases_singular_vectors_is_written_with_that_base(form, folder, tmp_path):
    base = load_base(str(folder)).model
    method = next(name for name, row in METHODS.items() if row.reads_base)
    adapter = trained(base, AdapterSpec(method, rank=4))
    stored = decode(encode(adapter))
    assert not stored.computed
    with pytest.raises(BasisError, match="load\\(\\) the adapter into it, or give it"):
        form.write(stored, tmp_path / "without", model=None)
    path = form.write(stored, tmp_path / "a", model=base_of(stored, str(folder)))
    again = form.read(path, form.base(path, str(folder)))
    ids = torch.arange(3, 12)[None]
    one, other = here(base, stored)[0], here(base, again)[0]
    torch.testing.assert_close(logits(one, ids), logits(other, ids), rtol=1e-4, atol=1e-5)
