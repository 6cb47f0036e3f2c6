"""Texts to vectors and classes, by an encoder."""
