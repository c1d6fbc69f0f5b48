# Commands come from the environment that `just` itself is installed in.
export PATH := parent_directory(just_executable()) + ":" + env("PATH")

# list what there is
default:
    @just --list

# a tiny model through every stage, and seven checks of the machine's arithmetic
dry-run:
    nanochat-run recipes/dry_run.yaml --force all
    nanochat-run verify

# a small model that learns, offline, in minutes
quickstart:
    nanochat-run recipes/quickstart.yaml

# the test suite (no network, under 3 minutes)
test:
    pytest

# plant known faults one at a time in a copy of the package: which test notices each (10 minutes)
[positional-arguments]
mutants *options:
    python tests/mutants/plant.py "$@"

# lint, types, room contract, schema freshness, tests
check:
    ruff format --check .
    ruff check .
    mypy
    lint-imports
    nanochat-run schema --check
    pytest

# browse results in the MLflow UI
ui:
    nanochat-run ui

# regenerate schemas/recipe.schema.json
schemas:
    nanochat-run schema --write
