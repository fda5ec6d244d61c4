"""`locray evaluate` as a Ray job, same options: ray job submit --working-dir . -- python jobs/evaluate.py ..."""

import sys

from locray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
