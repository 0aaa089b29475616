"""What the tests of runs have."""

from ..run.conftest import _own_data_set_cache, make_run_config

__all__ = ["_own_data_set_cache", "make_run_config"]
