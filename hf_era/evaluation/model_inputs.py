"""What `hf-era eval` and `hf-era relearn` measure: the settings, and the model and labelled examples that they name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_era.data import (
    FORGET,
    RETAIN,
    DataConfig,
    Labels,
    WordFinder,
    examples_of,
    load_stories,
)  # fmt: skip
from hf_era.data.labelling import LABEL_NAMES, MODULE
from hf_era.data.splits import check_labels, story_key
from hf_era.data.tokenising import label_examples, tokenise_examples
from hf_era.evaluation import (
    EvaluationConfig,
    RelearnConfig,
    SamplingConfig,
)
from hf_era.models.loading import load_causal_lm, load_tokenizer
from hf_era.utils.checks import short_repr, unknown_value_message
from hf_era.utils.files import local_path

RUN_FOLDERS = ("model", "contracted", "expanded")
"""What a run calls its models; every run has such folders."""


def shown_name(config: ModelEvaluationConfig) -> str:
    return config.name or model_name(config.model)


def model_name(model: str) -> str:
    """What a model is called that is not named: the last part of its path, or of a run's the run's folder."""
    path = local_path(model)
    is_of_a_run = path.name in RUN_FOLDERS and path.is_dir() and path.resolve().parent.name
    return (path.resolve().parent.name if is_of_a_run else Path(model).name) or model


DEFAULT_MAX_TOKENS = 256
OF_THE_ATTACK = {"forget": "attack", "retain": "attack-retain"}
"""Option that names an attack's examples -> those that they are else taken out of."""
DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class ModelEvaluationConfig:
    """What is measured of one model.

    Args:
        model (`str`): local directory or hub id of any causal LM.
        forget, retain (`str`, *optional*): examples to evaluate on, two sources as in the section `data` of a run. Which one
            an example is in says what it is; its words do not.
        data (`str`, *optional*): one source instead, whose examples are labelled by a column, a score or words:
        label_column, forget_labels, retain_labels, score_column (*optional*): as in the section `data` of a run.
        attack, attack_retain (`str`, *optional*): forget examples for the relearn attack, and the retain examples that some
            of its mixtures train on. Not given: they are taken out of `forget` and `retain`.
        before (`str`, *optional*): the model before the method, to compare with.
        data_filtering (`str`, *optional*): result file of a model that was trained on retain examples alone, measured on the
            same examples: its figures stand beside.
        tokenizer, name (`str`, *optional*): not given: the model's, and the last part of `model`. The name is shown.
        forget_words (`list[str]`, *optional*): words whose own loss is measured and that are counted in generations; neither
            where no forget example holds one of them. With `data` and no other label they label the examples too.
        max_characters (`int`, *optional*, defaults to `1029`), max_tokens (`int`, *optional*): an example is cut there.
            Without `max_tokens`: at 256, or at the model's context if that is shorter.
        add_bos, add_eos (`bool`, *optional*): one BOS in front, one EOS at the end of an example that was not cut. Not
            given: a BOS where the tokenizer has one, and no EOS.
        split, text_column (`str`, *optional*): as in the section `data` of a run.
        device (`str`, *optional*, defaults to `"auto"`): `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        dtype (`str`, *optional*, defaults to `"auto"`): `auto` (that of the checkpoint), `float32`, `bfloat16`, `float16`.
        seed (`int`, *optional*, defaults to `0`): of the attack's choice of examples, where `forget` is split.
        profiles (`list[str]`, *optional*): modules of an expanded model, whose combinations are measured; empty: all. The
            column `module` of the forget examples, if there is one, says whose they are. Not given: none are measured.
        evaluation, generation, relearn: the sections of a run's config.

    Raises:
        ValueError: for an unknown dtype or a device that is not there.
    """

    model: str
    forget: str | None = None
    retain: str | None = None
    data: str | None = None
    label_column: str | None = None
    forget_labels: list[str] = field(default_factory=list)
    retain_labels: list[str] = field(default_factory=list)
    score_column: str | None = None
    attack: str | None = None
    attack_retain: str | None = None
    before: str | None = None
    data_filtering: str | None = None
    tokenizer: str | None = None
    name: str | None = None
    forget_words: list[str] = field(default_factory=list)
    max_characters: int | None = 1_029
    max_tokens: int | None = None
    add_bos: bool | None = None
    add_eos: bool = False
    split: str = "train"
    text_column: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    profiles: list[str] | None = None
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    generation: SamplingConfig = field(default_factory=SamplingConfig)
    relearn: RelearnConfig = field(default_factory=RelearnConfig)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(unknown_value_message("dtype", self.dtype, DTYPES))
        self.resolved_device = find_device(self.device)
        self._check_sources()
        if not self.only_tasks:
            self.data_config()  # checks them

    def _check_sources(self) -> None:
        two = {name: getattr(self, name) for name in ("forget", "retain")}
        if self.only_tasks:
            return
        if self.data is not None and any(two.values()):
            raise ValueError(
                "`data` and `forget` or `retain` are both given. Give one source with labels in it (`--data`), or two "
                "(`--forget`, `--retain`)."
            )
        missing = [f"`{name}`" for name, source in two.items() if source is None]
        if self.data is None and missing:
            raise ValueError(
                f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not given. Give two sources (`--forget "
                "FILE --retain FILE`), or one with labels in it (`--data FILE --label-column NAME --forget-labels VALUE`)."
            )
        if self.data is None and (self.label_column or self.score_column):
            raise ValueError(
                "`forget` and `retain` say which example is which, so a label column is not looked at. Give one source, "
                "`--data`, or leave the column out."
            )

    @property
    def only_tasks(self) -> bool:
        """Whether tasks are all that is measured: there are some, and no examples."""
        given = (self.data, self.forget, self.retain, self.attack)
        return bool(self.evaluation.tasks) and self.profiles is None and not any(given)

    def data_config(self, **changes: Any) -> DataConfig:
        """How examples are labelled and cut, as the section `data` of a run says it."""
        sources = {"forget": self.forget, "retain": self.retain} if self.data is None else {"train": self.data}
        if self.data is None and self.forget_words:
            # Each example brings its label along; the words are looked for in order to be measured.
            sources = {"train": f"{self.forget} and {self.retain}"}
        values = {
            "label_column": self.label_column, "forget_labels": self.forget_labels, "retain_labels": self.retain_labels,
            "score_column": self.score_column, "forget_words": self.forget_words, "max_characters": self.max_characters,
            "text_column": self.text_column,
        }  # fmt: skip
        return _EvaluationData(**{**sources, **values, **changes})


