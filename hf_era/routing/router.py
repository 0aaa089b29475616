"""Routers: which parameters learn from a token, and which modules take part in an example.

A router is asked once for every forward pass that has routing weights. Two elements cover what the field does: a *forward
dial* per example and module, and a *gradient multiplier* per token, at the activation or at the parameters
(`hf_era.routing.scaling`). All of it is ordinary autograd, so it holds in mixed batches, under accumulation, DDP, FSDP2 and
checkpointing.

To add a router: `hf_era/routing/NAME.py` with a frozen dataclass over `Router`, decorated with `@register_router`, and its
import in `hf_era/routing/__init__.py`. `activation.py` is one at the activation, `parameter.py` one at the parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from hf_era.utils.checks import short_repr, unknown_key_message, unknown_value_message


class PartRouting:
    """What one forward pass does with one part of a target layer: its original dims, or one of its auxiliary modules.

    A plain object, neither loose tensors nor a dataclass: FSDP2's mixed precision casts every tensor that it finds among a
    block's arguments to the parameters' dtype, fields of dataclasses too, and 0.2 in bf16 is 0.2002.

    Attributes:
        activation_multiplier (`Tensor`, *optional*): (batch, seq), fp32: of the gradient at the input of the part's down
            projection; what lies before it gets the scaled gradient. `None`: 1.
        parameter_multiplier (`Tensor`, *optional*): (batch, seq), fp32: of the gradients of the part's parameters, that of
            the L1 term too; the gradient that flows on is whole. `None`: 1. Of the original dims it holds for all that the
            router counts as the core (`Router.core`).
        dial (`Tensor`, *optional*): (batch,), fp32, range [0, 1]: how much of the part's output takes part in the forward
            pass of each example. `None`: 1.
    """

    __slots__ = ("activation_multiplier", "dial", "parameter_multiplier")

    def __init__(
        self,
        activation_multiplier: Tensor | None = None,
        parameter_multiplier: Tensor | None = None,
        dial: Tensor | None = None,
    ) -> None:
        self.activation_multiplier, self.parameter_multiplier = activation_multiplier, parameter_multiplier
        self.dial = dial


class TokenRouting:
    """The routing of one forward pass. It travels as an argument of each block, never as state that outlives the call.

    Attributes:
        original (`PartRouting`): of the original dims of every target layer: its MLP, and its attention where heads were
            added beside it. Its parameter multiplier is that of the whole core.
        modules (`dict[str, PartRouting]`): of the auxiliary modules, by name; one that is not named is left alone.
        measure_activation_l1 (`bool`): whether target layers return the L1 norm of their activations.
        activation_mask (`Tensor`, *optional*): (batch, seq), fp32, 1 on real tokens and 0 on padding. `None`: all 1.
        core (`str`, *optional*): which parameters are the core, as in `Router.core`, which the model takes it from.
    """

    __slots__ = ("activation_mask", "core", "measure_activation_l1", "modules", "original")

    def __init__(
        self,
        original: PartRouting | None = None,
        modules: Mapping[str, PartRouting] | None = None,
        measure_activation_l1: bool = False,
        activation_mask: Tensor | None = None,
        core: str | None = None,
    ) -> None:
        self.original, self.modules = original or PartRouting(), dict(modules or {})
        self.measure_activation_l1, self.activation_mask = measure_activation_l1, activation_mask
        self.core = core

    def of(self, module: str | None) -> PartRouting:
        """The routing of an auxiliary module, or of the original dims for `None`."""
        return self.original if module is None else self.modules.get(module, _LEFT_ALONE)

    def core_multiplier(self, group: str) -> Tensor | None:
        """What the parameters of a group of the core learn of each token, (batch, seq); `None`: all. Groups: `mlp`,
        `attention`, `rest`."""
        is_core = group == "mlp" or self.core == "all" or (group == "attention" and self.core == "mlp+attention")
        return self.original.parameter_multiplier if is_core else None

    def l1_mask(self, module: str | None, shape: torch.Size) -> Tensor | None:
        """(batch, seq), fp32: 1 on the tokens whose activation the L1 norm counts: real ones, of examples that the module
        takes part in. `None`: all 1. A module that is off for an example is to learn nothing from it."""
        dial = self.of(module).dial
        if dial is None:
            return self.activation_mask
        takes_part = (dial > 0).to(torch.float32)[:, None]
        return takes_part.expand(shape) if self.activation_mask is None else takes_part * self.activation_mask


_LEFT_ALONE = PartRouting()


# ---- The interface ----


class RoutingBatch:
    """What a router is told of a batch. A plain object, as `PartRouting`.

    Attributes:
        routing_weight (`Tensor`): (batch, seq), fp32, range [0, 1]: 1 retain, 0 forget. Position i holds the weight of token
            i + 1, which it predicts. 1 for examples without a label.
        modules (`tuple[str, ...]`): names of the model's auxiliary modules, in order.
        module_index (`Tensor`, *optional*): (batch,), int64: which of `modules` an example belongs to; -1: none of them.
            `None`: it is not said, and forget tokens belong to all modules alike.
        is_unassigned (`Tensor`, *optional*): (batch, seq), bool: whether a token is of an example without a label. `None`:
            there are none.
        keys (`Tensor`, *optional*): (batch,), int64: what an example's random numbers follow from. `None`: torch's own.
    """

    __slots__ = ("is_unassigned", "keys", "module_index", "modules", "routing_weight")

    def __init__(
        self,
        routing_weight: Tensor,
        modules: Sequence[str] = (),
        module_index: Tensor | None = None,
        is_unassigned: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> None:
        self.routing_weight, self.modules = routing_weight, tuple(modules)
        self.module_index, self.is_unassigned, self.keys = module_index, is_unassigned, keys

    @property
    def is_forget(self) -> Tensor:
        """(batch, 1), bool: whether an example is labelled forget. All weights of the others are 1."""
        return (self.routing_weight < 1).any(dim=1, keepdim=True)

    @property
    def is_unlabelled(self) -> Tensor:
        """(batch, 1), bool: whether an example has no label."""
        if self.is_unassigned is None:
            return torch.zeros_like(self.is_forget)
        return self.is_unassigned.any(dim=1, keepdim=True)

    def draw(self, number: int = 0) -> Tensor:
        """(batch, 1), fp32: a random number in [0, 1) for each example; another `number`, other ones."""
        if self.keys is None:
            return torch.rand(len(self.routing_weight), 1, device=self.routing_weight.device)
        return uniform_of_keys(self.keys + number).unsqueeze(-1)

    def belongs_elsewhere(self, module: str) -> Tensor | None:
        """(batch, 1), bool: whether an example belongs to another module than this one; `None`: it is not said."""
        if self.module_index is None:
            return None
        index = self.module_index.unsqueeze(-1)
        return (index >= 0) & (index != self.modules.index(module))


@dataclass(frozen=True)
class Router:
    """Decides how each token of a batch is routed. A frozen dataclass whose fields are the router's settings.

    Attributes:
        name (`str`): as it stands in a config, `router: NAME`.
        core (`str`, *optional*): which parameters the multiplier of the original dims is for, one of `CORES`. `None`: the
            MLPs of the target layers alone, and their attention where heads were added beside it. A router may have it as a
            setting.
        is_random (`bool`): whether it draws (`RoutingBatch.draw`).
        skips_zero_gradients (`bool`): whether a parameter whose gradient is zero throughout is to be left alone by the
            optimizer: by its momentum and by weight decay too (`training.skip_zero_gradients`).
        replaces_original (`bool`): whether it runs examples with a module in place of the original MLP, so that every module
            has to stand beside the MLPs of all target layers.
        decides_by_example (`bool`): whether it asks if an *example* is labelled forget (`RoutingBatch.is_forget`), so that
            it cannot take scores, which give every example a weight below 1.
        needs_labels (`bool`): whether it has nothing to do with examples without a label, so that such data is refused.
    """

    name: ClassVar[str]
    core: ClassVar[str | None] = None
    is_random: ClassVar[bool] = False
    skips_zero_gradients: ClassVar[bool] = False
    replaces_original: ClassVar[bool] = False
    decides_by_example: ClassVar[bool] = False

    @property
    def needs_labels(self) -> bool:
        return False

    def route(self, batch: RoutingBatch) -> TokenRouting:
        """The routing of a batch: who learns what. Of the L1 norm and its mask the model decides; they need not be set.

        A router that does not look at `batch.is_unassigned` treats examples without a label as retain examples.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `route`.")

    def to_dict(self) -> dict[str, Any]:
        """The settings, with the name: what `make_router` takes."""
        return {"name": self.name, **dataclasses.asdict(self)}


