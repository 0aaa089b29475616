"""The settings of generation, how tokens are sampled, and the description of texts of several stages."""

import math

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_era.evaluation.generation import describe_generations, generate_texts
from hf_era.evaluation.prompts import LabelledPrompts
from hf_era.evaluation.sampling import SamplingConfig, choice_of_tokens


def test_defaults_are_those_of_the_reference() -> None:
    assert SamplingConfig().to_dict() == {
        "enabled": True,
        "prompts": None,
        "prompt_examples": 4,
        "prompt_tokens": 8,
        "new_tokens": 200,
        "temperature": 0.7,
        "top_k": 50,
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompts", [], r"`generation\.prompts` is empty\. Give at least one, leave it out to take"),
        ("prompts", "Once", r"`generation\.prompts` should be a list, got the string 'Once'"),
        ("prompts", ["Once", 3], r"`generation\.prompts` should hold strings, got 3"),
        ("prompt_tokens", 0, r"`generation\.prompt_tokens` should be at least 1, got 0"),
        ("new_tokens", 0, r"`generation\.new_tokens` should be at least 1, got 0"),
        ("temperature", -1.0, r"`generation\.temperature` should be >= 0, got -1\.0\."),
        ("temperature", math.nan, r"`generation\.temperature` should be >= 0, got nan\."),
        ("temperature", math.inf, r"`generation\.temperature` should be >= 0, got inf\."),
        ("top_k", -1, r"`generation\.top_k` should be at least 0, got -1\."),
        ("seed", -1, r"`generation\.seed` should be at least 0, got -1\."),
    ],
)
def test_settings_out_of_range_are_named(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**{field: value})


def shares(config: SamplingConfig, logits: torch.Tensor, draws: int = 4_000) -> torch.Tensor:
    """How often each token is chosen."""
    choice = choice_of_tokens(config, range(1))
    ids = torch.zeros(1, 1, dtype=torch.int64)
    chosen = [int(choice(ids, logits[None].clone()).argmax()) for _ in range(draws)]
    return torch.bincount(torch.tensor(chosen), minlength=len(logits)) / draws


def test_tokens_are_sampled_by_temperature_and_top_k() -> None:
    logits = torch.tensor([1.0, 0.5, 2.0, -1.0, 1.5])
    # The standard error of a share is below sqrt(0.25 / 4000) = 0.008; four of them are allowed for.
    expected = (logits / 0.7).softmax(0)
    assert torch.allclose(shares(SamplingConfig(temperature=0.7, top_k=0), logits), expected, atol=0.032)
    kept = (logits[[2, 4, 0]] / 0.7).softmax(0)
    found = shares(SamplingConfig(temperature=0.7, top_k=3), logits)
    assert torch.allclose(found[[2, 4, 0]], kept, atol=0.032)
    assert found[[1, 3]].tolist() == [0, 0]
    assert shares(SamplingConfig(temperature=0.0), logits, draws=5).tolist() == [0, 0, 1, 0, 0]


def test_each_prompt_and_seed_has_noise_of_its_own() -> None:
    noise = []
    for seed in (0, 1):
        choice = choice_of_tokens(SamplingConfig(seed=seed, temperature=1.0, top_k=0), range(2))
        noise += list(choice(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 50)))
    assert len({tuple(row.tolist()) for row in noise}) == 4


def test_the_space_between_prompt_and_continuation_is_kept() -> None:
    """A decoder that drops the space in front of a text, as that of Llama does."""
    words = ["<unk>", "▁the", "▁tree", "▁fell", "▁down"]
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = Metaspace(), MetaspaceDecoder()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert tokenizer.decode([2]) == "tree"
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=5, **sizes))
    prompts = ["the tree", "fell"]
    texts, _ = generate_texts(model, tokenizer, SamplingConfig(prompts=prompts, new_tokens=3, temperature=1.0))
    for text, prompt in zip(texts, prompts, strict=True):
        assert text.startswith(f"{prompt} ")
        assert set(text.split()) <= {"the", "tree", "fell", "down"}


def test_description_of_several_stages() -> None:
    prompts = ["The tree", "A bird"]
    texts = {
        "before": ["The tree fell on trees", "A bird a bird a bird"],
        "final": ["The tree", "A bird flew to a tree."],
    }
    settings = SamplingConfig(prompts=prompts, new_tokens=9, temperature=0.5, top_k=7, seed=3)
    labelled = LabelledPrompts(settings, ["forget", None])
    # "A bird a", "bird a bird", "a bird a", "bird a bird": 3 of 4 are distinct, and the other text repeats nothing.
    expected = {
        "settings": {"new_tokens": 9, "temperature": 0.5, "top_k": 7, "seed": 3},
        "prompts": prompts,
        "prompt_labels": ["forget", None],
        "texts": texts,
        "target_words": {"before": {"all": 2, "without_prompt": 1}, "final": {"all": 2, "without_prompt": 1}},
        "repetition": {"before": (0 + 1 / 4) / 2, "final": 0.0},
    }
    assert describe_generations(texts, labelled, ["tree", "trees"]) == expected
    fewer = describe_generations(texts, labelled, ["tree", "trees"], new_tokens=5)
    assert fewer["settings"]["new_tokens"] == 5
    uncounted = describe_generations(texts, labelled, [])  # 0 would read like unlearning
    assert set(map(str, uncounted["target_words"].values())) == {"{'all': None, 'without_prompt': None}"}
