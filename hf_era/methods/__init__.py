"""What a run can do: gradient routing and the controls it is compared with, one file each. To add one: `method.py`."""

from hf_era.methods import (
    base,
    data_filtering,
    gradient_routing,
    noise_distil_route,
    post_training,
    repselect,
    undo,
)  # each registers itself
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
    "get_method",
    "gradient_routing",
    "noise_distil_route",
    "post_training",
    "register_method",
    "repselect",
    "undo",
]
