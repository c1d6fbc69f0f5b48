"""The process that converts files: `python -m nanochat.data.ingest BASE`, with a JSON list of paths as input.

Lines on standard output report the progress: the number of the file, the bytes converted, and the file's size. An
error ends the process with its exit code and the message as the last line. Only one process converts at a time.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from nanochat import runtime
from nanochat.data.ingest.convert import convert
from nanochat.data.ingest.store import FOLDER, LOCK_FILE, unconverted_files
from nanochat.errors import OK, NanochatError
from nanochat.storage.file_errors import explain_file_error
from nanochat.storage.files import make_folder
from nanochat.storage.locking import waiting_lock


def main(arguments: list[str]) -> int:
    """Convert the files that have no copy yet and return the exit code."""
    (folder,) = arguments
    base, paths = Path(folder), [Path(path) for path in json.load(sys.stdin)]
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):  # read when `datasets` is imported
        runtime.set_environment(name, "1")
    try:
        path = base / FOLDER / LOCK_FILE
        make_folder(path.parent)
        with waiting_lock(path):
            for number, path in enumerate(paths):
                if unconverted_files([path], base=base, are_loaded=True):
                    convert(path, base=base, on_progress=partial(_report, number))
    except (NanochatError, OSError) as error:
        known = explain_file_error(error) if isinstance(error, OSError) else error
        if known is None:
            raise
        _report(str(known))
        return known.exit_code
    return OK


def _report(*values: object) -> None:
    try:
        sys.stdout.write(json.dumps(values) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the run was killed; what is converted is kept
        raise SystemExit(1) from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
