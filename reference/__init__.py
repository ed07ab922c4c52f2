"""The oracles: pure numpy, written from docs/contract.md, sharing no code with impl/."""
