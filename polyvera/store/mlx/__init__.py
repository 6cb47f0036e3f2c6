"""Adapters of mlx-lm in and out: the folder that its `--adapter-path` names."""

from polyvera.store.mlx.reader import import_mlx
from polyvera.store.mlx.writer import export_mlx

__all__ = ["export_mlx", "import_mlx"]
