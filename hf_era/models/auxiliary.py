"""The auxiliary module: a small MLP beside the original one, `down(activation(up(x)))`."""

from collections.abc import Callable

from torch import Tensor, nn
from transformers import initialization

from hf_era.models.fused_activation import RoutedActivation


class AuxiliaryMLP(nn.Module):
    """A side MLP that reads what the original MLP reads and adds to what it writes.

    It has no output bias of its own, so original plus auxiliary MLP is the same function as one MLP that is wider by
    `width` (the *expanded dims* of arXiv 2410.04332), while original weights keep their names and shapes.

    Args:
        hidden_size (`int`): width of the residual stream.
        width (`int`): hidden units.
        activation (`str`): name of the activation function in `transformers.activations.ACT2FN`.
        initialization_std (`float`): standard deviation of both weights at the start; the bias starts at zero.

    Attributes:
        active (`bool`): `False` while the module is ablated.
    """

    def __init__(self, hidden_size: int, width: int, activation: str, initialization_std: float) -> None:
        super().__init__()
        self.up_projection = nn.Linear(hidden_size, width)
        self.down_projection = nn.Linear(width, hidden_size, bias=False)
        self.act = RoutedActivation(activation)
        self.initialization_std = initialization_std
        self.active = True

    def forward(
        self, hidden_states: Tensor, activate: Callable[[RoutedActivation, Tensor], Tensor] | None = None
    ) -> Tensor:
        """(batch, seq, hidden) -> (batch, seq, hidden).

        `activate` makes the (batch, seq, width) activation of the up projection's output, and routes it. Not given:
        `self.act` does, without routing.
        """
        inputs = self.up_projection(hidden_states)
        return self.down_projection(self.act(inputs) if activate is None else activate(self.act, inputs))

    def initialize(self) -> None:
        """Draws the starting weights; parameters that were loaded from a checkpoint are left alone."""
        # transformers' own functions look at each parameter's "loaded already" flag, torch's do not.
        initialization.normal_(self.up_projection.weight, std=self.initialization_std)
        initialization.zeros_(self.up_projection.bias)
        initialization.normal_(self.down_projection.weight, std=self.initialization_std)
