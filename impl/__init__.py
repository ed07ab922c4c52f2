"""The player: our own matcher, packer, kernel host and lowering. Never imports reference/ or conformance/."""
