"""The bytes that are counted are those of the file, but for digits of its error."""

import pytest
from drawn_adapters import drawn

from polyvera.adapter.method import METHODS
from polyvera.store.file.codec import encode
from polyvera.store.file.file_bytes import num_file_bytes
from polyvera.store.file.stored_dtype import STORED_DTYPES


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", STORED_DTYPES)
def test_the_bytes_are_those_of_the_file(method: str, dtype: str) -> None:
    adapter = drawn(method)
    away = abs(num_file_bytes(adapter, dtype) - len(encode(adapter, dtype)))
    assert away == 0 if STORED_DTYPES[dtype].is_exact else away <= 16
