"""CallablePackage: a package that is also its function of the same name, so that no order of imports hides either."""

from __future__ import annotations

import sys
from importlib import import_module
from inspect import Signature, signature
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package whose call is that of one of its functions, which is imported when it is first called."""

    home: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        return self.function(*args, **kwargs)

    @property
    def function(self) -> Any:
        """The function itself."""
        return getattr(import_module(f"{self.__name__}.{self.home}"), self.__name__.rpartition(".")[2])

    @property
    def __signature__(self) -> Signature:
        """The function's, for help() and inspect."""
        return signature(self.function)


def make_callable(package: str, home: str) -> None:
    """Makes a package callable. home: its module that has the function, which is called as the package is."""
    module = sys.modules[package]
    module.__class__ = CallablePackage
    vars(module)["home"] = home
