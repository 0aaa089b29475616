"""A small byte-level BPE tokenizer, trained on the texts at hand, for models that are trained from scratch."""

from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

BOS_TOKEN, EOS_TOKEN, PAD_TOKEN = "<|bos|>", "<|eos|>", "<|pad|>"
"""The special tokens; their ids are 0, 1 and 2."""

MINIMUM_VOCAB_SIZE = 256 + 3
"""One entry per byte, so that no text is unknown, and the three special tokens."""


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 2048, model_max_length: int = 2048
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on `texts`. The same texts in the same order give the same tokenizer.

    It adds no special token when it encodes: BOS and EOS (ids 0, 1) are put in once, where examples are built. Every text
    is encoded and decoded without loss, emoji and unknown scripts included. Padding (id 2) is on the right.

    Args:
        texts (`Iterable[str]`): at least one must hold more than white space. Read once, so a generator will do.
        vocab_size (`int`, *optional*, defaults to `2048`): most entries, bytes and special tokens included; at least
            `MINIMUM_VOCAB_SIZE`. Few texts may give fewer: `len(tokenizer)` is the true number.
        model_max_length (`int`, *optional*, defaults to `2048`): longest input in tokens, which `truncation=True` cuts to.

    Raises:
        ValueError: if `vocab_size` or `model_max_length` is too small, or there is nothing to train on.
        TypeError: if `texts` is one string rather than several.
    """
    if isinstance(texts, str):
        raise TypeError("`texts` should be an iterable of strings, got one string. Pass a list: `[text]`.")
    if vocab_size < MINIMUM_VOCAB_SIZE:
        raise ValueError(
            f"`vocab_size` should be at least {MINIMUM_VOCAB_SIZE} (256 bytes and 3 special tokens), got {vocab_size}. "
            "Pass a larger one, such as 2048."
        )
    if model_max_length < 1:
        raise ValueError(f"`model_max_length` should be at least 1, got {model_max_length}. Pass a number of tokens.")
    documents = [text for text in texts if text.strip()]
    if not documents:
        raise ValueError("`texts` should hold at least one text that is not empty, got none. Check the data set.")

    backend = Tokenizer(BPE())
    # No prefix space: offsets and the words at the beginning of a text stay as they were written.
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS_TOKEN, EOS_TOKEN, PAD_TOKEN],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(documents, trainer=trainer)
    return _wrap(backend, model_max_length)


def tokenizer_from_json(text: str, model_max_length: int = 2048) -> PreTrainedTokenizerFast:
    """The tokenizer that `train_tokenizer` made, from its `backend_tokenizer.to_str()`."""
    return _wrap(Tokenizer.from_str(text), model_max_length)


def _wrap(backend: Tokenizer, model_max_length: int) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        model_max_length=model_max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
