"""Importing `hf_era` registers its Auto classes and does nothing else. Looked at from a fresh interpreter."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from hf_era.models import FAMILIES

HEAVY = (
    "datasets",
    "matplotlib",
    "transformers.trainer",
    "transformers.training_args",
    "hf_era.training",
    "hf_era.data",
)
NO_EFFECT: dict[str, Any] = {
    "heavy": [],
    "environment": [],
    "auto classes": {},
    "random state": False,
    "warning filters": False,
    "logging": False,
    "defaults": False,
}
TYPES = (
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "llama",
    "mistral",
    "olmo2",
    "qwen2",
    "qwen3",
    "smollm3",
)
REGISTERED = {
    "CONFIG_MAPPING": [f"expanded_{name}" for name in TYPES],
    "MODEL_FOR_CAUSAL_LM_MAPPING": sorted(FAMILIES[name].model_class.config_class.__name__ for name in TYPES),
}

# First everything that any user of GPT-Neo imports, so that what is seen afterwards comes from the package itself.
LOOK_AT_AN_IMPORT = """
import importlib, json, logging, os, random, sys, warnings
import numpy, torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto import configuration_auto, modeling_auto
from transformers.models.gpt_neo import modeling_gpt_neo
from transformers.utils import logging as transformers_logging


def auto_classes():
    mappings = {**vars(modeling_auto), "CONFIG_MAPPING": configuration_auto.CONFIG_MAPPING}
    return {
        name: sorted(getattr(key, "__name__", key) for key in mapping._extra_content)
        for name, mapping in mappings.items()
        if hasattr(mapping, "_extra_content")
    }


def snapshot():
    return {
        "environment": dict(os.environ),
        "auto classes": auto_classes(),
        "random state": (torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()),
        "warning filters": list(warnings.filters),
        "logging": (
            transformers_logging.get_verbosity(),
            logging.getLogger().level,
            len(logging.getLogger().handlers),
        ),
        "defaults": (torch.get_default_dtype(), torch.get_num_threads(), torch.get_float32_matmul_precision()),
    }


def effects_of_importing(name, heavy):
    before = snapshot()
    assert len(before["auto classes"]) > 10 and not [module for module in heavy if module in sys.modules]
    importlib.import_module(name)
    after = snapshot()
    effects = {kind: after[kind] != before[kind] for kind in ("random state", "warning filters", "logging", "defaults")}
    effects["heavy"] = [module for module in heavy if module in sys.modules]
    effects["environment"] = sorted(
        key
        for key in {**before["environment"], **after["environment"]}
        if before["environment"].get(key) != after["environment"].get(key)
    )
    effects["auto classes"] = {
        key: [one for one in value if one not in before["auto classes"][key]]
        for key, value in after["auto classes"].items()
        if value != before["auto classes"][key]
    }
    return effects


sys.path.insert(0, sys.argv[1])
print(json.dumps({name: effects_of_importing(name, json.loads(sys.argv[2])) for name in sys.argv[3:]}))
"""
# Planted: a package that imports something heavy and touches everything that an import should leave alone.
BADLY_BEHAVED = """
import logging, os, warnings
import torch
from transformers import AutoConfig, GPTNeoConfig
import matplotlib
class OtherConfig(GPTNeoConfig):
    model_type = 'other'
AutoConfig.register('other', OtherConfig)
os.environ['TOKENIZERS_PARALLELISM'] = 'changed'
torch.manual_seed(0)
warnings.simplefilter('ignore')
logging.basicConfig(level=logging.DEBUG)
torch.set_default_dtype(torch.bfloat16)
"""


@pytest.fixture(scope="module")
def effects(run_python: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of importing `hf_era`, and then `badly_behaved`, in one process."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "matplotlib.py").write_text("")
    (folder / "badly_behaved.py").write_text(BADLY_BEHAVED)
    return json.loads(run_python(LOOK_AT_AN_IMPORT, str(folder), json.dumps(HEAVY), "hf_era", "badly_behaved"))


def test_importing_registers_the_auto_classes_and_does_nothing_else(effects: dict[str, Any]) -> None:
    assert effects["hf_era"] == {**NO_EFFECT, "auto classes": REGISTERED}


def test_the_check_notices_every_kind_of_side_effect(effects: dict[str, Any]) -> None:
    assert effects["badly_behaved"] == {
        "heavy": ["matplotlib"],
        "environment": ["TOKENIZERS_PARALLELISM"],
        "auto classes": {"CONFIG_MAPPING": ["other"]},
        "random state": True,
        "warning filters": True,
        "logging": True,
        "defaults": True,
    }


def test_registering_again_changes_nothing() -> None:
    from transformers import AutoConfig

    import hf_era

    hf_era.register_auto_classes()
    assert type(AutoConfig.for_model("expanded_gpt_neo")) is hf_era.ExpandedGPTNeoConfig


@pytest.mark.parametrize(
    "name",
    [
        "ExpandedGPTNeoConfig",
        "ExpandedGPTNeoForCausalLM",
        "ExpansionConfig",
        "GradientMultipliers",
        "GradientRoutingConfig",
        "GradientRoutingTrainer",
    ],
)
def test_public_names(name: str) -> None:
    import hf_era

    assert name in hf_era.__all__
    assert name in dir(hf_era)
    assert getattr(hf_era, name).__name__ == name


def test_every_listed_name_exists() -> None:
    import hf_era

    assert all(hasattr(hf_era, name) for name in hf_era.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    import hf_era

    with pytest.raises(AttributeError, match="module 'hf_era' has no attribute 'GradientRouter'"):
        _ = hf_era.GradientRouter
