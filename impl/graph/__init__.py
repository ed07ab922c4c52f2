"""Reading and rewriting exported graphs."""
