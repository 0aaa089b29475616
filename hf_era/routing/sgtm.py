"""The router `sgtm`: selective gradient masking (safety-research/selective-gradient-masking)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hf_era.routing.parameter import own_alone
from hf_era.routing.router import (
    PartRouting,
    Router,
    RoutingBatch,
    TokenRouting,
    check_core,
    check_probability,
    register_router,
)
from hf_era.utils.fields import setting


@register_router
@dataclass(frozen=True)
class SGTMRouter(Router):
    """Forget examples teach their module alone; retain examples run, now and then, without the modules.

    | example | modules | core learns | modules learn |
    |---|---|---|---|
    | forget | on | w of each token: 0 where its routing weight is 0 | all |
    | retain, with probability `module_off_on_retain` | off | all | nothing |
    | retain else, and without a label | on | all | all |

    Here it is decided for each example, so that batches may be mixed; there for each optimizer step, whose batch is of one
    label. With such batches the gradients are the same. The forget part is there the last units and heads of a layer, here
    modules of the kinds `mlp` and `heads`. Norms, embeddings and the head are no core by default, as there.

    Args:
        module_off_on_retain (`float`, *optional*, defaults to `0.25`): in [0, 1]. There 0.25 for TinyStories and 0.10 for
            Wikipedia.
        core (`str`, *optional*, defaults to `"mlp+attention"`): `mlp`, `mlp+attention` or `all`: see `CORES`.

    Raises:
        ValueError: for another core, or a probability out of range.
    """

    name: ClassVar[str] = "sgtm"
    is_random: ClassVar[bool] = True
    decides_by_example: ClassVar[bool] = True
    module_off_on_retain: float = setting(
        0.25, "Probability that a retain example runs without the modules.", identity=True
    )
    core: str = setting("mlp+attention", "Which parameters are the core: mlp, mlp+attention or all.", identity=True)  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_probability("module_off_on_retain", self.module_off_on_retain)
        check_core(self.core)

    def route(self, batch: RoutingBatch) -> TokenRouting:
        is_retain = ~batch.is_forget & ~batch.is_unlabelled  # (batch, 1)
        is_off = is_retain & (batch.draw() < self.module_off_on_retain)
        weight = batch.routing_weight
        dial = (~is_off).squeeze(1).to(weight.dtype)
        ones = weight.new_ones(weight.shape)
        return TokenRouting(
            PartRouting(parameter_multiplier=weight),
            {
                name: PartRouting(parameter_multiplier=own_alone(ones, batch.belongs_elsewhere(name)), dial=dial)
                for name in batch.modules
            },
        )
