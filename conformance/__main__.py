"""Entry point of ``python -m conformance``."""

import sys

if sys.argv[1:2] == ["prove"]:  # proofs run where neither torch nor the cases' TOML writer is installed
    from conformance.cli.prove import main as prove

    sys.exit(prove(sys.argv[2:]))

from conformance.cli.main import main

sys.exit(main())