CORES = ("mlp", "mlp+attention", "all")
"""Which parameters of the original model are the core: the linear layers of all MLPs; those of the attention too; all that
there are (norms, embeddings and LM head too)."""


def check_core(core: Any) -> None:
    """Raises `ValueError` for a core that there is not."""
    if core not in CORES:
        raise ValueError(unknown_value_message("router.core", core, CORES))


def check_probability(name: str, value: Any) -> None:
    """Raises `ValueError` for a setting of a router that is no number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"`router.{name}` should be a probability in [0, 1], got {short_repr(value)}.")


ROUTERS: dict[str, type[Router]] = {}
RouterClass = TypeVar("RouterClass", bound=type[Router])


def register_router(router_class: RouterClass) -> RouterClass:
    """Makes a router known under its name; a decorator.

    Raises:
        ValueError: if another router has that name.
    """
    known = ROUTERS.setdefault(router_class.name, router_class)
    if known is not router_class:
        raise ValueError(f"There is a router `{router_class.name}` already: {known.__name__}. Choose another name.")
    return router_class


def make_router(values: str | Mapping[str, Any]) -> Router:
    """A router of its name, or of a mapping with `name` and its settings.

    Raises:
        ValueError: for an unknown name or setting, or a setting out of range.
    """
    settings = {"name": values} if isinstance(values, str) else dict(values)
    name = settings.pop("name", None)
    if name is None:
        raise ValueError(f"`router` should be a name, or a mapping with `name`, got {short_repr(values)}.")
    if not isinstance(name, str) or name not in ROUTERS:
        raise ValueError(unknown_value_message("router", name, sorted(ROUTERS)))
    known = [item.name for item in dataclasses.fields(ROUTERS[name])]
    for key in settings:
        if key not in known:
            raise ValueError(unknown_key_message(f"`router` ({name})", key, known))
    return ROUTERS[name](**settings)


# ---- One forward pass ----


def build_token_routing(
    routing_weight: Tensor | None,
    router: Router,
    modules: Sequence[str] = (),
    module_activity: Tensor | None = None,
    attention_mask: Tensor | None = None,
    measure_activation_l1: bool = False,
    shape: tuple[int, ...] | None = None,
    is_unassigned: Tensor | None = None,
    module_index: Tensor | None = None,
    keys: Tensor | None = None,
) -> TokenRouting | None:
    """The routing of a forward pass; `None` where the target layers have nothing to do.

    Args:
        routing_weight (`Tensor`, *optional*): (batch, seq), range [0, 1]. `None` means that no gradient is routed.
        router (`Router`): what the two ends of that range mean.
        modules: names of the model's auxiliary modules.
        module_activity (`Tensor`, *optional*): (batch, modules), floating, range [0, 1]: how much of each module takes part
            in each example; what the router says is multiplied by it. `None`: 1.
        attention_mask (`Tensor`, *optional*): (batch, seq), 1 on real tokens, 0 on padding.
        measure_activation_l1 (`bool`, *optional*, defaults to `False`): also measure the L1 norm of the activations.
        shape (`tuple[int, ...]`, *optional*): (batch, seq) of the input ids, which the routing weights must have.
        is_unassigned, module_index, keys (`Tensor`, *optional*): as in `RoutingBatch`.

    Raises:
        ValueError: as `check_routing_weight`; for a `module_activity` of another shape or (on a CPU) with a value that is
            not in [0, 1]; or for a `module_index` of another shape or dtype, or (on a CPU) of a module that is not there.
    """
    if routing_weight is None and not measure_activation_l1 and module_activity is None:
        return None
    routed = TokenRouting()
    if routing_weight is not None:
        check_routing_weight(routing_weight, shape)
        if module_index is not None:
            _check_module_index(module_index, modules, len(routing_weight))
        batch = RoutingBatch(routing_weight.to(torch.float32), modules, module_index, is_unassigned, keys)
        routed = router.route(batch)
    # What the router gave is left as it is: it may give several modules the same object.
    parts = dict(routed.modules)
    if module_activity is not None:
        _check_module_activity(module_activity, modules, shape)
        for name, dial in zip(modules, module_activity.to(torch.float32).unbind(1), strict=True):
            part = routed.of(name)
            parts[name] = PartRouting(
                part.activation_multiplier, part.parameter_multiplier, dial if part.dial is None else part.dial * dial
            )
    mask = None
    if measure_activation_l1 and isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
        mask = attention_mask.to(torch.float32)
    return TokenRouting(routed.original, parts, measure_activation_l1, mask, router.core)


# ---- Random numbers of an example ----

_STEPS = (-7046029254386353131, -4658895280553007687, -7723592293110705685)  # of splitmix64, as signed integers


def keys_of_examples(input_ids: Tensor, attention_mask: Tensor | None, seed: Tensor | int) -> Tensor:
    """(batch,), int64: a number for each example that follows from its tokens and a seed, whatever batch it is in.

    Random routers draw from it, so that one process, accumulation and several processes draw alike.

    Args:
        input_ids (`Tensor`): (batch, seq), int64. attention_mask (`Tensor`, *optional*): (batch, seq), 1 on real tokens.
        seed (`int` or scalar `Tensor`): another one in each step.
    """
    is_real = torch.ones_like(input_ids, dtype=torch.int64)
    if isinstance(attention_mask, Tensor) and attention_mask.shape == input_ids.shape:
        is_real = attention_mask.to(torch.int64)
    # Positions among the real tokens: on which side the padding is, and how much, changes nothing.
    mixed = _mix(input_ids.to(torch.int64) * _STEPS[0] + is_real.cumsum(1) * _STEPS[1]) * is_real
    seeds = torch.as_tensor(seed, dtype=torch.int64, device=input_ids.device)
    return _mix(mixed.sum(dim=1) + seeds * _STEPS[2])


def uniform_of_keys(keys: Tensor) -> Tensor:
    """(batch,) int64 -> (batch,) fp32 in [0, 1)."""
    return ((_mix(keys) >> 40) & 0xFFFFFF).to(torch.float32) / (1 << 24)


def _mix(values: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014); int64 arithmetic wraps."""
    for shift, step in ((30, _STEPS[1]), (27, _STEPS[2])):
        values = (values ^ ((values >> shift) & ((1 << (64 - shift)) - 1))) * step
    return values ^ ((values >> 31) & ((1 << 33) - 1))


