"""The question: a case, its operands, the catalogue, TOML."""
