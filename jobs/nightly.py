"""`locray nightly` as a Ray job: `ray job submit --working-dir . -- python jobs/nightly.py --help`. Same options."""

import sys

from locray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["nightly", *sys.argv[1:]]))
