"""Whether a CPU computes in bf16 or only pretends to."""

from __future__ import annotations

import functools
import platform

import torch

# As torch names them; any of them multiplies bf16 matrices in hardware.
_UNITS = ("amx_bf16", "amx_tile", "avx512_bf16", "avx10_2")


@functools.cache
def cpu_has_bf16_units() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware. `True` where it cannot be told (not x86, an older torch)."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    capabilities = getattr(torch.cpu, "get_capabilities", lambda: None)()  # torch 2.13
    if capabilities is None:
        return True
    return any(capabilities.get(name, False) for name in _UNITS)


EMULATED_BF16_MESSAGE = (
    "`training.bf16` is on, but this CPU has no bf16 matrix units: every bf16 product is emulated and takes several times "
    "as long as in fp32. Set `training.bf16: false` (`--bf16 false`) here."
)
