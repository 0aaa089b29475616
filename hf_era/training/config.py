"""What the trainers are told: transformers' arguments, those of every training here, and those of gradient routing."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from importlib.util import find_spec
from numbers import Real
from typing import Any

import torch
from transformers import TrainingArguments

from hf_era.models.trainable import LoraSettings, check_trainable
from hf_era.routing import ActivationRouter, Router, RoutingRuleConfig, make_router
from hf_era.routing.activation import parse_multipliers
from hf_era.utils.checks import check_count, short_repr, unknown_key_message, unknown_value_message
from hf_era.utils.fields import UNLESS_DEFAULT, setting

ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager")
FORGET_DATASET_NAME, RETAIN_DATASET_NAME = "forget", "retain"

SHOWN_OR_KEPT = frozenset({
    "dataloader_in_order", "dataloader_multiprocessing_context", "dataloader_num_workers",
    "dataloader_persistent_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "disable_tqdm",
    "eval_delay", "eval_steps", "eval_strategy", "hub_always_push", "hub_model_id", "hub_private_repo", "hub_revision",
    "hub_strategy", "hub_token", "log_level", "log_level_replica", "logging_dir", "logging_first_step",
    "logging_strategy", "per_device_eval_batch_size", "project", "push_to_hub", "report_to", "run_name",
    "save_on_each_node", "save_only_model", "save_steps", "save_strategy", "save_total_limit", "trackio_bucket_id",
    "trackio_space_id", "trackio_static_space_id", "use_cpu",
})  # fmt: skip
"""Fields that `CausalLMTrainingConfig` inherits from transformers and that do not change what is computed: transformers
declares nothing of the kind. A field that stands in neither place identifies a run, so that one that a later transformers
adds is never overlooked."""

_Range = tuple[str, Callable[[Any], bool]]
_POSITIVE: _Range = ("positive", lambda value: 0 < value < math.inf)
_AT_LEAST_ZERO: _Range = ("a finite number >= 0", lambda value: 0 <= value < math.inf)
_BELOW_ONE: _Range = ("in [0, 1)", lambda value: 0 <= value < 1)
_RANGES: dict[str, _Range] = {
    "learning_rate": _POSITIVE,
    "num_train_epochs": _POSITIVE,
    "adam_epsilon": _POSITIVE,  # 0 divides 0 by 0 where there was no gradient yet
    "adam_beta1": _BELOW_ONE,
    "adam_beta2": _BELOW_ONE,
    "label_smoothing_factor": _BELOW_ONE,
    "minimum_learning_rate_ratio": ("in [0, 1]", lambda value: 0 <= value <= 1),
    **dict.fromkeys(("weight_decay", "max_grad_norm", "warmup_steps", "neftune_noise_alpha"), _AT_LEAST_ZERO),
    **dict.fromkeys(("eval_delay", "eval_steps", "save_steps", "logging_steps"), _AT_LEAST_ZERO),
    **dict.fromkeys(("l1_coefficient", "auxiliary_learning_rate_factor", "auxiliary_weight_decay"), _AT_LEAST_ZERO),
}
"""What the numbers should be, transformers' own too: many of those are looked at by the optimizer alone, or by nobody."""


_OPTIMIZER_PACKAGES = {
    "torchao": r"adamw_torch_(4|8)bit",
    "bitsandbytes": r"adamw_(bnb_)?8bit|paged_.*|lion_.*|ademamix.*|rmsprop_bnb.*",
}
"""Packages that transformers asks for when it makes an optimizer, which is after all data is prepared."""


def check_optimizer_is_installed(optimizer: Any) -> None:
    """Raises `ValueError` for an optimizer of low-precision states whose package is not installed."""
    name = str(getattr(optimizer, "value", optimizer))
    for package, names in _OPTIMIZER_PACKAGES.items():
        if re.fullmatch(names, name) and find_spec(package) is None:
            raise ValueError(
                f"`training.optim` is {name!r}, which needs the package {package}: `pip install {package}`. Without it, "
                "`adamw_torch` is torch's own; `lora` or `trainable` make its states small."
            )


