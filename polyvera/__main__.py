"""python -m polyvera: the command line."""

from polyvera.cli import app

if __name__ == "__main__":
    app()
