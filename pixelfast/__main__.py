"""`python -m pixelfast` is the command `pixelfast`."""

import sys

from .cli import main

sys.exit(main())
