"""Compiles a validated recipe into a plan: stage specifications, fingerprints and estimates. Pure, and without MLX.

The package can be called, because `nanochat.plan(...)` is also a public function, which importing this package would
otherwise replace. `nanochat.api.recipes.plan` documents the call.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType


class _CallablePackage(ModuleType):
    def __call__(self, *arguments: object, **settings: object) -> object:
        return importlib.import_module("nanochat.api.recipes").plan(*arguments, **settings)


sys.modules[__name__].__class__ = _CallablePackage
