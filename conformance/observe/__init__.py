"""What a rewriting or a lowering did, observed without its help."""
