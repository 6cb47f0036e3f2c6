"""Hugging Face PEFT folders in and out: the same logits, bit for bit, on both sides."""

from polyvera.store.peft.reader import import_peft
from polyvera.store.peft.writer import export_peft

__all__ = ["export_peft", "import_peft"]
