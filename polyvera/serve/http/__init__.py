"""HTTP: the OpenAI-compatible front of an engine."""
