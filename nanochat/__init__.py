"""Train a small GPT from nothing to a chat model, described by one YAML recipe.

    import nanochat

    print(nanochat.plan("quickstart"))
    run = nanochat.run("quickstart")
    model = nanochat.load("quickstart")
    model.chat("Spell the word: garden")

These names are imported when they are first used, so that `import nanochat` takes no time. Their types are in
`__init__.pyi`, their code and documentation in `nanochat.api`.
"""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "load_recipe": "recipes",
    "run": "recipes",
    "Plan": "recipes",
    "PlannedStage": "recipes",
    "Progress": "recipes",
    "Run": "runs",
    "Series": "runs",
    "find_run": "runs",
    "Model": "models",
    "Score": "models",
    "load": "models",
}
__all__ = ["__version__", "plan", *_PUBLIC]


def __getattr__(name: str) -> object:
    if name == "plan":  # a package that can be called, see there
        return importlib.import_module("nanochat.plan")
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"nanochat.api.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'nanochat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
