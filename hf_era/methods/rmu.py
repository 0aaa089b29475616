"""RMU: representations of forget tokens are pushed to a random direction, those of retain tokens held (2403.03218)."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_era.data.collator import IGNORE_INDEX
from hf_era.methods.method import Phase, Run, register_method
from hf_era.methods.post_training import OWN_LOSS
from hf_era.methods.unlearning import Unlearning, UnlearningTrainer
from hf_era.models import family_for
from hf_era.utils.checks import check_count, check_positive, short_repr, unknown_value_message
from hf_era.utils.fields import setting

TRAINED_PARTS = ("down_projection", "mlp")
DEPTH = 5 / 8
"""Of the layer whose input is steered: layer 5 of the 8 of TinyStories-28M."""
UPDATED_LAYERS = 3
"""Right before it: as in the paper (5 to 7, with the steered representation behind layer 7)."""


@dataclass
class RMUSettings:
    """Representation misdirection for unlearning. Defaults: those of the public code for Expand-Route-Ablate.

    Args:
        layer (`int`, *optional*): the layer whose *input*, the residual stream that enters it, is steered. From 1 to the
            number of layers - 1. Not given: 5/8 of the depth, rounded up (layer 5 of 8, 3 of 4).
        updated_layers (`list[int]`, *optional*): layers whose weights learn, each before `layer`. Not given: the three
            right before it.
        updated (`str`, *optional*, defaults to `"down_projection"`): what learns of their MLPs: the down projection (weight
            and bias), or all of it, `"mlp"`.
        steering (`float`, *optional*, defaults to `100.0`): length of the control vector. Choose it some times as long as
            the model's own representations: the paper has 6.5 to 300.
        retain_coefficient (`float`, *optional*, defaults to `200.0`): of the retain part.
        redraw (`bool`, *optional*, defaults to `False`): draw another control vector for every step, as the public code for
            Expand-Route-Ablate does. In the paper it is drawn once.

    Raises:
        ValueError: for a value out of range.
    """

    layer: int | None = setting(None, "Layer whose input is steered. Not given: 5/8 of the depth.", identity=True)
    updated_layers: list[int] | None = setting(
        None, "Layers that learn. Not given: the three right before `layer`.", identity=True
    )
    updated: str = setting("down_projection", "What learns of their MLPs: down_projection or mlp.", identity=True)
    steering: float = setting(100.0, "Length of the control vector.", identity=True)
    retain_coefficient: float = setting(200.0, "Of the retain part.", identity=True)
    redraw: bool = setting(False, "Another control vector for every step.", identity=True)

    def __post_init__(self) -> None:
        check_count("method_settings.layer", self.layer)
        for name in ("steering", "retain_coefficient"):
            check_positive(f"method_settings.{name}", getattr(self, name))
        if self.updated not in TRAINED_PARTS:
            raise ValueError(unknown_value_message("method_settings.updated", self.updated, TRAINED_PARTS))
        if self.updated_layers is not None and not self.updated_layers:
            raise ValueError(
                "`method_settings.updated_layers` is [], so that nothing would learn. Leave it out, or name some."
            )

    def layers_of(self, depth: int) -> tuple[int, list[int]]:
        """The layer whose input is steered, and those that learn, of a model with so many layers.

        Raises:
            ValueError: if it has no such layers.
        """
        if depth < 2:
            raise ValueError(f"`method: rmu` steers what enters a layer behind the first, and the model has {depth}.")
        layer = min(ceil(DEPTH * depth), depth - 1) if self.layer is None else self.layer
        if layer >= depth:
            raise ValueError(
                f"`method_settings.layer` is {layer}, but the model has {depth} layers: choose from 1 to {depth - 1}."
            )
        updated = self.updated_layers or list(range(max(layer - UPDATED_LAYERS, 0), layer))
        wrong = next((one for one in updated if one not in range(layer)), None)
        if wrong is not None:
            raise ValueError(
                f"`method_settings.updated_layers` names {short_repr(wrong)}, but only layers from 0 to {layer - 1} act on "
                f"what enters layer {layer} (`method_settings.layer`)."
            )
        return layer, updated


def control_vector(size: int, length: float, seed: int, step: int = 0) -> Tensor:
    """(size,), fp32: uniform in [0, 1), scaled to this length; of a seed and a step always the same."""
    vector = torch.rand(size, generator=torch.Generator().manual_seed(1_000_003 * seed + step))
    return length * vector / vector.norm()


def steered_layer(run: Run) -> int:
    """The layer whose input is steered, in a run's model. Raises `ValueError` for layers that it has not."""
    layer, _ = run.method_settings.layers_of(family_for(run.base_config, run.expansion).layers_of(run.base_config))
    return int(layer)


