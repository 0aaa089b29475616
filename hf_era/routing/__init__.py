"""Where the gradient is scaled, by how much, and for which tokens. torch only."""

from hf_era.routing.frequency import FrequencyRow, FrequencyTable, count_tokens
from hf_era.routing.gradient_scaling import scale_gradient
from hf_era.routing.multipliers import GradientMultipliers
from hf_era.routing.routed_gelu import routed_gelu
from hf_era.routing.rules import (
    RoutingRuleConfig,
    align_stories_to_prediction,
    align_to_prediction,
    token_weights,
    weigh_tokens,
)
from hf_era.routing.token_routing import TokenRouting, activation_l1, build_token_routing

__all__ = [
    "FrequencyRow",
    "FrequencyTable",
    "GradientMultipliers",
    "RoutingRuleConfig",
    "TokenRouting",
    "activation_l1",
    "align_stories_to_prediction",
    "align_to_prediction",
    "build_token_routing",
    "count_tokens",
    "routed_gelu",
    "scale_gradient",
    "token_weights",
    "weigh_tokens",
]
