"""SPIR-V read, and executed on numbers or on terms."""