class _EvaluationData(DataConfig):
    """Its settings are called in messages as this command calls them."""

    section = ""
    length_setting = "`max_tokens`"


@dataclass(frozen=True)
class ModelInputs:
    """A model, and tokenised examples: `input_ids`, `is_forget_word`, `length`, `text`."""

    model: Any
    tokenizer: Any
    forget: Any  # these two `None` where tasks alone are measured
    retain: Any
    unlabelled: Any  # `None` if there are none
    pool: Any  # these two `None` without an attack, or where it needs none
    retain_pool: Any
    data: dict[str, Any]


def load_model(config: ModelEvaluationConfig, name: str, field_name: str = "model") -> Any:
    """A causal LM in the dtype and on the device of the config."""
    model = load_causal_lm(name, field_name, dtype=DTYPES[config.dtype])
    return model.to(config.resolved_device)


def load_model_inputs(config: ModelEvaluationConfig, pool_size: int = 0, retain_pool_size: int = 0) -> ModelInputs:
    """Loads model, tokenizer and examples, and checks them; for an attack `pool_size` of them are taken out of `forget`, and
    `retain_pool_size` out of `retain`.

    Raises:
        ValueError: for a file without examples, an example that is in two of the sets, more tokens than the model has
            positions or embeddings.
    """
    model = load_model(config, config.model)
    tokenizer = load_tokenizer(config.tokenizer or config.model, "tokenizer" if config.tokenizer else "model")
    if config.only_tasks:
        return ModelInputs(model, tokenizer, None, None, None, None, None, {})
    data_config = _data_config(config, model, tokenizer)
    named = {name: getattr(config, name) for name in ("forget", "retain", "attack", "attack_retain")}
    unused: dict[str, list[str]] = {}
    read = partial(_read, config, data_config, tokenizer, unused)
    texts = _parts_of_one(config, read(config.data, "data", None)) if config.data is not None else {}
    labels = {"forget": FORGET, "retain": RETAIN, "attack": FORGET, "attack_retain": RETAIN}
    texts |= {name: read(source, name, labels[name]) for name, source in named.items() if source}
    _check_disjoint(texts)
    if pool_size and not config.attack:
        texts["forget"], texts["attack"] = _split_pool(texts["forget"], pool_size, config, "forget")
    if retain_pool_size and not config.attack_retain:
        texts["retain"], texts["attack_retain"] = _split_pool(texts["retain"], retain_pool_size, config, "retain")
    sets = {name: tokenise_examples(part, tokenizer, data_config, f"{name} examples") for name, part in texts.items()}
    _check_vocabulary(model, sets)
    pools = (sets.get("attack"), sets.get("attack_retain"))
    parts = (sets["forget"], sets["retain"], sets.get("unlabelled"), *pools)
    return ModelInputs(model, tokenizer, *parts, _summary(config, sets, unused))