def choose_updated(model: Any, family: Any, settings: RMUSettings) -> None:
    """Freezes, in place, all weights of a model but those that RMU trains."""
    model.requires_grad_(False)
    _, layers = settings.layers_of(family.layers_of(model.config))
    for layer in layers:
        mlp = family.get_mlp(family.get_blocks(model)[layer])
        part = mlp if settings.updated == "mlp" else family.get_down_projection(mlp)
        part.requires_grad_(True)


class RMUTrainer(UnlearningTrainer):
    """MSE(h, control vector) of forget tokens plus `retain_coefficient` * MSE(h, h before) of retain tokens.

    h is the residual stream that enters the `layer`, at the positions that predict a label.

    Args:
        reference: the model before; layer (`int`); settings (`RMUSettings`); args, kwargs: as `UnlearningTrainer`.
    """

    def __init__(self, *args: Any, settings: RMUSettings, layer: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings, self.layer = settings, layer

    def unlearning_loss(self, model: Any, inputs: dict[str, Any], is_forget: Tensor) -> Tensor:
        is_predicted = inputs["labels"][:, 1:] != IGNORE_INDEX
        hidden = self._hidden(model, inputs)  # (batch, seq - 1, hidden)
        with torch.no_grad(), self.accelerator.autocast():
            before = self._hidden(self.reference, inputs)
        step = self.state.global_step if self.settings.redraw else 0
        control = control_vector(hidden.shape[-1], self.settings.steering, self.args.seed, step).to(hidden)
        target = torch.where(is_forget[:, None, None], control, before)
        errors = (hidden - target).square().mean(-1) * is_predicted  # (batch, seq - 1)
        forget, retain = self.forget_mean(errors[is_forget]), self.retain_mean(errors[~is_forget])
        return forget + self.settings.retain_coefficient * retain

    def _hidden(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        others = {name: value for name, value in inputs.items() if name != "labels"}
        # Of the logits, which nobody looks at, only the last position's are made.
        hidden = model(**others, output_hidden_states=True, logits_to_keep=1).hidden_states[self.layer][:, :-1]
        return hidden.to(torch.promote_types(hidden.dtype, torch.float32))


RMU_TEXT = (
    "RMU ([arXiv 2403.03218](https://arxiv.org/abs/2403.03218)): a few MLP projections were trained so that the "
    "representations of forget tokens in one layer go towards a random direction, and those of retain tokens stay."
)


class RMU(Unlearning):
    """Trains a few projections so that forget tokens have meaningless representations."""

    name = "rmu"
    title = "representation misdirection (RMU)"
    texts = {
        "summary": "The model's representations of forget tokens were pushed to a random direction.",
        "training": RMU_TEXT,
        "labels": "Those without a label were taken for retain examples.",
    }
    settings_class = RMUSettings
    trainer_class = RMUTrainer
    compares = True
    ignored: ClassVar[dict[str, str]] = {
        **OWN_LOSS,
        **dict.fromkeys(("trainable", "lora"), "says itself which weights learn (`method_settings.updated`)"),
    }

    def phases(self, run: Run) -> list[Phase]:
        steered_layer(run)  # refuses layers that the model has not, before a base is trained
        return super().phases(run)

    def start_weights(self, run: Run) -> Any:
        model = super().start_weights(run)
        choose_updated(model, family_for(run.base_config, run.expansion), run.method_settings)
        return model

    def options(self, run: Run) -> dict[str, Any]:
        return {**super().options(run), "layer": steered_layer(run)}


register_method(RMU())
