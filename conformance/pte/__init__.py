"""A .pte file read and run."""
