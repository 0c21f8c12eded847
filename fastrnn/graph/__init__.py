"""Specs in, specs out: what is certain of a graph before it runs, and how it becomes one that runs faster."""
