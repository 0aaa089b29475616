"""Licence identifiers that the hub knows; it takes a card with another one for broken."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from hf_era.utils.checks import short_repr

LICENCES = frozenset({
    "afl-3.0", "agpl-3.0", "apache-2.0", "apple-amlr", "apple-ascl", "artistic-2.0", "bigcode-openrail-m",
    "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear",
    "bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0",
    "cdla-sharing-1.0", "creativeml-openrail-m", "deepfloyd-if-license", "ecl-2.0", "epl-1.0", "epl-2.0",
    "etalab-2.0", "eupl-1.1", "eupl-1.2", "fair-noncommercial-research-license", "gemma", "gfdl", "gpl", "gpl-2.0",
    "gpl-3.0", "h-research", "intel-research", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "llama2", "llama3",
    "llama3.1", "llama3.2", "llama3.3", "llama4", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by",
    "ofl-1.1", "openrail", "openrail++", "osl-3.0", "pddl", "postgresql", "unknown", "unlicense", "wtfpl", "zlib",
})  # fmt: skip
"""https://huggingface.co/docs/hub/repositories-licenses, without `other`, which needs a name."""
COMMON = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "openrail", "llama3.1", "gemma")
"""Those that a message names."""


def licence_fields(licence: str | None, base: Any = None) -> dict[str, Any]:
    """The metadata of a licence: `license`, and of one that the hub does not know `license_name`, too.

    Args:
        licence (`str`, *optional*): an identifier of the hub, or `other:NAME`. Not given: that of the base model's own card.
        base (`str`, *optional*): the base model; where it is a local directory, its card is read.

    Raises:
        ValueError: if the hub has no such licence.
    """
    if licence is None:
        return _of_base(base)
    identifier, _, name = str(licence).strip().partition(":")
    if identifier.lower() == "other" and name.strip():
        return {"license": "other", "license_name": name.strip()}
    if not name and identifier.lower() in LICENCES:
        return {"license": identifier.lower()}
    close = difflib.get_close_matches(identifier.lower(), LICENCES, n=1)
    raise ValueError(
        f"`license` should be an identifier of the hub, such as {', '.join(COMMON)}, got {short_repr(licence)}."
        f"{f' Did you mean `{close[0]}`?' if close else ''} For one that the hub does not know: `other:its-name`. All: "
        "https://huggingface.co/docs/hub/repositories-licenses"
    )


def _of_base(base: Any) -> dict[str, str]:
    """The licence that a local base model's card names; empty if there is none that the hub knows."""
    readme = Path(str(base)) / "README.md"
    if not base or not readme.is_file():
        return {}
    try:
        data = ModelCard.load(readme, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError):  # no text, no YAML, or metadata that is no mapping
        return {}
    found = {name: str(data[name]) for name in ("license", "license_name", "license_link") if data.get(name)}
    known = found.get("license") in LICENCES or (found.get("license") == "other" and "license_name" in found)
    return found if known else {}
