"""What the arithmetic of the contract allows, bit for bit."""
