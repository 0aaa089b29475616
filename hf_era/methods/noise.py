"""Damage to a trained model's weights: what it knows has to leave them before they can learn anew without it.

A weight becomes (1 - alpha) w + alpha beta n. n is drawn as a Xavier-uniform start is, for matrices alone (UNDO, Lee et
al. 2025, arXiv 2506.06278, section 4), or is a fresh model's weight (shrink and perturb, Ash and Adams 2020, arXiv
1910.08475); `beta: 0` shrinks and adds nothing. Which weights: all, embeddings too; those of the blocks alone; or in every
tensor the share that forget examples move far more than retain examples do (importance as in selective synaptic dampening,
Foster et al. 2023, arXiv 2308.07707, equation 4).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor, nn

from hf_era.data import FORGET, RETAIN
from hf_era.methods.method import Run, stories_labelled
from hf_era.methods.post_training import batches_of
from hf_era.models import family_for
from hf_era.models.loading import load_causal_lm
from hf_era.utils.checks import check_count, check_share, unknown_value_message
from hf_era.utils.fields import UNLESS_DEFAULT, setting

XAVIER, INITIAL = "xavier_uniform", "initial"
BETA = {XAVIER: 0.1, INITIAL: 1.0}
"""Kind of noise -> its size where none is given."""
TRAINS_ALL = "trains every weight that it noises"
"""Why methods with noise refuse to freeze anything."""
ALL, BLOCKS, SELECTIVE = NOISED = ("all", "blocks", "selective")


@dataclass
class NoiseSettings:
    """The noise that a model's weights get.

    Args:
        alpha (`float`, *optional*, defaults to `0.6`): in [0, 1]: 0 leaves the weights as they are, 1 leaves nothing of
            them. UNDO has 0.1 to 0.8.
        noise (`str`, *optional*, defaults to `"xavier_uniform"`): what is put in: `xavier_uniform`, for matrices, as in
            UNDO, where vectors shrink; or `initial`, the weights of a fresh model of this architecture, vectors too.
        beta (`float`, *optional*): at least 0: size of the noise. Not given: 0.1 for `xavier_uniform`, UNDO's; 1 for
            `initial`: with `alpha: 1` a fresh model.
        noised (`str`, *optional*, defaults to `"all"`): which weights: `all`; `blocks`, without embeddings, head and last
            norm; `selective`, in every tensor those that are the most important to forget examples over retain examples.
        selective_share (`float`, *optional*, defaults to `0.25`): with `selective`: of every tensor's weights, above 0, at
            most 1.
        selective_examples (`int`, *optional*, defaults to `256`): with `selective`: examples of either kind, at most,
            that importance is measured on.
        spare_norms (`bool`, *optional*, defaults to `False`): leave the gains and biases of norms as they are. UNDO shrinks
            all vectors alike.
    """

    alpha: float = setting(0.6, "Share of the weights that noise takes the place of, in [0, 1].", identity=True)
    noise: str = setting(XAVIER, f"What is put in: {' or '.join(BETA)}.", identity=UNLESS_DEFAULT)
    beta: float | None = setting(None, "Size of the noise, at least 0. Not given: 0.1, of `initial` 1.", identity=True)
    noised: str = setting(ALL, f"Which weights: {', '.join(NOISED)}.", identity=UNLESS_DEFAULT)
    selective_share: float = setting(0.25, "Of every tensor, with `noised: selective`.", identity=UNLESS_DEFAULT)
    selective_examples: int = setting(256, "Of either kind, for `noised: selective`.", identity=UNLESS_DEFAULT)
    spare_norms: bool = setting(False, "Leave gains and biases of norms as they are.", identity=True)

    def __post_init__(self) -> None:
        check_share("method_settings.alpha", self.alpha)
        for name, known in (("noise", BETA), ("noised", NOISED)):
            if getattr(self, name) not in known:
                raise ValueError(unknown_value_message(f"method_settings.{name}", getattr(self, name), known))
        if self.beta is None:
            self.beta = BETA[self.noise]
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"`method_settings.beta` should be a finite number >= 0, got {self.beta}.")
        if not 0 < self.selective_share <= 1:
            raise ValueError(
                f"`method_settings.selective_share` should be above 0 and at most 1, got {self.selective_share}."
            )
        check_count("method_settings.selective_examples", self.selective_examples)

    def check_retain(self, retain_stories: int) -> None:
        """Raises `ValueError` where importance is asked for and there is nothing to compare forget examples with."""
        if self.noised == SELECTIVE and not retain_stories:
            raise ValueError(
                "`method_settings.noised` is 'selective', which compares forget with retain examples, but no training "
                "example is labelled retain. Label some, or set `method_settings.noised: all`."
            )

    @property
    def noise_text(self) -> str:
        """In a few words."""
        which = f"{self.selective_share:g} of the weights" if self.noised == SELECTIVE else f"{self.noised} weights"
        return f"noise {self.alpha:g} ({self.noise}, {which})"

    @property
    def noise_prose(self) -> str:
        """What becomes of the weights, as the end of a sentence about them: `35 % of every tensor, ..., began anew`."""
        which = {
            ALL: "all weights",
            BLOCKS: "the weights of all blocks",
            SELECTIVE: f"{100 * self.selective_share:g} % of every tensor, the weights that matter most to forget examples,",
        }[self.noised]
        anew = self.alpha == 1 and self.noise == INITIAL and self.beta == BETA[INITIAL]
        return f"{which} {'began anew' if anew else f'were mixed with noise ({self.alpha:g} of it)'}"


def damage(model: nn.Module, run: Run) -> None:
    """Adds the noise of `run.method_settings` to a stock model in place; the same each time."""
    settings: NoiseSettings = run.method_settings
    chosen: Mapping[str, Tensor] | None = None
    if settings.noised == SELECTIVE:
        chosen = forget_selective(run)
    elif settings.noised == BLOCKS:
        blocks = family_for(run.base_config, run.expansion).blocks + "."
        chosen = {name: torch.tensor(True) for name, _ in model.named_parameters() if name.startswith(blocks)}
    add_noise(model, settings, noise_seed(run.seed), chosen)


def noise_seed(seed: int) -> int:
    """The noise's seed in a run with this one. Not the run's own: a base that was trained here began from the weights of
    that seed, and to begin anew from those is to go back, which nobody can whose model comes from elsewhere."""
    return random.Random(f"noise-{seed}").getrandbits(63)


@torch.no_grad()
def add_noise(model: nn.Module, settings: NoiseSettings, seed: int, chosen: Mapping[str, Tensor] | None = None) -> None:
    """Damages the weights of a model in place: (1 - alpha) * w + alpha * beta * n. A tied weight is damaged once.

    Args:
        model: a stock model; its buffers are left alone.
        settings (`NoiseSettings`): alpha, beta, n, and whether norms are spared.
        seed (`int`): of the noise, which has a generator of its own.
        chosen (*optional*): name -> bool, of the parameter's shape or a scalar: the weights that are damaged; those of a
            parameter that is not named are left. Not given: all.
    """
    spared = norm_parameters(model) if settings.spare_norms else set()
    draw = _xavier_uniform(seed) if settings.noise == XAVIER else _fresh(model, seed)
    size = settings.alpha * float(settings.beta or 0.0)
    for name, weight in model.named_parameters():
        noise = draw(name, weight)
        if name in spared or (chosen is not None and name not in chosen):
            continue
        damaged = weight * (1 - settings.alpha) + noise.to(weight) * size
        weight.copy_(damaged if chosen is None else torch.where(chosen[name].to(weight.device), damaged, weight))


def _xavier_uniform(seed: int) -> Callable[[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, weight: Tensor) -> Tensor:
        if weight.dim() < 2:
            return torch.zeros(())
        return nn.init.xavier_uniform_(torch.empty(weight.shape), generator=generator)

    return draw


def _fresh(model: nn.Module, seed: int) -> Callable[[str, Tensor], Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Its own class, which takes the attention that its config names; and in fp32, whatever the checkpoint is in.
        fresh = dict(cast(Any, type(model))(copy.deepcopy(cast(Any, model).config)).named_parameters())
    return lambda name, weight: fresh[name]


def norm_parameters(model: nn.Module) -> set[str]:
    """Names of the gains and biases of all norms: LayerNorm, RMSNorm, and what families call theirs."""
    return {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for name, _ in module.named_parameters(recurse=False)
    }


# ---- Which weights are selective of forget examples ----


def forget_selective(run: Run) -> dict[str, Tensor]:
    """Name -> bool, of the parameter's shape, on the CPU: the share of its elements whose importance to forget examples over
    that to retain examples is largest, in the model before the method. It is held once more for that, with its gradients and
    one value for each weight; every process does the same."""
    settings: NoiseSettings = run.method_settings
    most = settings.selective_examples
    model = load_causal_lm(run.before_model).to(run.arguments.device, torch.float32).eval()
    forget, retain = (
        importance(model, batches_of(run, _drawn(stories_labelled(run.data, label), most, run.seed), size=1))
        for label in (FORGET, RETAIN)
    )
    tiny = torch.finfo(torch.float32).tiny
    broken = [name for name in forget if not (forget[name].isfinite() & retain[name].isfinite()).all()]
    if broken:
        raise ValueError(
            f"`method_settings.noised` is 'selective', which needs gradients of the model before the method, and those of "
            f"{broken[0]} ({len(broken)} of {len(forget)} tensors) are not finite. Mend that model, or set "
            "`method_settings.noised: all`."
        )
    return {
        name: largest_share(value / (retain[name] + tiny), settings.selective_share) for name, value in forget.items()
    }


def _drawn(examples: Dataset, most: int, seed: int) -> Dataset:
    """At most so many of the examples, drawn at random: the first of a sorted file would be of one kind."""
    if len(examples) <= most:
        return examples
    return examples.select(sorted(random.Random(seed).sample(range(len(examples)), most)))


def importance(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Name -> squared gradient of the loss, of the parameter's shape and on the CPU, mean over batches: of one example each
    the diagonal of the empirical Fisher information."""
    sums = {name: torch.zeros_like(value, requires_grad=False) for name, value in model.named_parameters()}
    count = 0
    for batch in batches:
        model.zero_grad(set_to_none=True)
        model(**batch).loss.backward()
        for name, value in model.named_parameters():
            if value.grad is not None:
                sums[name].addcmul_(value.grad, value.grad)
        count += 1
    model.zero_grad(set_to_none=True)
    return {name: value.cpu() / max(count, 1) for name, value in sums.items()}


def largest_share(values: Tensor, share: float) -> Tensor:
    """Bool, of the shape of `values`, none of which is negative: its largest elements, this share of them, at least one.
    Ties are all taken; zeros never."""
    number = max(round(share * values.numel()), 1)
    return (values >= values.flatten().kthvalue(values.numel() - number + 1).values) & (values > 0)
