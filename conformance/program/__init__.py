"""A ProgramSpec as a torch program."""
