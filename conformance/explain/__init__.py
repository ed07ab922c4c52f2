"""Which lookups of a .pt2 would be fused, and why not."""
