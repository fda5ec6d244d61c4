"""`locray nightly` as a Ray job, with the same options: ray job submit --working-dir . -- python jobs/nightly.py ..."""

import sys

from locray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["nightly", *sys.argv[1:]]))
