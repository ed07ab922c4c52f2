"""What a .pte holds, and what a device would do with it."""
