"""The command line: thin verbs over the rooms below, their flags and their tables."""

from polyvera.cli import align, basis, dimension, exchange, search, serving
from polyvera.cli.verbs import app

__all__ = ["align", "app", "basis", "dimension", "exchange", "search", "serving"]
