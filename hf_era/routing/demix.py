"""The router `demix`: expert layers by domain (DEMix, Gururangan et al. 2021, arXiv 2108.05036)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hf_era.routing.router import PartRouting, Router, RoutingBatch, TokenRouting, register_router
from hf_era.utils.checks import unknown_value_message
from hf_era.utils.fields import setting

UNLABELLED_CHOICES = ("retain", "all")


@register_router
@dataclass(frozen=True)
class DEMixRouter(Router):
    """In the target layers a forget example runs with its module *in place of* the original MLP, a retain example with that
    alone; all else is shared, and learns from both.

    The core is therefore taught by forget examples everywhere but in the MLPs of the target layers. There the experts are as
    wide as the MLP; here the module is as wide as the expansion says (`width_ratio: 1.0`).

    Args:
        unlabelled (`str`, *optional*): what examples without a label run with: `retain`, as retain examples; `all`, with the
            original MLP and every module. Not given: the method has nothing to say of them, and such data is refused.

    Raises:
        ValueError: for another choice.
    """

    name: ClassVar[str] = "demix"
    decides_by_example: ClassVar[bool] = True
    replaces_original: ClassVar[bool] = True
    unlabelled: str | None = setting(
        None, "What examples without a label run with: retain or all. Not given: they are refused.", identity=True
    )

    def __post_init__(self) -> None:
        if self.unlabelled is not None and self.unlabelled not in UNLABELLED_CHOICES:
            raise ValueError(unknown_value_message("router.unlabelled", self.unlabelled, UNLABELLED_CHOICES))

    @property
    def needs_labels(self) -> bool:
        return self.unlabelled is None

    def route(self, batch: RoutingBatch) -> TokenRouting:
        dtype = batch.routing_weight.dtype
        with_all = batch.is_unlabelled & (self.unlabelled == "all")  # (batch, 1)
        modules = {}
        for name in batch.modules:
            elsewhere = batch.belongs_elsewhere(name)
            own = batch.is_forget if elsewhere is None else batch.is_forget & ~elsewhere
            modules[name] = PartRouting(dial=(own | with_all).squeeze(1).to(dtype))
        return TokenRouting(PartRouting(dial=(~batch.is_forget).squeeze(1).to(dtype)), modules)
