"""From a recipe and data to adapters. The package is called as its function: polyvera.train(recipe)."""

from polyvera.callable_package import make_callable

make_callable(__name__, "trainer")
