"""`locray benchmark` as a Ray job: `ray job submit --working-dir . -- python jobs/benchmark.py --help`. Same options."""

import sys

from locray.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
