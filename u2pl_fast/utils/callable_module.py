"""Let a module be called like the function of the same name in it."""

import inspect
import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return vars(self)[self.__name__.rpartition(".")[2]](*args, **kwargs)


def make_callable(name: str) -> None:
    """Make the module ``package.f`` callable: ``package.f(...)`` calls the function ``f`` in it.

    A package cannot export a function under the name of one of its modules: importing the module rebinds the name.
    """
    function = name.rpartition(".")[2]
    module = sys.modules[name]
    if function in vars(module):  # not when it runs as __main__
        module.__class__ = _CallableModule
        module.__signature__ = inspect.signature(vars(module)[function])  # type: ignore[attr-defined]
