"""Vectors and classes."""
