"""A family that nobody registered, opened by the names of its parts, as peft's `target_modules` opens a model.

    expand_base(model, ExpansionConfig(mlp="mlp", down_projection="down_proj"))

Where the blocks are, whether the MLP is gated and what the config calls its sizes is read off the stock model, on the meta
device. Whether the model then computes what it should is tried out when it is expanded: `hf_era.models.self_check`. Such a
family takes no fast path, and the Auto classes do not know it: it is saved as its base and a file for each module.
"""

from functools import cache
from typing import Any, NamedTuple

from torch import nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from hf_era.models.config import ExpandedConfigMixin, ExpansionConfig
from hf_era.models.expanded import ExpandedCausalLMMixin
from hf_era.models.families.family import EXPANDED_PREFIX, Family, register_stored_names
from hf_era.models.layers import LINEAR_CLASSES
from hf_era.models.size import check_model_fits
from hf_era.utils.checks import listed, short_repr
from hf_era.utils.suggestions import did_you_mean

HIDDEN_SIZE = ("hidden_size", "n_embd", "d_model", "dim")
NUMBER_OF_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
INTERMEDIATE_SIZE = ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim")
ACTIVATION = ("hidden_act", "hidden_activation", "activation_function", "activation", "act_fn", "mlp_hidden_act")
"""What configs call these fields, the usual name first."""

_WORKS_ANYWAY = "`hf-era eval` and `hf-era relearn` work for it all the same."


class Parts(NamedTuple):
    """What tells one opened family from another: these attributes of `Family`."""

    blocks: str
    mlp: str
    down_projection: str
    gated: bool
    hidden_size: str
    number_of_layers: str
    activation: str
    intermediate_size: str | None


def open_family(base_config: Any, expansion: ExpansionConfig) -> Family:
    """The family of a stock config whose parts the expansion names; the same object for the same parts.

    Raises:
        ValueError: if the model has no such parts, or its MLPs are of no form that an auxiliary MLP can have.
    """
    model = check_model_fits("model.base", base_config)
    model_type, name, down_name = base_config.model_type, str(expansion.mlp), str(expansion.down_projection)
    path, blocks = _find_blocks(model, model_type, name, down_name)
    layers = _target_layers(blocks, model_type, name, expansion)
    forms = {layer: _form(getattr(blocks[layer], name), model_type, name, down_name) for layer in layers}
    inner, hidden, gated = forms[layers[0]]
    if len(set(forms.values())) > 1:
        raise ValueError(
            f"The MLPs of `{model_type}` are not alike (hidden units, width, gated or not), by layer: {forms}. Name layers "
            "of one kind with `expansion.target_layers`."
        )
    parts = Parts(
        blocks=path,
        mlp=name,
        down_projection=down_name,
        gated=gated,
        hidden_size=_field_of(base_config, HIDDEN_SIZE, hidden, "width of the residual stream"),
        number_of_layers=_field_of(base_config, NUMBER_OF_LAYERS, len(blocks), "number of blocks"),
        activation=_activation_field(base_config),
        intermediate_size=_first_field(base_config, INTERMEDIATE_SIZE, inner),
    )
    config_class: Any = type(base_config)
    model_class: Any = type(model)
    return _opened(config_class, model_class, parts)


# ---- Where things are ----


def _find_blocks(model: nn.Module, model_type: str, name: str, down: str) -> tuple[str, nn.ModuleList]:
    lists = {path: part for path, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part)}
    found = {
        path: part for path, part in lists.items() if all(isinstance(getattr(b, name, None), nn.Module) for b in part)
    }
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        raise ValueError(
            f"`expansion.mlp` is {name!r}, and several lists of blocks of `{model_type}` have one: {listed(found)}. A model "
            f"with more than one kind of blocks cannot be opened by names. {_WORKS_ANYWAY}"
        )
    path, blocks = max(lists.items(), key=lambda item: sum(p.numel() for p in item[1].parameters()), default=("", []))
    if not blocks:
        raise ValueError(f"`{model_type}` has no list of blocks, so no module can be put into them. {_WORKS_ANYWAY}")
    block: nn.Module = blocks[0]
    children = dict(block.named_children())
    in_the_block = [child for child, part in children.items() if isinstance(part, LINEAR_CLASSES)]
    if down in in_the_block or (name in in_the_block):
        raise ValueError(
            f"The blocks of `{model_type}` (`{path}`, {type(block).__name__}) have the layers of their MLP in the block "
            f"itself: {listed(in_the_block)}. A module stands beside an MLP that is a part of its own, so this family "
            f"cannot be opened by names. Choose a base whose blocks have one. {_WORKS_ANYWAY}"
        )
    raise ValueError(
        f"`expansion.mlp` is {name!r}, but the blocks of `{model_type}` (`{path}`, {type(block).__name__}) have no such "
        f"part.{did_you_mean(name, list(children))} They have: {listed(children)}. If none of them is an MLP, the family "
        f"cannot be expanded; {_WORKS_ANYWAY}"
    )


