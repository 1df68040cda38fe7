"""Faults injected at random moments into grids on a real multi-node Ray, and what is left of their results."""
