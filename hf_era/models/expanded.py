"""What the expanded causal LMs of all families share: expand, route, ablate, contract."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from hf_era.models.config import ExpansionConfig
from hf_era.models.families.family import ArchitectureSpec
from hf_era.models.layers import AuxiliaryMLP, RoutingChannel, expand_layer
from hf_era.models.whole_weights import model_around, whole_weights
from hf_era.routing import GradientMultipliers, build_token_routing


class ExpandedCausalLMMixin:
    """Mixed into a family's causal LM, before the stock class.

    Attributes:
        gradient_multipliers (`GradientMultipliers`): what the routing weights 0 and 1 mean. A training setting, so it is
            not saved with the model; `GradientRoutingTrainer` sets it from its config.
    """

    stock_class: ClassVar[type]
    architecture: ClassVar[ArchitectureSpec]
    expanded_block_class: ClassVar[type]
    expanded_mlp_class: ClassVar[type]
    gradient_multipliers: GradientMultipliers = GradientMultipliers()

    # ---- Expand ----

    @classmethod
    def from_base(
        cls, base: str | os.PathLike[str] | nn.Module, expansion: ExpansionConfig | None = None, **kwargs: Any
    ) -> Any:
        """Expands a stock model: its weights keep their values, the auxiliary modules start at random.

        Args:
            base (`str`, path or stock model): a local directory, a hub id, or a model in memory (which is copied).
            expansion (`ExpansionConfig`, *optional*): where and how wide. Not given: its defaults.
            kwargs: passed to `from_pretrained` (`dtype`, `revision`, `cache_dir`, ...); with a model in memory: `dtype`.

        Raises:
            ValueError: if the base is of another architecture, is expanded already, does not exist or cannot be
                reached, or if the expansion does not fit it.
        """
        from hf_era.models.loading import expand_checkpoint, expand_model

        expansion = expansion or ExpansionConfig()
        if isinstance(base, nn.Module):
            return expand_model(cls, base, expansion, **kwargs)
        return expand_checkpoint(cls, base, expansion, **kwargs)

    def expand_target_layers(self) -> None:
        """Adds the auxiliary modules that the config describes. Called once, by the constructor."""
        config: Any = self.config  # type: ignore[attr-defined]
        spec, expansion = self.architecture, config.expansion_config
        self.routing_channel = RoutingChannel()
        blocks = spec.get_blocks(self)  # type: ignore[arg-type]
        for layer in expansion.resolve_layers(spec.layers_of(config)):
            auxiliary = AuxiliaryMLP(
                getattr(config, spec.hidden_size),
                expansion.width,
                getattr(config, spec.activation),
                config.initializer_range * expansion.initialization_scale,
            )
            expand_layer(
                blocks[layer],
                spec.mlp,
                (self.expanded_block_class, self.expanded_mlp_class),
                {expansion.module_name: auxiliary},
                self.routing_channel,
            )

    def block_class_names(self) -> list[str]:
        """The classes of the blocks that are there: FSDP wraps each block, and refuses the name of one that is not there."""
        return sorted({type(block).__name__ for block in self.architecture.get_blocks(self)})  # type: ignore[arg-type]

    def initialize_weights(self) -> None:
        # Not in `_init_weights`: transformers hands the blocks to the `_init_weights` of the inner stock model, which
        # knows nothing of auxiliary modules and would start them at the model's own scale, whatever the expansion says.
        pending = [
            module
            for layer in self.auxiliary_modules().values()
            for module in layer.values()
            if not getattr(module, "_is_hf_initialized", False)
        ]
        super().initialize_weights()  # type: ignore[misc]
        for module in pending:
            module.initialize()

    # ---- Route ----

    def forward_with_routing(
        self,
        stock_forward: Callable[..., Any],
        *,
        routing_weight: Tensor | None,
        output_activation_l1: bool,
        **inputs: Any,
    ) -> Any:
        """Runs the stock forward pass with the routing in reach of the target layers."""
        given = inputs.get("input_ids") if inputs.get("input_ids") is not None else inputs.get("inputs_embeds")
        routing = build_token_routing(
            routing_weight,
            self.gradient_multipliers,
            inputs.get("attention_mask"),
            output_activation_l1,
            shape=None if given is None else tuple(given.shape[:2]),
        )
        self.routing_channel.open(routing)
        try:
            outputs = stock_forward(**inputs)
        finally:
            activation_l1 = self.routing_channel.close()
        if isinstance(outputs, tuple):
            return outputs if activation_l1 is None else (*outputs, activation_l1)
        return ExpandedCausalLMOutput(**outputs, activation_l1=activation_l1)

    # ---- Ablate and contract ----

    def auxiliary_modules(self) -> dict[int, dict[str, AuxiliaryMLP]]:
        """The auxiliary modules: layer index -> module name -> module."""
        found: dict[int, dict[str, AuxiliaryMLP]] = {}
        for layer, block in enumerate(self.architecture.get_blocks(self)):  # type: ignore[arg-type]
            auxiliary = getattr(self.architecture.get_mlp(block), "auxiliary", None)
            if auxiliary is not None:
                found[layer] = dict(auxiliary.items())
        return found

    def is_auxiliary_parameter(self, name: str) -> bool:
        """Whether a parameter or state-dict key belongs to an auxiliary module."""
        return f".{self.architecture.mlp}.auxiliary." in name

    def set_ablated(self, ablated: bool) -> None:
        """Switches all auxiliary modules off (`True`) or on (`False`), in place."""
        for modules in self.auxiliary_modules().values():
            for module in modules.values():
                module.active = not ablated

    @contextmanager
    def ablated(self) -> Iterator[Any]:
        """Within this context the auxiliary modules are off; afterwards each is as it was before."""
        modules = [module for layer in self.auxiliary_modules().values() for module in layer.values()]
        before = [module.active for module in modules]
        self.set_ablated(True)
        try:
            yield self
        finally:
            for module, active in zip(modules, before, strict=True):
                module.active = active

    @torch.no_grad()
    def contract(self) -> Any:
        """A stock model without the auxiliary modules, with its own storage, on the same device and in the same dtype.

        Its weights are those of this model, bit for bit, and so are its logits those of this model while `ablated()`, up
        to the rounding of the fast paths that the stock class does not have (bit for bit with those switched off). Tied
        weights stay tied, and the generation config is carried over.

        A model sharded by FSDP2 is gathered: every process must call this, and each gets a whole model, on the CPU.
        """
        return self.contract_weights(whole_weights(self))  # type: ignore[arg-type]

    @torch.no_grad()
    def contract_weights(self, weights: dict[str, Tensor]) -> Any:
        """As `contract`, from whole weights (`whole_weights`) of this model."""
        # Cloned: a saved view of a shared storage could carry bytes of what was removed.
        kept = {name: value.clone() for name, value in weights.items() if not self.is_auxiliary_parameter(name)}
        config: Any = self.config  # type: ignore[attr-defined]
        return model_around(self.stock_class, config.to_base_config(), kept, self)


@dataclass
class ExpandedCausalLMOutput(CausalLMOutputWithPast):
    """`CausalLMOutputWithPast` and the activations' L1 norm.

    Attributes:
        activation_l1 (`torch.FloatTensor`, *optional*): scalar, fp32: sum of |activation| over real tokens, target
            layers, original dims and active auxiliary modules. Given with `output_activation_l1=True`.
    """

    activation_l1: torch.Tensor | None = None
