"""What a run ran on: versions, machine, git revision."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("hf-era", "torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors")


def provenance(device: Any) -> dict[str, Any]:
    """When, with which versions and on what kind of machine: `created`, `versions` and `machine` of a result."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": package_versions(),
        "machine": machine_description(device),
    }


def package_versions() -> dict[str, str]:
    """Package name -> version, Python's own among them."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def machine_description(device: Any) -> dict[str, Any]:
    """The kind of machine; no name, address or path of it."""
    import torch

    kind = getattr(device, "type", str(device))
    gpu = torch.cuda.get_device_name(device) if kind == "cuda" else None
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_cores": os.cpu_count(),
        "device": gpu or kind,
    }


def git_revision() -> str | None:
    """The revision of the checkout that hf_era is imported from, `-dirty` if it was changed; `None` outside of one."""
    folder = Path(__file__).resolve().parents[1]  # the package

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder.parent:
            return None  # hf_era is installed inside somebody else's repository
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
