"""Stories in, batches out: load, label, split, tokenise, weigh, collate."""

from hf_era.data.collator import RoutingCollator, padding_token_id
from hf_era.data.config import GENERATOR, DataConfig
from hf_era.data.generator import generate_stories
from hf_era.data.labelling import FORGET, RETAIN, UNLABELLED, WordFinder
from hf_era.data.preparation import PreparedData, data_fingerprint, load_splits, prepare_data
from hf_era.data.sources import load_stories
from hf_era.data.splits import StorySplits
from hf_era.data.tokenizer import train_tokenizer

__all__ = [
    "FORGET",
    "GENERATOR",
    "RETAIN",
    "UNLABELLED",
    "DataConfig",
    "PreparedData",
    "RoutingCollator",
    "StorySplits",
    "WordFinder",
    "data_fingerprint",
    "generate_stories",
    "load_splits",
    "load_stories",
    "padding_token_id",
    "prepare_data",
    "train_tokenizer",
]
