"""The optimized implementation: matcher, packer, kernel host and lowering. Never imports reference/ or conformance/."""
