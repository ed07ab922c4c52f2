"""Programs without a graph: what each must compute, and which lookups must be fused."""
