"""Adapters of polyvera inside vLLM: a plugin that vLLM loads by itself, imported by nothing here."""
