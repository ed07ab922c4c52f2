"""Tables: layouts, positions of codes, quantization and its inverse."""
