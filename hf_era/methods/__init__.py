"""What a run can do: gradient routing and the controls it is compared with, one file each. To add one: `method.py`."""

from hf_era.methods import (  # each registers itself
    base,
    data_filtering,
    era_rmu,
    gradient_difference,
    gradient_routing,
    noise_and_route,
    npo,
    post_training,
    repselect,
    rmu,
    slgr,
    undo,
)
from hf_era.methods.method import METHODS, Cost, Method, Phase, Run, Settings, Stage, get_method, register_method

__all__ = [
    "METHODS",
    "Cost",
    "Method",
    "Phase",
    "Run",
    "Settings",
    "Stage",
    "base",
    "data_filtering",
    "era_rmu",
    "get_method",
    "gradient_difference",
    "gradient_routing",
    "noise_and_route",
    "npo",
    "post_training",
    "register_method",
    "repselect",
    "rmu",
    "slgr",
    "undo",
]
