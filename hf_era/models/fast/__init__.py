"""Faster ways to compute what a causal LM computes, to rounding: optional, and switched with `FastPaths`."""
