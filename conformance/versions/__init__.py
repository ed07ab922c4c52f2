"""A subject judged beside every release."""
