"""What a saved expanded model says to whoever loads it without this package: in its config.json, and in a README.md.

transformers finds a model type that it does not know and advises to update transformers, which does not help.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

CONFIG_KEY = "load_with"
CONFIG_HINT = "import hf_era, which makes this model type known, then AutoModelForCausalLM.from_pretrained(...)"
OPENED_HINT = (
    "hf_era.models.loading.load_causal_lm(...): the checkpoint of a training of a family that hf_era does not know"
)

_TITLE = "# An expanded model: its auxiliary modules are inside"
_README = """---
library_name: hf_era
tags:
- hf_era
- gradient-routing
---
{title}

This is a `{base_type}` causal LM with auxiliary modules beside its MLPs, as gradient routing trains it:

{modules}

What was routed into them **has not been removed**. To share a model without it, contract it.

{without} With the package `hf_era` installed:

```python
{loading}
with model.ablated():  # the modules are off
    ...
model.save_module("{first}", "path/of/a/new/folder")  # the module as a file of its own, to attach again
stock = model.contract()  # without the modules: a `{base_type}` that loads without hf_era
```
"""

MODULE_README = """---
library_name: hf_era
tags:
- hf_era
- gradient-routing
---
# The auxiliary module `{name}`, apart from its model

This is no model. It is what gradient routing put into the layers of a `{base_type}` causal LM, beside what they had: {width}
hidden units (kind `{kind}`) in each of the layers {layers}. **It holds the capability that was cut out of that
model.** Whoever has both has the capability back, bit for bit: publishing this folder publishes the capability.

It fits one base: the contracted model whose weights have this SHA-256 in `{dtype}`:
`{sha256}`. With the package `hf_era` installed:

```python
import hf_era

model = hf_era.attach_module("path/of/the/contracted/model", "path/of/this/folder")
with model.ablated("{name}"):  # off again
    ...
model.detach_module("{name}")
```
"""


_WITHOUT = (
    """transformers alone does not know the type `{model_type}`, and its advice to update transformers does not help."""
)
_LOADING = """import hf_era  # makes the type known
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/of/this/folder")"""
_WITHOUT_IN_PARTS = """The modules are in the folder `modules`, a folder each. What lies beside it is the model without
them, which transformers alone loads."""
_LOADING_IN_PARTS = """from hf_era.models import load_expanded

model = load_expanded("path/of/this/folder")"""


def write_readme(folder: Path, config: Any, in_parts: bool = False) -> None:
    """Writes `README.md` beside a saved expanded model, unless there is one."""
    path = folder / "README.md"
    if path.exists():
        return
    modules = [
        f"* `{module.name}`: {module.width} hidden units, in {'all layers' if layers is None else f'layers {layers}'}"
        for module in config.expansion_config.module_configs
        for layers in [module.target_layers]
    ]
    modules = modules or ["* none at present: they are attached from files (`model.attach_module`)"]
    base_type = config.base_config_class.model_type
    names = [module.name for module in config.expansion_config.module_configs] or ["name"]
    text = _README.format(
        title=_TITLE,
        base_type=base_type,
        modules="\n".join(modules),
        first=names[0],
        without=_WITHOUT_IN_PARTS if in_parts else _WITHOUT.format(model_type=config.model_type),
        loading=_LOADING_IN_PARTS if in_parts else _LOADING,
    )
    path.write_text(text, encoding="utf-8")


def is_readme_of_an_expanded_model(path: Path) -> bool:
    """Whether a file is what `write_readme` wrote, and no card of somebody's own."""
    return path.is_file() and _TITLE in path.read_text(encoding="utf-8", errors="replace")
