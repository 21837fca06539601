"""``python -m bimba``, where the console script is not on the path."""

from __future__ import annotations

import sys

from bimba.cli import main

sys.exit(main())
