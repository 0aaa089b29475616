"""The output of an expanded causal LM."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast


@dataclass
class ExpandedCausalLMOutput(CausalLMOutputWithPast):
    """`CausalLMOutputWithPast` and the activations' L1 norm.

    Attributes:
        activation_l1 (`torch.FloatTensor`, *optional*): scalar, fp32: sum of |activation| over real tokens, target
            layers, original dims and active auxiliary modules. Given with `output_activation_l1=True`.
    """

    activation_l1: torch.Tensor | None = None
