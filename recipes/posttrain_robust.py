"""Noise and route. `accelerate launch recipes/posttrain_robust.py [--config FILE] [--FIELD VALUE ...]`"""

import sys

from hf_era.cli import run_recipe

if __name__ == "__main__":
    sys.exit(run_recipe(__file__))