def check_training_number(name: str, field: str, value: Any) -> None:
    """Raises `ValueError` if the value of a field is out of its range; `name` is what the message calls it."""
    wanted, fits = _RANGES.get(field, ("", None))
    if fits is not None and value is not None and not (isinstance(value, Real) and fits(value)):
        raise ValueError(f"`{name}` should be {wanted}, got {short_repr(value)}.")


@dataclass
class CausalLMTrainingConfig(TrainingArguments):
    """`TrainingArguments` of any causal LM, with the seed runs' optimizer settings as defaults.

    Other defaults than the Trainer's: learning rate 5e-4 after 100 warm-up steps, cosine to a tenth of it; AdamW betas
    (0.9, 0.95), weight decay 0.1 on every parameter, no gradient clipping; no filter of non-finite losses in the logs
    (training stops at the first one anyway, and the filter makes the host wait for the device in every step).

    Args:
        weight_decay_on_all_parameters (`bool`, *optional*, defaults to `True`):
            Weight decay on biases and norms too, as in the seed. `False`: the Trainer's usual groups.
        minimum_learning_rate_ratio (`float`, *optional*, defaults to `0.1`):
            The cosine ends at this share of the peak learning rate. In [0, 1].
        attn_implementation (`str`, *optional*):
            `sdpa` or `eager`. Not given: as the model was loaded, which is `sdpa` unless it was told otherwise.
        fused_activation (`bool`, *optional*, defaults to `True`):
            GELU as one operation, with the routing and the L1 term in its backward pass; see `FastPaths`.
        chunked_loss (`bool`, *optional*, defaults to `True`):
            LM head and cross entropy in chunks, at labelled positions only; see `FastPaths`. With `label_smoothing_factor`
            the whole logits are made all the same.
        pad_to_multiple_of (`int`, *optional*):
            Pad batches to a multiple of so many tokens, with the trainer's own collator. With `torch_compile` that makes few
            shapes, each of which is compiled: 64 at 256 tokens makes four. Not given: to the longest example.
        kwargs: everything that `TrainingArguments` takes.

    Raises:
        ValueError: if one of these fields is out of range.
    """

    learning_rate: float = setting(5e-4, "Peak learning rate.", identity=True)
    lr_scheduler_type: str = setting(
        "cosine_warmup_with_min_lr", "Learning-rate schedule; see transformers.", identity=True
    )
    warmup_steps: float = setting(100, "Warm-up steps (below 1: share of all steps).", identity=True)
    weight_decay: float = setting(0.1, "AdamW's weight decay.", identity=True)
    adam_beta2: float = setting(0.95, "AdamW's second beta.", identity=True)
    max_grad_norm: float = setting(0.0, "Gradient clipping (0 = off).", identity=True)
    ddp_find_unused_parameters: bool | None = setting(
        False, "Every parameter is used in every step, so DDP need not look.", identity=True
    )
    logging_steps: float = setting(20, "Log every so many steps.", identity=False)
    logging_nan_inf_filter: bool = setting(
        False, "Leave non-finite losses out of the logs; training stops at one anyway.", identity=False
    )
    weight_decay_on_all_parameters: bool = setting(
        True, "Weight decay on biases and norms too, as in the seed runs.", identity=True
    )
    minimum_learning_rate_ratio: float = setting(
        0.1, "The cosine ends at this share of the peak learning rate.", identity=True
    )
    attn_implementation: str | None = setting(
        None, "sdpa or eager. Not given: as the model was loaded (sdpa).", identity=True
    )
    fused_activation: bool = setting(
        True, "GELU as one operation, with the routing in its backward pass.", identity=True
    )
    chunked_loss: bool = setting(
        True, "LM head and cross entropy in chunks, at labelled positions only.", identity=True
    )
    pad_to_multiple_of: int | None = setting(
        None, "Pad batches to a multiple of so many tokens: few shapes for torch_compile.", identity=UNLESS_DEFAULT
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            if item.init:
                check_training_number(f"training.{item.name}", item.name, getattr(self, item.name))
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            check_count(f"training.{name}", getattr(self, name))
        check_count("training.pad_to_multiple_of", self.pad_to_multiple_of)
        if self.max_steps == 0:
            raise ValueError("`training.max_steps` is 0. Give a number of steps, or -1 to train `num_train_epochs`.")
        if self.attn_implementation not in (None, *ATTENTION_IMPLEMENTATIONS):
            name, known = "training.attn_implementation", ATTENTION_IMPLEMENTATIONS
            raise ValueError(unknown_value_message(name, self.attn_implementation, known))
        schedule = str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type))
        if "min_lr" in schedule and not self.lr_scheduler_kwargs:
            self.lr_scheduler_kwargs = {"min_lr_rate": self.minimum_learning_rate_ratio}
        check_optimizer_is_installed(self.optim)
        if not torch.accelerator.is_available():
            self.use_cpu = True  # the Trainer wants this said before it allows bf16 on a CPU
        super().__post_init__()


