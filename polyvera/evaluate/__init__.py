"""How good an adapter is. The package is called as its function: polyvera.evaluate(model, tokenizer, table)."""

from polyvera.callable_package import make_callable

make_callable(__name__, "evaluate")
