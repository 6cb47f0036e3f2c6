"""Tokens, step by step."""