def _check_module_activity(activity: Tensor, modules: Sequence[str], shape: tuple[int, ...] | None) -> None:
    names = ", ".join(modules)
    wanted = f"(batch, {len(modules)})" if shape is None else f"({shape[0]}, {len(modules)})"
    is_tensor = isinstance(activity, Tensor) and not activity.is_complex()
    rows = activity.shape[0] if shape is None and is_tensor and activity.dim() else (shape or (0,))[0]
    if not is_tensor or tuple(activity.shape) != (rows, len(modules)):
        got = f"the shape {tuple(activity.shape)}" if isinstance(activity, Tensor) else short_repr(activity)
        raise ValueError(
            f"`module_activity` should be a tensor {wanted}: a number in [0, 1] for each example and module ({names}), got "
            f"{got}."
        )
    lowest, highest = _range_of(activity) or (0, 1)
    if not (lowest >= 0 and highest <= 1):  # NaN is neither
        raise ValueError(
            f"`module_activity` should be in [0, 1] (0 is off, 1 is on), got values from {lowest:g} to {highest:g}."
        )


def _check_module_index(index: Tensor, modules: Sequence[str], rows: int) -> None:
    if not isinstance(index, Tensor) or index.is_floating_point() or tuple(index.shape) != (rows,):
        got = f"{index.dtype} of shape {tuple(index.shape)}" if isinstance(index, Tensor) else short_repr(index)
        raise ValueError(
            f"`module_index` should be integers, one per example ({rows}): the place of its module in {list(modules)}, or "
            f"-1 for none, got {got}."
        )
    lowest, highest = _range_of(index) or (-1, -1)
    if lowest < -1 or highest >= len(modules):
        raise ValueError(
            f"`module_index` should be from -1 (none) to {len(modules) - 1}, of the modules {list(modules)}, got values "
            f"from {lowest} to {highest}."
        )


