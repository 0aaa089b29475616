"""The robust sibling of recipe A. `accelerate launch recipes/scratch_robust.py [--config FILE] [--FIELD VALUE ...]`"""

import sys

from hf_era.cli import run_recipe

if __name__ == "__main__":
    sys.exit(run_recipe(__file__))