@dataclass
class GradientRoutingConfig(CausalLMTrainingConfig):
    """`CausalLMTrainingConfig`, and what gradient routing needs besides.

    Args:
        router (`dict` or `str`, *optional*):
            Who says what a token teaches to which part: a router's name, or a dict (or JSON) with `name` and its settings.
            Not given: `activation`, Expand-Route-Ablate's own.
        multipliers (`dict` or `str`, *optional*):
            Of the router `activation`: the fields of `GradientMultipliers`, as a dict or JSON. Not given: its defaults, the
            seed's. Under AdamW their signs act, and their sizes where scaled gradient mixes with other (that of retain
            tokens, or what goes around the MLP); 0 does not stop the down projections: see there.
        l1_coefficient (`float`, *optional*, defaults to `1e-4`):
            Coefficient of the L1 term: coefficient * (sum of |activation| over target layers and real tokens) / (number
            of real tokens). Its gradient is not scaled by the routing. 0 switches it off.
        auxiliary_learning_rate_factor (`float`, *optional*, defaults to `1.0`):
            Learning rate of the auxiliary modules over that of the rest. Not negative.
        auxiliary_weight_decay (`float`, *optional*):
            Weight decay of the auxiliary modules. Not given: that of the rest.
        skip_zero_gradients (`bool`, *optional*):
            Leave parameters out of an optimizer's step whose gradient is zero throughout, as in a batch that teaches a part
            of the model nothing: neither momentum nor weight decay moves them. Not given: as the router says (`gram`: yes).
        minimum_ablation_gap (`float`, *optional*, defaults to `0.05`):
            Nats a token. If ablation raises the forget loss by less at the end of training, nothing was localised and a
            loud warning says so.
        trainable (`str`, *optional*):
            What is trained: `all`; `routed`: the base is frozen but for the MLPs that have an auxiliary module beside them;
            `modules`: auxiliary modules alone. Not given: what the model does not freeze itself; with `lora`, `modules`.
        lora (`dict` or `str`, *optional*):
            Fields of `LoraSettings`, as a dict or JSON: the base is frozen, and LoRA adapters on the original dims are
            trained beside the auxiliary modules, routed as the original dims would be. `{}`: its defaults.
        forget_dataset_name, retain_dataset_name (`str`, *optional*, default `"forget"`, `"retain"`):
            Which of the sets in `eval_dataset={name: set, ...}` holds the forget and which the retain examples: of these
            two there are the ablation gaps and the selectivity.
        expansion (`dict` or `str`, *optional*):
            Fields of `ExpansionConfig`, as a dict or JSON, with which a model that is not expanded yet is. Not given: its
            defaults, for a model that is given by its path or hub id.
        label_column, forget_labels, retain_labels, score_column, forget_words (*optional*):
            Of a training set of text: which examples are to be forgotten, in one of these ways
            (`hf_era.data.labelling`).
        modules (`dict` or `str`, *optional*):
            Of such a set: module -> its forget labels, or without `label_column` its forget words, as a dict or JSON.
            `forget_labels`, or `forget_words`, may then be left out. An example of one module teaches the others nothing:
            their gradient from it is zero. AdamW moves a module all the same in a batch without an example of it, by its
            momentum and by weight decay.
        text_column (`str`, *optional*):
            Of such a set. Not given: found.
        max_length (`int`, *optional*):
            Tokens of an example at most, of such a set. Not given: 1,024, or the model's positions if they are fewer.
        routing (`dict` or `str`, *optional*):
            Of such a set: fields of `RoutingRuleConfig`, as a dict or JSON. Not given: all tokens of forget examples are
            routed, or with `forget_words` those of the words.
        validation_examples (`int`, *optional*, defaults to `100`):
            Of such a set without `eval_dataset`: so many forget and so many retain examples (and unlabelled ones) are taken
            out to be measured on, at most a tenth of either, one at the least. Given evaluation sets are measured whole.
        kwargs: everything that `CausalLMTrainingConfig` takes.

    Raises:
        ValueError: if one of these fields is out of range.
    """

    router: dict[str, Any] | str | None = setting(
        None, "Router: its name, or a dict (or JSON) with name and settings.", identity=UNLESS_DEFAULT
    )
    multipliers: dict[str, Any] | str | None = setting(
        None,
        "Gradient multipliers (original_forget, ...) as a dict or JSON. Under AdamW the sign acts, the size where "
        "scaled gradient mixes with other; 0 does not stop the down projections.",
        identity=True,
    )
    l1_coefficient: float = setting(1e-4, "Coefficient of the activations' L1 norm per token (0 = off).", identity=True)
    auxiliary_learning_rate_factor: float = setting(
        1.0, "Learning rate of the auxiliary modules over that of the rest.", identity=True
    )
    auxiliary_weight_decay: float | None = setting(
        None, "Weight decay of the auxiliary modules. Not given: that of the rest.", identity=True
    )
    skip_zero_gradients: bool | None = setting(
        None,
        "Neither momentum nor decay moves parameters whose gradient is zero throughout. Not given: as the router says.",
        identity=UNLESS_DEFAULT,
    )
    minimum_ablation_gap: float = setting(
        0.05, "Nats a token below which a warning says that nothing was localised.", identity=False
    )
    expansion: dict[str, Any] | str | None = setting(
        None,
        "How a model is expanded that is not yet: fields of ExpansionConfig, as a dict or JSON.",
        identity=UNLESS_DEFAULT,
    )
    trainable: str | None = setting(
        None,
        "all, routed (base frozen but for the routed MLPs) or modules (auxiliary modules alone).",
        identity=UNLESS_DEFAULT,
    )
    lora: dict[str, Any] | str | None = setting(
        None,
        "LoRA on a frozen base: rank, alpha, dropout, target_modules, attention, as a dict or JSON; {} for defaults.",
        identity=UNLESS_DEFAULT,
    )
    label_column: str | None = setting(
        None, "Of a data set of text: column whose value says what is to be forgotten.", identity=UNLESS_DEFAULT
    )
    forget_labels: list[str] | None = setting(None, "Its values that are to be forgotten.", identity=UNLESS_DEFAULT)
    retain_labels: list[str] | None = setting(
        None, "Its values to retain; all others are then unlabelled. Not given: all others.", identity=UNLESS_DEFAULT
    )
    score_column: str | None = setting(
        None, "Column with the probability (0 to 1) that an example is to be forgotten.", identity=UNLESS_DEFAULT
    )
    forget_words: list[str] | None = setting(
        None, "Examples with one of these words are to be forgotten.", identity=UNLESS_DEFAULT
    )
    modules: dict[str, Any] | str | None = setting(
        None, "Module -> its forget labels, or its forget words, as a dict or JSON.", identity=UNLESS_DEFAULT
    )
    text_column: str | None = setting(None, "Column with the text. Not given: found.", identity=UNLESS_DEFAULT)
    max_length: int | None = setting(
        None, "Tokens of an example at most. Not given: 1,024, or the model's positions.", identity=UNLESS_DEFAULT
    )
    routing: dict[str, Any] | str | None = setting(
        None, "Which tokens are routed: fields of RoutingRuleConfig, as a dict or JSON.", identity=UNLESS_DEFAULT
    )
    validation_examples: int = setting(
        100, "Forget and retain examples taken out to be measured on, each.", identity=UNLESS_DEFAULT
    )
    # The metrics that follow from the two sets may choose the best weights.
    forget_dataset_name: str = setting(
        FORGET_DATASET_NAME, "Name of the evaluation set with the forget examples.", identity=UNLESS_DEFAULT
    )
    retain_dataset_name: str = setting(
        RETAIN_DATASET_NAME, "Name of the evaluation set with the retain examples.", identity=UNLESS_DEFAULT
    )

    def __post_init__(self) -> None:
        self.token_router = _router(self.router, self.multipliers)
        self.multipliers = None
        self.expansion = settings_from_text("training.expansion", self.expansion)
        self.routing = settings_from_text("training.routing", self.routing)
        self.lora = settings_from_text("training.lora", self.lora)
        self.lora_settings = None if self.lora is None else LoraSettings.from_dict(self.lora)
        check_trainable(self.trainable, self.lora)
        self.modules = settings_from_text("training.modules", self.modules)
        routing_rule(self.routing, self.words_label)  # checks it
        check_count("training.validation_examples", self.validation_examples)
        check_count("training.max_length", self.max_length, 2)
        if isinstance(self.token_router, ActivationRouter):
            self.multipliers = self.token_router.multipliers.to_dict()
        if self.forget_dataset_name == self.retain_dataset_name:
            raise ValueError(
                f"`training.retain_dataset_name` and `training.forget_dataset_name` are both "
                f"{self.forget_dataset_name!r}. Name two different sets of `eval_dataset`."
            )
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            # transformers goes by the ending of the name, which `_ablated` hides.
            self.greater_is_better = False if self._is_better_if_smaller(self.metric_for_best_model) else None
        super().__post_init__()

    @property
    def leaves_zero_gradients_out(self) -> bool:
        """`skip_zero_gradients`, or what the router says."""
        given = self.skip_zero_gradients
        return self.token_router.skips_zero_gradients if given is None else given

    @property
    def words_label(self) -> bool:
        """Whether words say what is to be forgotten."""
        return bool(self.forget_words or (self.modules and self.label_column is None))

    def _is_better_if_smaller(self, metric: str) -> bool:
        name = metric.removeprefix("eval_")
        of_forget = name == f"{self.forget_dataset_name}_loss_ablated"
        return name == "retain_ablation_gap" or (name.endswith("loss_ablated") and not of_forget)


