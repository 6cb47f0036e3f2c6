"""Engines as processes."""
