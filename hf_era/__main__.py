"""`python -m hf_era`: the same as `hf-era`."""

import sys

from hf_era.cli import main

if __name__ == "__main__":
    sys.exit(main())
