"""`locray train` as a Ray job, with the same options: ray job submit --working-dir . -- python jobs/train.py ..."""

import sys

from locray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
