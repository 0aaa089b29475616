"""What the expanded causal LMs of all families share: expand, route, ablate, contract.

Which modules are added, one or several, says `hf_era.models.config`; what a module computes, `hf_era.models.layers`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization
from transformers.modeling_outputs import CausalLMOutputWithPast

from hf_era.models.adapters import are_adapters_kept, has_adapters, saved_merged, without_adapters
from hf_era.models.attention_heads import expand_attention
from hf_era.models.base_checks import check_arguments
from hf_era.models.config import ExpansionConfig, ModuleConfig
from hf_era.models.core_routing import keep_core_routed, route_core
from hf_era.models.families.family import Family
from hf_era.models.fast.causal_lm import FastPaths, label_losses, set_fast_paths, stock_losses
from hf_era.models.folding import check_keep, widen
from hf_era.models.generation_config import make_generation_config_savable
from hf_era.models.layers import MODULE_KINDS, AuxiliaryModule, collapse_block, collapse_part, expand_layer
from hf_era.models.loading import expand_checkpoint, expand_model
from hf_era.models.loading_hint import write_readme
from hf_era.models.module_files import ModuleFilesMixin, save_in_parts
from hf_era.models.module_switches import ModuleSwitchesMixin
from hf_era.models.running_call import RoutingChannel
from hf_era.models.stock_forward import give_forward
from hf_era.models.whole_weights import follow_attention, model_around, whole_weights
from hf_era.routing import (
    ActivationRouter,
    GradientMultipliers,
    Router,
    TokenRouting,
    build_token_routing,
    keys_of_examples,
)


@dataclass
class ExpandedCausalLMOutput(CausalLMOutputWithPast):
    """`CausalLMOutputWithPast` and the activations' L1 norm.

    Attributes:
        cross_attentions (*optional*): what some stock classes (GPT-2) have a place for; always `None`.
        activation_l1 (`torch.FloatTensor`, *optional*): scalar, fp32 (fp64 for an fp64 model): sum of |activation| over
            real tokens, target layers, original dims and active auxiliary modules. Given with
            `output_activation_l1=True`.
    """

    cross_attentions: tuple[torch.Tensor, ...] | None = None
    activation_l1: torch.Tensor | None = None


class ExpandedCausalLMMixin(ModuleSwitchesMixin, ModuleFilesMixin):
    """Mixed into a family's stock causal LM. The family is registered with `register_family`.

    Attributes:
        family (`Family`): all that is known of it.
        router (`Router`): what the routing weights 0 and 1 mean; `activation` if none is set. A training setting, so it is
            not saved with the model; `GradientRoutingTrainer` sets it from its config.
        fast_paths (`FastPaths`): which parts of the family's fast path are on, where it has one.
        module_names (`list[str]`): of the auxiliary modules, in the config's order.

    Switching modules on, off or to a dial: `ModuleSwitchesMixin`; modules as files: `ModuleFilesMixin`.
    """

    family: ClassVar[Family]
    stock_class: ClassVar[type]
    # The loss is divided by `num_items_in_batch` when it is given, and the Trainer should give it.
    accepts_loss_kwargs = True

    _router: Router = ActivationRouter()
    fast_paths: FastPaths = FastPaths()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if ExpandedCausalLMMixin in cls.__bases__:  # a family's class, and not one that something made of it
            cls.stock_class = cls.__bases__[cls.__bases__.index(ExpandedCausalLMMixin) + 1]
            give_forward(cls, cls.stock_class, _expanded_forward)

    # ---- Expand ----

    def __init__(self, config: Any) -> None:
        fast, stock_constructor = self.family.fast_path, super().__init__
        if fast is None:
            stock_constructor(config)  # type: ignore[call-arg]
        else:
            fast.construct(self, stock_constructor, config)  # type: ignore[arg-type]
        self._expand_target_layers()
        if fast is not None:
            fast.expand(self)
        self.post_init()  # type: ignore[attr-defined]
        self._no_split_modules: Any = self.block_class_names()

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
            ValueError: if the base is of another family, is expanded already, has adapters, is quantised, has no head, does
                not exist or cannot be reached, or the expansion does not fit it.
        """
        check_arguments(base, expansion)
        expansion = expansion or ExpansionConfig()
        if isinstance(base, nn.Module):
            return expand_model(cls, base, expansion, **kwargs)
        return expand_checkpoint(cls, base, expansion, **kwargs)

    def _expand_target_layers(self) -> None:
        """Adds the auxiliary modules that the config describes."""
        modules = self.config.expansion_config.module_configs  # type: ignore[attr-defined]
        self.routing_channel, self.module_names = RoutingChannel(), [module.name for module in modules]
        number = self.family.layers_of(self.config)  # type: ignore[attr-defined]
        layers = {module.name: set(module.resolve_layers(number)) for module in modules}
        for layer, block in enumerate(self.family.get_blocks(self)):  # type: ignore[arg-type]
            auxiliary = {module.name: self._new_module(module) for module in modules if layer in layers[module.name]}
            if auxiliary:
                self._put_beside(block, auxiliary)

    def _new_module(self, module: ModuleConfig) -> AuxiliaryModule:
        """A module for one layer, as its config has it."""
        return MODULE_KINDS[module.kind].for_model(module, self)

    def _put_beside(self, block: nn.Module, auxiliary: dict[str, AuxiliaryModule]) -> None:
        """Puts modules, by name, into a block, which becomes a target layer. What routes the core is to be taken away
        before, and put back after."""
        family, heads = self.family, {name: part for name, part in auxiliary.items() if part.place == "attention"}
        others = {name: part for name, part in auxiliary.items() if name not in heads}
        call = expand_layer(block, family.mlp, family.down_projection, others, self.routing_channel)
        if heads and family.attention is not None:
            expand_attention(block, family.attention, heads, call)

    def _take_out(self, block: nn.Module, name: str) -> None:
        """Takes a module out of a block, which becomes a stock one with the last."""
        parts = [part for part, _ in self.family.expanded_parts(block)]
        for part in parts:
            if name in part.auxiliary:
                del part.auxiliary[name]
        is_stock = not any(part.auxiliary for part in parts)
        for part in parts:
            # The MLP beside heads stays routed.
            if is_stock or (not part.auxiliary and part is not self.family.get_mlp(block)):
                collapse_part(part)
        if is_stock:
            collapse_block(block)

    def block_class_names(self) -> list[str]:
        """The classes of the blocks that are there: FSDP wraps each block, and refuses the name of one that is not there."""
        return sorted({type(block).__name__ for block in self.family.get_blocks(self)})  # type: ignore[arg-type]

    def initialize_weights(self) -> None:
        # Not in `_init_weights`: transformers hands the blocks to the `_init_weights` of the inner stock model, which
        # knows nothing of auxiliary modules and would start them at the model's own scale, whatever the expansion says.
        pending = [module for module in self._modules_named(None) if not getattr(module, "_is_hf_initialized", False)]
        super().initialize_weights()  # type: ignore[misc]
        # Within the guard, torch's own functions spare loaded parameters too: a kind of module may use either.
        with initialization.guard_torch_init_functions():
            for module in pending:
                module.initialize()

    # ---- Route ----

    @property
    def router(self) -> Router:
        """What the routing weights mean. Setting it lets the parameters of its core be reached; raises `ValueError` if one
        cannot be."""
        return self._router

    @router.setter
    def router(self, router: Router) -> None:
        route_core(self, router)
        self._router = router
        self._no_split_modules = self.block_class_names()

    @property
    def gradient_multipliers(self) -> GradientMultipliers:
        """Of the router `activation`, which setting them chooses. Raises `ValueError` if there is another router."""
        if not isinstance(self.router, ActivationRouter):  # no `AttributeError`: torch would replace its text
            raise ValueError(
                f"The router `{self.router.name}` has no gradient multipliers. Look at `model.router`, or set them, which "
                "chooses the router `activation`."
            )
        return self.router.multipliers

    @gradient_multipliers.setter
    def gradient_multipliers(self, multipliers: GradientMultipliers) -> None:
        self.router = ActivationRouter(multipliers)

    def set_fast_paths(self, fast_paths: FastPaths) -> None:
        """Switches the parts of the family's fast path on or off, in place. Without a fast path it changes nothing."""
        set_fast_paths(self, fast_paths)

    def label_losses(self, labels: Tensor, **inputs: Any) -> Tensor:
        """Negative log-likelihood of each label: (batch, seq - 1), nats; see `hf_era.models.fast.causal_lm.label_losses`."""
        return label_losses(self, labels, **inputs)

    def _compute(self, stock_forward: Callable[..., Any], inputs: dict[str, Any], skip_logits: bool | None) -> Any:
        if self.family.fast_path is not None:
            return self.family.fast_path.forward(self, stock_forward, inputs, skip_logits)
        return stock_losses(stock_forward, inputs, inputs.pop("loss_reduction", "mean"))

    # ---- Save and contract ----

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As transformers', with a `README.md` that says how to load it, unless there is one. A model of a family that is
        not registered is saved in parts, as its base and a file for each module (`hf_era.models.load_expanded`). Adapters
        (peft) are merged. Neither holds for the checkpoints of a training, which goes on from them."""
        if saved_merged(self, save_directory, *args, **kwargs):
            return
        if not self.family.is_registered and not are_adapters_kept():
            save_in_parts(self, save_directory, *args, **kwargs)
            return
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if kwargs.get("is_main_process", True) and not has_adapters(self):
            write_readme(Path(save_directory), self.config)  # type: ignore[attr-defined]

    @torch.no_grad()
    def contract(self, keep: Sequence[str] = ()) -> Any:
        """A stock model without the auxiliary modules, with its own storage, on the same device and in the same dtype.

        Its weights are those of this model, bit for bit, and so are its logits those of this model while `ablated()`, up
        to the rounding of the fast paths that the stock class does not have (bit for bit with those switched off). Tied
        weights stay tied; what is frozen, the mode and the generation config are carried over. Adapters (peft) are merged.
        If the configs could not be saved, they are repaired with a `GenerationConfigWarning`, in this model too.

        A model sharded by FSDP2 is gathered: every process must call this, and each gets a whole model, on the CPU.

        Args:
            keep (`list[str]`, *optional*): names of modules that stay, whether they are on or not: folded into the MLP, at
                their dials, which makes it wider in all layers. The logits are those of this model with these modules on and
                all others off, to rounding. Modules of the kind `mlp` alone, in families whose config has the MLP's width.

        Raises:
            ValueError: for an adapter on a tied weight, a config that cannot be saved, a name in `keep` that no module has,
                or a module that cannot be folded in.
        """
        check_keep(self, keep)  # before anything is gathered
        return self.contract_weights(whole_weights(self), keep)  # type: ignore[arg-type]

    @torch.no_grad()
    def contract_weights(self, weights: dict[str, Tensor], keep: Sequence[str] = ()) -> Any:
        """As `contract`, from whole weights (`whole_weights`) of this model."""
        names = check_keep(self, keep)
        make_generation_config_savable(self)
        merged = without_adapters(self)
        if merged is not self:
            return merged.contract(keep)
        config: Any = self.config.to_base_config()  # type: ignore[attr-defined]
        widened = widen(config, self, weights, names) if names else {}
        # Cloned: a saved view of a shared storage could carry bytes of what was removed.
        kept = {
            name: widened[name] if name in widened else value.clone()
            for name, value in weights.items()
            if not self.is_auxiliary_parameter(name)
        }
        follow_attention(config, self, self.stock_class)
        return model_around(self.stock_class, config, kept, self)


def _expanded_forward(
    self: Any,
    inputs: dict[str, Any],
    *,
    routing_weight: Tensor | None = None,
    output_activation_l1: bool = False,
    module_activity: Tensor | None = None,
    module_index: Tensor | None = None,
    is_unassigned: Tensor | None = None,
    routing_seed: Tensor | int | None = None,
    skip_logits: bool | None = None,
) -> Any:
    """The stock class's forward pass, and arguments of its own. The forward values do not depend on the first two, with
    the routers `activation` and `parameter`.

    Args:
        routing_weight (`Tensor`, *optional*): (batch, seq), floating, range [0, 1]: 1 = treat as retain, 0 = treat as
            forget. Position i holds the weight of token i + 1, which it predicts. `None`: no routing.
        output_activation_l1 (`bool`, *optional*, defaults to `False`): also return `activation_l1`.
        module_activity (`Tensor`, *optional*): (batch, modules), range [0, 1], in the order of `module_names`: how much of
            each module takes part in each example. `None`: all of it.
        module_index (`Tensor`, *optional*): (batch,), int64: which of `module_names` an example belongs to, for routers that
            tell modules apart; -1: none. `None`: forget tokens belong to all modules alike.
        is_unassigned (`Tensor`, *optional*): (batch, seq), bool: tokens of examples that are neither forget nor retain, for
            routers that treat them apart. `None`: there are none. (The Trainer takes whatever has "label" in its name for
            labels.)
        routing_seed (`int` or scalar `Tensor`, *optional*): for routers that draw at random: an example's draw follows from
            this and its tokens, whatever batch it is in. `None`: torch's own random numbers.
        skip_logits (`bool`, *optional*): with `labels`, where the family has a fast path: compute the loss without ever
            holding the logits, and return none. Not given: while training. `False`: always return logits.
    """
    if routing_weight is not None:
        keep_core_routed(self)
    given = inputs.get("input_ids") if inputs.get("input_ids") is not None else inputs.get("inputs_embeds")
    keys = None
    if self.router.is_random and routing_seed is not None and inputs.get("input_ids") is not None:
        keys = keys_of_examples(inputs["input_ids"], inputs.get("attention_mask"), routing_seed)
    routing = build_token_routing(
        routing_weight,
        self.router,
        self.module_names,
        module_activity,
        inputs.get("attention_mask"),
        output_activation_l1,
        shape=None if given is None else tuple(given.shape[:2]),
        is_unassigned=is_unassigned,
        module_index=module_index,
        keys=keys,
    )
    stock_forward = super(ExpandedCausalLMMixin, self).forward
    return run_with_routing(self.routing_channel, routing, lambda: self._compute(stock_forward, inputs, skip_logits))


def run_with_routing(channel: RoutingChannel, routing: TokenRouting | None, forward: Callable[[], Any]) -> Any:
    """A forward pass whose layers read `routing`; its output holds the L1 norm, too, if they measured it."""
    channel.open(routing)
    try:
        outputs = forward()
    finally:
        activation_l1 = channel.close()
    if isinstance(outputs, tuple):
        return outputs if activation_l1 is None else (*outputs, activation_l1)
    return ExpandedCausalLMOutput(**outputs, activation_l1=activation_l1)
