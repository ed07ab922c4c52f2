"""Proofs of numbers and addressing, and their certificates: docs/proofs.md, docs/contract.md sections 1 to 3 and 7."""
