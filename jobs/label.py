"""`locray label` as a Ray job, with the same options: ray job submit --working-dir . -- python jobs/label.py ..."""

import sys

from locray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["label", *sys.argv[1:]]))
