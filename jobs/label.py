"""`locray label` as a Ray job: `ray job submit --working-dir . -- python jobs/label.py --help`. The same options."""

import sys

from locray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["label", *sys.argv[1:]]))