def _range_of(values: Tensor) -> tuple[float, float] | None:
    """The lowest and the highest value; `None` where it would cost to look (compiled, or on a GPU), or there are none."""
    if torch.compiler.is_compiling() or values.device.type != "cpu" or not values.numel():
        return None
    lowest, highest = torch.aminmax(values.detach())
    return lowest.item(), highest.item()


def check_routing_weight(routing_weight: Tensor, shape: tuple[int, ...] | None = None) -> None:
    """Refuses routing weights that would route wrongly without a word: a weight of 5 or NaN is no error to the arithmetic.

    Shape and dtype are always checked. The values are where that costs nothing: on a CPU, and not in compiled code; on a GPU
    the host would have to wait for the device in every step. There the collator has looked at them already.

    Args:
        routing_weight (`Tensor`): (batch, seq), floating.
        shape (`tuple[int, ...]`, *optional*): of the input ids.

    Raises:
        ValueError: for another shape or dtype, or a value that is not in [0, 1].
    """
    if not isinstance(routing_weight, Tensor) or not routing_weight.is_floating_point():
        kind = routing_weight.dtype if isinstance(routing_weight, Tensor) else type(routing_weight).__name__
        raise ValueError(f"`routing_weight` should be a floating tensor, got {kind}. Convert it, e.g. with `.float()`.")
    if shape is not None and tuple(routing_weight.shape) != tuple(shape):
        raise ValueError(
            f"`routing_weight` needs one value per token, shape {tuple(shape)}, got {tuple(routing_weight.shape)}. Pass a "
            "`routing_weight` of the same (batch, seq) as the input ids."
        )
    lowest, highest = _range_of(routing_weight) or (0, 1)
    if not (lowest >= 0 and highest <= 1):  # NaN is neither
        row = int(((routing_weight >= 0) & (routing_weight <= 1)).flatten(1).all(1).long().argmin())
        raise ValueError(
            f"`routing_weight` should be in [0, 1] (1 is retain, 0 is forget), got values from {lowest} to {highest}, "
            f"for instance in row {row} of the batch."
        )
