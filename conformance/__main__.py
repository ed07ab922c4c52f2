"""Entry point of ``python -m conformance``, which is ``q4gsw``."""

import sys

from conformance.cli.main import main

sys.exit(main())