def _target_layers(blocks: nn.ModuleList, model_type: str, name: str, expansion: ExpansionConfig) -> list[int]:
    """The layers to look at: those of the modules, or all that could have one if there is no module yet.

    Raises:
        ValueError: if the MLP of one of them chooses among experts.
    """
    experts = {layer: found for layer, block in enumerate(blocks) if (found := _experts_in(getattr(block, name)))}
    dense = [layer for layer in range(len(blocks)) if layer not in experts]
    layers = expansion.resolve_layers(len(blocks)) or dense or list(range(len(blocks)))
    wrong = [layer for layer in layers if layer in experts]
    if not wrong:
        return layers
    way_out = f"Layers without experts: {dense}; name them with `expansion.target_layers`." if dense else _WORKS_ANYWAY
    raise ValueError(
        f"`{name}` of layer {wrong[0]} of `{model_type}` ({type(getattr(blocks[wrong[0]], name)).__name__}) is a mixture of "
        f"experts (`{experts[wrong[0]]}`): each token runs through some of them, and there is no one down projection whose "
        f"input could be routed. {way_out}"
    )


def _experts_in(mlp: nn.Module) -> str | None:
    """The name of what makes a mixture of experts of an MLP: a list of parts, or stacked weights."""
    lists = [path for path, part in mlp.named_modules() if isinstance(part, (nn.ModuleList, nn.ModuleDict))]
    stacked = [path for path, value in mlp.named_parameters() if value.dim() > 2]
    return next(iter([*lists, *stacked]), None)


def _form(mlp: nn.Module, model_type: str, name: str, down_name: str) -> tuple[int, int, bool]:
    """Hidden units, width of the residual stream, and whether the MLP is gated, from the shapes of its linear layers."""
    linear = {path: part for path, part in mlp.named_modules() if isinstance(part, LINEAR_CLASSES)}
    if down_name not in linear:
        parts = dict(mlp.named_modules())
        kind = f" is a {type(parts[down_name]).__name__}, no linear layer" if down_name in parts else " is not there"
        last = list(linear)[-1:]  # of the others none can be meant
        raise ValueError(
            f"`expansion.down_projection` is {down_name!r}, which{kind} in `{name}` of `{model_type}` "
            f"({type(mlp).__name__}).{did_you_mean(down_name, last)} Its linear layers: {listed(linear) or 'none'}."
        )
    inner, hidden = _shape(linear.pop(down_name))
    shapes = {path: _shape(layer) for path, layer in linear.items()}
    gated = {((hidden, inner),): False, ((hidden, inner),) * 2: True, ((hidden, 2 * inner),): True}
    form = gated.get(tuple(shapes.values()))
    if form is None:
        described = ", ".join(f"`{path}` {one} -> {other}" for path, (one, other) in shapes.items()) or "none"
        raise ValueError(
            f"With the down projection `{down_name}` ({inner} -> {hidden}), the MLP `{name}` of `{model_type}` is of no "
            f"form that is known. Its other linear layers: {described}. They should be one {hidden} -> {inner}, two of them "
            f"(then it is gated), or one {hidden} -> {2 * inner} (gate and up projection in one). Is another one the last?"
        )
    return inner, hidden, form


def _shape(layer: Any) -> tuple[int, int]:
    """Width of a linear layer's input, and of its output."""
    rows, columns = layer.weight.shape
    return (rows, columns) if isinstance(layer, Conv1D) else (columns, rows)


def _field_of(config: Any, names: tuple[str, ...], value: int, what: str) -> str:
    found = _first_field(config, names, value)
    if found is None:
        raise ValueError(
            f"The {what} of `{config.model_type}` is {value}, and none of the fields {listed(names)} of its config says so. "
            f"A family with a config of another shape is one file in `hf_era/models/families/`. {_WORKS_ANYWAY}"
        )
    return found


def _first_field(config: Any, names: tuple[str, ...], value: int) -> str | None:
    return next((name for name in names if getattr(config, name, None) == value), None)


def _activation_field(config: Any) -> str:
    for name in ACTIVATION:
        if isinstance(getattr(config, name, None), str) and getattr(config, name) in ACT2FN:
            return name
    given = {name: short_repr(getattr(config, name)) for name in ACTIVATION if getattr(config, name, None) is not None}
    said = f", only {given}, which is none of transformers' activation functions" if given else ""
    raise ValueError(
        f"The config of `{config.model_type}` does not name the activation function of its MLPs (looked for "
        f'{listed(ACTIVATION)}){said}. A module needs one: set it, for instance `base.config.hidden_act = "gelu"`, or add '
        '`"hidden_act": "gelu"` to the config.json of the base. The stock model does not read it.'
    )


# ---- Its classes ----


@cache
def _opened(stock_config_class: Any, stock_model_class: Any, parts: Parts) -> Family:
    made_of = (stock_config_class, stock_model_class, parts)

    class Config(ExpandedConfigMixin, stock_config_class):
        model_type = f"{EXPANDED_PREFIX}{stock_config_class.model_type}"
        expansion: dict | None = None

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _new, ("config", *made_of), self.__dict__

    class Model(ExpandedCausalLMMixin, stock_model_class):
        config_class = Config

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _new, ("model", *made_of), self.__dict__

    for made, stock in ((Config, stock_config_class), (Model, stock_model_class)):
        made.__name__ = made.__qualname__ = f"Expanded{stock.__name__}"
        made.__doc__ = (
            f"A `{stock.__name__}` with auxiliary modules, of a family that was opened by the names of its parts."
        )
    # Of an unknown checkpoint nobody knows which constants stand beside the weights: any may.
    family = Family(model_class=Model, fast_path=None, stored_buffers="", **parts._asdict())
    Config.opened_family = Model.family = family  # type: ignore[attr-defined]
    register_stored_names(family)
    return family


def _new(kind: str, *made_of: Any) -> Any:
    """An empty config or model of an opened family, for copies and pickles: its class was made on the way."""
    model_class = _opened(*made_of).model_class
    made = model_class if kind == "model" else model_class.config_class
    return made.__new__(made)
