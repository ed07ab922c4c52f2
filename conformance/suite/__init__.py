"""The suite as pytest modules, one a stage."""
