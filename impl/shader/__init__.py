"""Compiling shaders and declaring their floating-point modes."""
