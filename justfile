# Commands come from the environment that `just` itself is installed in.
export PATH := parent_directory(just_executable()) + ":" + env("PATH")

# list what there is
default:
    @just --list

# a tiny model through every stage, and seven checks of the machine's arithmetic
dry-run:
    nanochat-run dry_run --force all
    nanochat-run verify

# a small model that learns, offline, in minutes
quickstart:
    nanochat-run quickstart

# the test suite (no network, minutes); the third process uses the two cores while others wait for a child
test:
    pytest -n 3

# tests that take minutes, or need the real sets under FOLDER/eval: oracles, canonical solutions, hostile programs
slow folder:
    NANOCHAT_TEST_DATA={{ quote(absolute_path(folder)) }} pytest -m slow

# exported models in mlx-lm and transformers; needs the extra: pip install -e '.[dev,export]'
export-tests:
    pytest -m "export and not slow"

# tasks of lm-evaluation-harness, on the real sets under FOLDER/eval; needs the extra: pip install -e '.[dev,lm-eval]'
lm-eval-tests folder:
    NANOCHAT_TEST_DATA={{ quote(absolute_path(folder)) }} pytest -m lm_eval

# plant known faults one at a time in a copy of the package: which test notices each (10 minutes)
[positional-arguments]
mutants *options:
    python tests/mutants/plant.py "$@"

# kill, stop, suspend, start twice and move a run, close its terminal, fill its disk, damage its files, cut its power,
# disturb its upload: nothing may be lost (an hour)
[positional-arguments]
torture *options:
    python tests/torture/kills.py "$@"
    python tests/torture/terminal.py
    python tests/torture/matrix.py
    python tests/torture/disk_full.py
    python tests/torture/damage.py
    python tests/torture/power_cut.py
    python tests/torture/travel.py
    python tests/torture/tracking.py

# check a thousand mutated recipes: valid, or refused with a place (half a minute)
[positional-arguments]
fuzz *options:
    python tests/torture/mutate.py "$@"

# lint, types, room contract, schema freshness, tests
check: && test
    ruff format --check .
    ruff check .
    mypy
    lint-imports
    nanochat-run schema --check

# speed, as ratios measured side by side in one run (minutes)
bench:
    python tests/benchmarks/cpu_train.py
    python tests/benchmarks/packing.py
    python tests/benchmarks/waiting.py
    python tests/benchmarks/decode.py --rows 1 --contexts 64 512 1900
    python tests/benchmarks/choices.py
    python tests/benchmarks/distributed.py --device cpu

# chat with a run in the browser, and an OpenAI-compatible API
[positional-arguments]
serve *options:
    nanochat-run serve "$@"

# test the chat page in headless Chromium, with a run's or a folder's model (needs Node and Chromium)
browser model:
    npm install --silent --no-save --no-package-lock --prefix tests/browser playwright-core
    python tests/browser/run.py --model {{ quote(model) }}

# browse results in the MLflow UI
ui:
    nanochat-run ui

# regenerate schemas/recipe.schema.json and schemas/README.md, the recipe reference
schemas:
    nanochat-run schema --write
