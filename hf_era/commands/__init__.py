"""The commands of `hf-era`, one module each: `add_parser` describes its options, `run` does the work.

Heavy imports are inside `run`, so that `--help` need not load torch.
"""