def find_device(name: str) -> torch.device:
    """The device of this name, `auto` among them; raises `ValueError` if there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"`device` should be auto, cpu, cuda, cuda:N or mps, got {name!r}.") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise ValueError(f"`device` is {name!r}, but torch {torch.__version__} finds none. Pass `--device cpu`.")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ValueError(f"`device` is {name!r}, but there are {torch.cuda.device_count()} GPUs, counted from 0.")
    return device


def _data_config(config: ModelEvaluationConfig, model: Any, tokenizer: Any) -> DataConfig:
    positions = getattr(model.config, "max_position_embeddings", None)
    max_tokens = config.max_tokens or min(DEFAULT_MAX_TOKENS, positions or DEFAULT_MAX_TOKENS)
    if positions is not None and max_tokens > positions:
        raise ValueError(
            f"`max_tokens` is {max_tokens}, but {config.model} has {positions} positions. Lower it, or leave it out: "
            "examples are then cut at the model's context."
        )
    add_bos = tokenizer.bos_token_id is not None if config.add_bos is None else config.add_bos
    return config.data_config(max_tokens=max_tokens, add_bos=add_bos, add_eos=config.add_eos)


def _read(
    config: ModelEvaluationConfig,
    data: DataConfig,
    tokenizer: Any,
    unused: dict[str, list[str]],
    source: str,
    name: str,
    label: int | None,
) -> Dataset:
    """The examples of a source, cut and labelled: by their own labels, or all with this one. `unused`: gets the names of
    columns that are no part of them."""
    rows = load_stories(source, field=name, split=config.split, seed=config.seed)
    labels = data.labels if label is None else Labels(has_two_sources=True)
    options = {"field": name, "source": source, "text_column": config.text_column, "tokenizer": tokenizer}
    examples, columns = examples_of(rows, labels, **options)
    if columns:
        unused[name] = columns
    if label is not None:
        examples = examples.add_column("label", np.full(len(examples), label))  # type: ignore[call-arg]
    if config.profiles is not None and label == FORGET and MODULE in rows.column_names:
        examples = examples.add_column(MODULE, _module_names(rows[MODULE][:], source))  # type: ignore[call-arg]
    return label_examples(examples, data, f"{name} examples")


def _module_names(values: Sequence[Any], source: str) -> list[str | None]:
    odd = next((value for value in values if not isinstance(value, str | None)), None)
    if odd is not None:
        raise ValueError(
            f"`forget`: the column `{MODULE}` of {source} should hold names of modules (or null), got {short_repr(odd)}."
        )
    return list(values)


def _parts_of_one(config: ModelEvaluationConfig, examples: Dataset) -> dict[str, Dataset]:
    """The forget, retain and unlabelled examples of one source; an example that repeats an earlier one is left out."""
    given = examples["label"][:]
    check_labels(examples, config.data_config().labels, "examples of `data`", "`data`")
    first = {key: index for index, key in reversed(list(enumerate(map(story_key, examples["text"][:]))))}
    parts = {name: [i for i in sorted(first.values()) if given[i] == kind] for kind, name in LABEL_NAMES.items()}
    return {name: examples.select(rows) for name, rows in parts.items() if rows}


def _check_disjoint(texts: dict[str, Dataset]) -> None:
    """An example that is attacked with and measured on, or that is both forget and retain, makes the figures worthless."""
    keys = {name: {story_key(text) for text in part["text"][:]} for name, part in texts.items()}
    for one, other in combinations(keys, 2):
        shared = keys[one] & keys[other]
        if shared:
            raise ValueError(
                f"`{one}` and `{other}` share {len(shared)} examples, for instance {sorted(shared)[0][:60]!r}. Take them "
                "out of one of the files."
            )


def _split_pool(examples: Dataset, size: int, config: ModelEvaluationConfig, name: str) -> tuple[Dataset, Dataset]:
    """Examples to measure on, and those for the attack; an example and its repetitions stay together."""
    first: dict[str, int] = {}
    for index, text in enumerate(examples["text"][:]):
        first.setdefault(story_key(text), index)
    distinct = list(first.values())
    if config.relearn.allow_fewer:
        size = min(size, len(distinct) // 2)
    if not 0 < size < len(distinct):
        raise ValueError(
            f"`{name}` holds {len(distinct)} distinct examples; the attack needs {max(size, 1)} of them and at least one "
            f"must be left to measure on. Give more, name other examples for the attack with `--{OF_THE_ATTACK[name]}`, "
            "lower `--relearn.stories` or `--relearn.trials`, or pass `--allow-fewer`."
        )
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(config.seed)).tolist()
    chosen = [distinct[index] for index in order]
    return examples.select(sorted(chosen[size:])), examples.select(sorted(chosen[:size]))


def _check_vocabulary(model: Any, sets: dict[str, Dataset]) -> None:
    embeddings = model.get_input_embeddings().num_embeddings
    largest = max(max(max(story) for story in part["input_ids"]) for part in sets.values())
    if largest >= embeddings:
        raise ValueError(
            f"The tokenizer gives token {largest}, but the model has {embeddings} embeddings. Pass the tokenizer that the "
            "model was trained with: `--tokenizer`."
        )


def _summary(config: ModelEvaluationConfig, sets: dict[str, Dataset], unused: dict[str, list[str]]) -> dict[str, Any]:
    finder = WordFinder(config.forget_words)
    digest = hashlib.sha256()
    for name in ("forget", "retain"):
        for ids in sets[name]["input_ids"]:
            digest.update(f"{name}{list(ids)}".encode())
        if "labels" in sets[name].column_names:
            digest.update(f"{list(sets[name]['labels'])}".encode())
    counts = {}
    for name, part in sets.items():
        counts[f"{name}_stories"], counts[f"{name}_tokens"] = len(part), sum(part["length"][:])
        if config.forget_words:
            counts[f"{name}_stories_with_a_forget_word"] = sum(map(finder.found_in, part["text"][:]))
    return {
        "source": config.data,
        "forget_source": config.forget,
        "retain_source": config.retain,
        "attack_source": config.attack,
        **({"attack_retain_source": config.attack_retain} if config.attack_retain else {}),
        "forget_words": list(config.forget_words),
        "labelling": {"kind": "sources"} if config.data is None else config.data_config().labels.describe(),
        "unused_columns": unused,
        **counts,
        "fingerprint": digest.hexdigest(),
    }
