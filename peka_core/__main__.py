"""`python -m peka_core` is the `peka` command."""

import sys

from .run import main

sys.exit(main())
