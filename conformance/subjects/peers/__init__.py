"""Subjects that other projects wrote: independent implementations, each judged like any other."""
