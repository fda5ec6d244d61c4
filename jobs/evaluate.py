"""`locray evaluate` as a Ray job: `ray job submit --working-dir . -- python jobs/evaluate.py --help`. Same options."""

import sys

from locray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
