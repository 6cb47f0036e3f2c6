"""Prompts to text, token by token, by a causal language model."""
