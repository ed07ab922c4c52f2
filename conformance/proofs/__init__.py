"""Proofs of numbers and addressing, and their certificates."""
