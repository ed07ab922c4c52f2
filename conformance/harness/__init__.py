"""The process border: a subject in a child process, observations out of it."""
