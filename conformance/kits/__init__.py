"""Cases as files, for runtimes that are elsewhere."""
