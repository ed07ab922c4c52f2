"""Which lookups are fused, and the rewrite that fuses them."""
