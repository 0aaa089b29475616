"""Where the gradient is scaled, by how much, and for which tokens. torch only."""

from hf_era.routing.activation import GradientMultipliers
from hf_era.routing.mask_rules import (
    FrequencyRow,
    FrequencyTable,
    RoutingRuleConfig,
    align_stories_to_prediction,
    align_to_prediction,
    count_tokens,
    token_weights,
    weigh_tokens,
)
from hf_era.routing.router import TokenRouting, activation_l1, build_token_routing
from hf_era.routing.scaling import routed_gelu, scale_gradient

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
