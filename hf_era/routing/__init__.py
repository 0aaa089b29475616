"""Where the gradient is scaled (`scaling`), by whom (`router`, and a file per router), and for which tokens (`mask_rules`).

torch only.
"""

from hf_era.routing.activation import ActivationRouter, GradientMultipliers
from hf_era.routing.demix import DEMixRouter
from hf_era.routing.gram import GRAMRouter
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
from hf_era.routing.parameter import ParameterRouter
from hf_era.routing.router import (
    PartRouting,
    Router,
    RoutingBatch,
    TokenRouting,
    build_token_routing,
    keys_of_examples,
    make_router,
    register_router,
)
from hf_era.routing.scaling import (
    activation_l1,
    linear_with_scaled_weight_gradient,
    routed_gelu,
    scale_gradient,
    scale_norm_weight_gradient,
)
from hf_era.routing.sgtm import SGTMRouter

__all__ = [
    "ActivationRouter",
    "DEMixRouter",
    "FrequencyRow",
    "FrequencyTable",
    "GRAMRouter",
    "GradientMultipliers",
    "ParameterRouter",
    "PartRouting",
    "Router",
    "RoutingBatch",
    "RoutingRuleConfig",
    "SGTMRouter",
    "TokenRouting",
    "activation_l1",
    "align_stories_to_prediction",
    "align_to_prediction",
    "build_token_routing",
    "count_tokens",
    "keys_of_examples",
    "linear_with_scaled_weight_gradient",
    "make_router",
    "register_router",
    "routed_gelu",
    "scale_gradient",
    "scale_norm_weight_gradient",
    "token_weights",
    "weigh_tokens",
]
