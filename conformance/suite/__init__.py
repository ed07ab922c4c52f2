"""The suite as pytest modules; ``q4gsw run`` starts them."""
