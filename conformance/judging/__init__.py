"""The oracles applied to observations, one module a kind."""
