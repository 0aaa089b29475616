"""Thin `evaluate` modules over the pure functions of `hf_era.evaluation`; one folder each, as `evaluate.load` wants."""
