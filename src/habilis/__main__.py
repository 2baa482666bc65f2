"""`python -m habilis`: the command line."""

import sys

from habilis.cli import main

sys.exit(main())