def _router(router: dict[str, Any] | str | None, multipliers: Any) -> Router:
    """The router that the two settings describe; raises `ValueError` if they contradict each other."""
    if isinstance(router, str) and router.lstrip().startswith("{"):
        router = settings_from_text("training.router", router)
    chosen = make_router(ActivationRouter.name if router is None else router)
    if multipliers is None:
        return chosen
    if chosen != ActivationRouter():
        raise ValueError(
            f"`training.multipliers` belongs to the router `{ActivationRouter.name}` without settings of its own, but the "
            f"router is {router!r}. Give one of the two."
        )
    return ActivationRouter(parse_multipliers(multipliers))


def settings_from_text(name: str, value: Any) -> dict[str, Any] | None:
    """Settings that are given as a dict, as JSON (on a command line), or as an object of its class."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"`{name}` should be a dict or JSON, got {short_repr(value)}.") from error
    elif is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"`{name}` should be a dict or JSON, got {short_repr(value)}.")
    return value


def routing_rule(values: Any, with_words: bool) -> RoutingRuleConfig:
    """The rule of these settings. Without any: all tokens of forget examples, or where words label them those of the words.

    Raises:
        ValueError: for a setting that does not exist or is out of range, or words' tokens where there are no words.
    """
    known = [item.name for item in fields(RoutingRuleConfig)]
    for key in values or {}:
        if key not in known:
            raise ValueError(unknown_key_message("`training.routing`", key, known))
    rule = RoutingRuleConfig(**(values or ({"rule": "concept"} if with_words else {"weighting": "uniform"})))
    if rule.rule == "concept" and not with_words:
        raise ValueError(
            "`routing` has the rule 'concept', which routes the tokens of forget words, but no `forget_words` are given: "
            "nothing would be routed. Name them, or choose the rule 'full_seq'."
        )
    return rule
