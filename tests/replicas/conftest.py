"""A base model in a folder, and a store of three adapters, for all replicas."""

from pathlib import Path

import pytest
from tiny_serve import make_tokenizer
from tiny_server import TEMPLATE, make_base, some_adapters

from polyvera.store.registry import Registry


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model reads 2048 tokens, so that answers run while a test looks."""
    root = tmp_path_factory.mktemp("replicas")
    model, tokenizer = make_base(2048), make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(root / "tiny")
    tokenizer.save_pretrained(root / "tiny")
    for name, adapter in some_adapters(model).items():
        Registry(root / "store").put(name, adapter)
    return root
