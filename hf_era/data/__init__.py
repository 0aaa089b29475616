"""Examples in, batches out: load, label, split, tokenise, weigh, collate."""

from hf_era.data.collator import RoutingCollator, padding_token_id
from hf_era.data.columns import longest_first
from hf_era.data.config import GENERATOR, DataConfig
from hf_era.data.examples import examples_of
from hf_era.data.generator import generate_stories
from hf_era.data.labelling import FORGET, RETAIN, UNLABELLED, Labels
from hf_era.data.padding_rows import PaddedSampler, PaddingRowCollator, StoriesWithPaddingRows
from hf_era.data.preparation import (
    PreparedData,
    Sources,
    data_fingerprint,
    load_sources,
    load_splits,
    prepare_data,
    split_sources,
)
from hf_era.data.prepared_cache import CachedData, cached_data, prepared_data_key
from hf_era.data.sources import load_stories
from hf_era.data.splits import StorySplits
from hf_era.data.tokenizer import tokenizer_from_json, train_tokenizer
from hf_era.data.word_pieces import ForgetWordPiecesWarning
from hf_era.data.words import WordFinder

__all__ = [
    "FORGET",
    "GENERATOR",
    "RETAIN",
    "UNLABELLED",
    "CachedData",
    "DataConfig",
    "ForgetWordPiecesWarning",
    "Labels",
    "PaddedSampler",
    "PaddingRowCollator",
    "PreparedData",
    "RoutingCollator",
    "Sources",
    "StoriesWithPaddingRows",
    "StorySplits",
    "WordFinder",
    "cached_data",
    "data_fingerprint",
    "examples_of",
    "generate_stories",
    "load_sources",
    "load_splits",
    "load_stories",
    "longest_first",
    "padding_token_id",
    "prepare_data",
    "prepared_data_key",
    "split_sources",
    "tokenizer_from_json",
    "train_tokenizer",
]
