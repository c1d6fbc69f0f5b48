"""The command that starts the process of a stage: `python -m nanochat.stages JOB.json [--join BACKEND]`."""

import sys

from nanochat.stages.process.run_job import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
