"""Planted bugs: subjects and shaders with one mistake each."""
