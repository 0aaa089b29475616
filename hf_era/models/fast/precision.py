"""Whether a CPU computes in bf16 or only pretends to."""

from __future__ import annotations

import platform

import torch

# As torch names them; any of them multiplies bf16 matrices in hardware.
_UNITS = ("amx_bf16", "amx_tile", "avx512_bf16", "avx10_2")


def _look() -> bool:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    capabilities = getattr(torch.cpu, "get_capabilities", lambda: None)()  # torch 2.13
    return capabilities is None or any(capabilities.get(name, False) for name in _UNITS)


# Looked up once: a compiler that traces a model can read a constant.
_HAS_BF16_UNITS = _look()


def cpu_has_bf16_units() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware. `True` where it cannot be told (not x86, an older torch)."""
    return _HAS_BF16_UNITS


EMULATED_BF16_MESSAGE = (
    "`training.bf16` is on, but this CPU has no bf16 matrix units: every bf16 product is emulated and takes many times "
    "as long as in fp32. Set `training.bf16: false` (`--bf16 false`) here."
)
