"""Hugging Face PEFT folders in and out: the same logits, bit for bit, on both sides."""

from polyvera.store.peft_export import export_peft
from polyvera.store.peft_import import import_peft

__all__ = ["export_peft", "import_peft"]
