"""Test the chat page in headless Chromium, with a model of random weights.

    python tests/browser/run.py [--screenshots FOLDER] [--chromium PATH] [--model RUN_OR_FOLDER]

Needs Node with playwright-core (`npm install --no-save playwright-core` in this folder) and Chromium. Not part of the
suite: `just browser` runs it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from serving import start

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screenshots", type=Path, help="folder for pictures (default: a temporary one)")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--model", required=True, help="the run or model folder to chat with")
    options = parser.parse_args()
    folder = options.screenshots or Path(tempfile.mkdtemp(prefix="nanochat-screenshots-"))
    folder.mkdir(parents=True, exist_ok=True)
    process, url = start(options.model)
    try:
        script = ["node", str(HERE / "chat_page.mjs"), url, str(folder), options.chromium]
        result = subprocess.run(script, cwd=HERE, check=False, timeout=300)
    finally:
        process.terminate()
        process.wait()
    print(f"screenshots are in {folder}")
    sys.exit(result.returncode)


if __name__ == "__main__":
    main()
