"""`python -m locray` is the command line."""

import sys

from locray.cli.main import main

sys.exit(main())
