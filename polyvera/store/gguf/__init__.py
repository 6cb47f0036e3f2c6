"""GGUF adapters out: one file for llama.cpp and all that is built on it."""

from polyvera.store.gguf.writer import export_gguf

__all__ = ["export_gguf"]
