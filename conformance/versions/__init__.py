"""A subject judged with every release."""
