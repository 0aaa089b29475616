"""What of a row is an example: text, messages through a chat template, prompt and completion; from every kind of file."""

import bz2
import gzip
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerFast

from hf_era.data import DataConfig, Labels, examples_of, load_sources, load_splits, load_stories
from hf_era.data.collator import IGNORE_INDEX, RoutingCollator
from hf_era.data.examples import Examples
from hf_era.data.routing_weights import frequency_table, weigh_examples
from hf_era.data.tokenising import label_examples, tokenise_examples
from hf_era.routing import RoutingRuleConfig

WORDS = Labels(forget_words=["tree"], section="data.")
ROWS = [
    {"text": "One tree.", "source": "a"},
    {"text": "Two\nlines.", "source": "b"},
    {"text": "Drei Bäume 🌲", "source": "c"},
]
TEXTS = [row["text"] for row in ROWS]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def read(source: Path, tokenizer: Any = None, text_column: str | None = None) -> Examples:
    rows = load_stories(str(source))
    options = {"text_column": text_column, "tokenizer": tokenizer}
    return examples_of(rows, WORDS, field="data.train", source=str(source), **options)


def texts_of(source: Path, **options: Any) -> list[str | None]:
    examples = read(source, **options).examples
    assert examples.column_names == ["text"]
    return list(examples["text"])


# The text column


@pytest.mark.parametrize("column", ["text", "story", "content"])
def test_usual_names_of_the_text_column_are_found(write: Callable[..., Path], column: str) -> None:
    rows = [{"author": "x", column: text, "number": 1} for text in TEXTS]
    assert texts_of(write("stories.jsonl", rows)) == TEXTS


def test_text_goes_before_story_and_both_before_messages(write: Callable[..., Path]) -> None:
    row = {
        "messages": [{"role": "user", "content": "no"}],
        "story": "no",
        "text": "yes",
        "prompt": "n",
        "completion": "o",
    }
    found = read(write("stories.jsonl", [row]))
    assert found.examples["text"][:] == ["yes"]
    assert found.unused_columns == ["messages", "story", "prompt", "completion"]


def test_the_only_column_with_text_is_found(write: Callable[..., Path]) -> None:
    rows = [{"number": 1, "Tale": text} for text in TEXTS]
    assert texts_of(write("stories.jsonl", rows)) == TEXTS


def test_a_named_text_column(write: Callable[..., Path]) -> None:
    path = write("stories.jsonl", ROWS)
    assert texts_of(path, text_column="source") == ["a", "b", "c"]
    config = DataConfig(train=str(path), text_column="source", forget_words=["a"])
    loaded = load_sources(config, seed=0)
    assert loaded.train["text"][:] == ["a", "b", "c"]
    assert loaded.unused_columns == {"data.train": ["text"]}


def test_a_missing_text_column_lists_the_columns(write: Callable[..., Path]) -> None:
    with pytest.raises(
        ValueError,
        match=r"`data\.train`: .*stories\.jsonl has no text column `body`\. Its columns: text, source\. "
        r"Name the one with the examples: `--data\.text_column NAME`\.",
    ):
        read(write("stories.jsonl", ROWS), text_column="body")


def test_an_unclear_text_column_lists_the_columns(write: Callable[..., Path]) -> None:
    path = write("stories.jsonl", [{"title": "a", "body": "b", "number": 1}])
    with pytest.raises(ValueError, match=r"no column that is clearly the text\. Its columns: title, body, number\."):
        read(path)


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([{"text": 5}, {"text": 7}], "values of type int64"),
        ([{"text": "a"}, {"text": 7}], "values of type Json"),
        ([{"text": ["a"]}, {"text": ["b"]}], "values of type List"),
        ([{"text": None}], "nulls only"),
    ],
)
def test_values_that_are_no_strings_are_an_error(write: Callable[..., Path], rows: list[Any], kind: str) -> None:
    path = write("stories.jsonl", rows)
    with pytest.raises(
        ValueError,
        match=rf"`data\.train`: the column `text` of .*stories\.jsonl holds {kind}, but every value should be a string",
    ):
        read(path)
    with pytest.raises(ValueError, match=rf"the column `text` of .* holds {kind}"):
        read(path, text_column="text")


def test_null_and_blank_examples_are_dropped_and_counted(write: Callable[..., Path]) -> None:
    numbers = range(12)
    rows = [{"text": f"A tree and {number}."} for number in numbers]
    rows += [{"text": f"Story {number}."} for number in numbers]
    rows[3:3] = [{"text": None}, {"text": " \n\t"}, {"text": ""}]
    path = write("stories.jsonl", rows)
    assert texts_of(path)[3:6] == [None, " \n\t", ""]
    counts = {
        "forget_validation_stories": 2,
        "retain_validation_stories": 2,
        "attack_stories": 2,
        "coherence_validation_stories": 0,
    }
    splits = load_splits(DataConfig(train=str(path), forget_words=["tree"], **counts), seed=0)
    assert splits.blanks_dropped == 3
    assert splits.duplicates_dropped == 0
    kept = [len(part) for part in (splits.train, splits.validation_forget, splits.validation_retain)]
    assert [*kept, len(splits.attack_forget)] == [18, 2, 2, 2]


# Kinds of files

TABLE = [{"text": "NA", "topic": "a"}, {"text": "None", "topic": None}, {"text": 'A "b", c', "topic": "nan"}]
LINES = "".join(json.dumps(row) + "\n" for row in TABLE).encode()
SEPARATED = 'text,topic\nNA,a\nNone,\n"A ""b"", c",nan\n'


def zipped(content: bytes, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rows.jsonl", content)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "rows.csv": lambda path: path.write_text(SEPARATED),
    "rows.tsv": lambda path: path.write_text(SEPARATED.replace('"A ""b"", c"', "A 'b'; c").replace(",", "\t")),
    "rows.csv.gz": lambda path: path.write_bytes(gzip.compress(SEPARATED.encode())),
    "rows.ndjson": lambda path: path.write_bytes(LINES),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "rows.JSONL.BZ2": lambda path: path.write_bytes(bz2.compress(LINES)),
    "rows.jsonl.xz": lambda path: path.write_bytes(lzma.compress(LINES)),
    "rows.jsonl.zip": lambda path: zipped(LINES, path),
    "rows.parquet": lambda path: Dataset.from_list(TABLE).to_parquet(path),
    "saved": lambda path: DatasetDict({"train": Dataset.from_list(TABLE)}).save_to_disk(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_table(tmp_path: Path, name: str) -> None:
    """What a table holds as text is text: "NA", "None" and "nan" are no nulls, an empty field is one."""
    WRITERS[name](tmp_path / name)
    expected = TABLE if name != "rows.tsv" else [*TABLE[:2], {"text": "A 'b'; c", "topic": "nan"}]
    assert load_stories(str(tmp_path / name)).to_list() == expected


def test_an_arrow_file_of_a_saved_data_set(tmp_path: Path) -> None:
    Dataset.from_list(TABLE).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    file.rename(tmp_path / "rows.arrow")
    assert load_stories(str(tmp_path / "rows.arrow")).to_list() == TABLE


def test_a_compressed_text_file(tmp_path: Path) -> None:
    (tmp_path / "texts.txt.gz").write_bytes(gzip.compress("\ufeffa\n\nÄ b\n".encode()))
    assert load_stories(str(tmp_path / "texts.txt.gz"))["text"][:] == ["a", "Ä b"]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress], ids=["gz", "bz2"])
def test_a_broken_line_of_a_compressed_file_is_given_with_its_number(tmp_path: Path, compress: Any) -> None:
    path = tmp_path / f"rows.jsonl.{'gz' if compress is gzip.compress else 'bz2'}"
    path.write_bytes(compress(LINES + b'{"text": "x"\n' + LINES))
    with pytest.raises(
        ValueError, match=rf"`data\.train`: .*{path.name} line 4 is no valid JSON \(.* at column \d+\)\."
    ):
        load_stories(str(path))
    path.write_bytes(compress(LINES)[:-9])
    with pytest.raises(ValueError, match=rf"`data\.train`: .*{path.name} cannot be read as json: "):
        load_stories(str(path))


# The folder of a snapshot

CARD = """---
license: mit
configs:
- config_name: stories
  data_files:
  - split: train
    path: parts/first-*.jsonl
  - split: held_out
    path: [parts/other.csv]
- config_name: {other}
  data_files: plain.txt
---
A card.
"""


@pytest.fixture
def snapshot(write: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    def make(other: str = "plain") -> str:
        write("snapshot/README.md", CARD.format(other=other))
        write("snapshot/parts/first-2.jsonl", [{"text": "b"}])
        write("snapshot/parts/first-1.jsonl", [{"text": "a"}])
        write("snapshot/parts/other.csv", "text\nc\n")
        write("snapshot/parts/unlisted.jsonl", [{"text": "x"}])
        write("snapshot/plain.txt", "d\n")
        return str(tmp_path / "snapshot")

    return make


def test_a_snapshot_is_read_as_its_card_says(snapshot: Callable[..., str]) -> None:
    folder = snapshot()
    for subset, split, texts in (("stories", "train", "ab"), ("stories", "held_out", "c"), ("plain", "train", "d")):
        assert load_stories(folder, subset=subset, split=split)["text"][:] == list(texts)
    assert load_stories(snapshot("default"))["text"][:] == ["d"]  # nobody names one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"has several, and no configuration is named: `data\.subset`\. Known: stories, plain\."),
        ({"subset": "story"}, r"there is no configuration `story`: `data\.subset`\. Known: stories, plain\."),
        ({"subset": "stories", "split": "test"}, r"snapshot has no split `test`\. Known: train, held_out\."),
    ],
)
def test_what_a_snapshot_does_not_have(snapshot: Callable[..., str], options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=rf"`data\.train`: .*{message}"):
        load_stories(snapshot(), **options)


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ("[{config_name: a, data_files: gone/*.csv}]", r"holds no file gone/\*\.csv, which its card names\."),
        ("[{config_name: a, data_files: /etc/x.csv}]", r"holds no file /etc/x\.csv, which its card names\."),
        ("[{config_name: a, data_files: ../out.csv}]", r"holds no file \.\./out\.csv, which its card names\."),
        ("[3]", r"the card .*README\.md cannot be read: (.|\n)*\. Name a file instead\."),
        ("[", r"the card .*README\.md cannot be read: (.|\n)*\. Name a file instead\."),
    ],
)
def test_a_card_that_names_nothing(write: Callable[..., Path], tmp_path: Path, configs: str, message: str) -> None:
    write("out.csv", "text\nx\n")
    write("snapshot/README.md", f"---\nconfigs: {configs}\n---\n")
    write("snapshot/rows.csv", "text\na\n")
    with pytest.raises(ValueError, match=rf"`data\.train`: .*{message}"):
        load_stories(str(tmp_path / "snapshot"))


def test_a_card_without_configurations_is_none(
    write: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write("folder/rows.csv", "text\na\n")
    for card in ("What is in here.", "---\nlicense: mit\n---\n", ""):
        write("folder/README.md", card)
        assert load_stories(str(tmp_path / "folder"))["text"][:] == ["a"]
    assert not caplog.messages


# Messages


@pytest.fixture(scope="module")
def chat_tokenizer(small_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    backend = type(small_tokenizer.backend_tokenizer).from_str(small_tokenizer.backend_tokenizer.to_str())
    names = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.add_tokens(["<|user|>", "<|assistant|>", "<|end|>"], special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tokenise(rows: list[dict[str, Any]], tokenizer: Any, labels: Labels = WORDS, **options: Any) -> Dataset:
    config = DataConfig(**{"forget_words": ["tree"], **options})
    examples, _ = examples_of(Dataset.from_list(rows), labels, field="data.train", source="rows", tokenizer=tokenizer)
    return tokenise_examples(label_examples(examples, config, "examples"), tokenizer, config, "examples")


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]


def test_a_chat_template_says_where_messages_begin_and_end(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"messages": turns("A tree?", "Yes.")}, {"messages": turns("The sea?")}, {"messages": []}]
    tokenised = tokenise(rows, chat_tokenizer, add_bos=True, add_eos=True)
    assert tokenised["text"][:] == ["<|user|>A tree?<|end|><|assistant|>Yes.<|end|>", "<|user|>The sea?<|end|>"]
    assert tokenised["label"][:] == [0, 1]
    assert "labels" not in tokenised.column_names
    for text, ids in zip(tokenised["text"], tokenised["input_ids"], strict=True):
        assert ids == chat_tokenizer(text, add_special_tokens=False)["input_ids"]
        assert chat_tokenizer.convert_ids_to_tokens(ids[0]) == "<|user|>"
        assert chat_tokenizer.convert_ids_to_tokens(ids[-1]) == "<|end|>"


def test_keys_that_only_other_messages_have_do_not_reach_the_template(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = Dataset.from_list(
        [{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b", "name": "n"}]}]
    )
    strict = "{% for m in messages %}{{ m.content }}{{ '!' if 'name' in m }}{% endfor %}"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=chat_tokenizer.backend_tokenizer, chat_template=strict)
    examples, _ = examples_of(rows, WORDS, field="data.train", source="rows", tokenizer=tokenizer)
    assert examples["text"][:] == ["ab!"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            None,
            r"which need a chat template, but the tokenizer has none\. Name a tokenizer with one \(`model\.tokenizer`; ",
        ),
        ("{{ raise_exception('no system') }}", r"and the chat template does not take \[\{.*: .*no system"),
    ],
)
def test_messages_that_no_template_takes(small_tokenizer: Any, template: str | None, message: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=small_tokenizer.backend_tokenizer, chat_template=template)
    with pytest.raises(ValueError, match=rf"`data\.train`: the column `messages` of rows holds messages, {message}"):
        tokenise([{"messages": turns("A tree?")}], tokenizer)
    rows = Dataset.from_list([{"messages": turns("A tree?")}])
    if template is None:
        with pytest.raises(ValueError, match=r"but a tokenizer that is trained here has none\."):
            examples_of(rows, WORDS, field="data.train", source="rows")


# Prompt and completion


def predicted(example: dict[str, Any]) -> list[int]:
    return [
        token for token, label in zip(example["input_ids"], example["labels"], strict=True) if label != IGNORE_INDEX
    ]


@pytest.mark.parametrize("options", [{}, {"add_bos": False}, {"add_eos": True}])
def test_there_is_no_loss_on_the_prompt(small_tokenizer: PreTrainedTokenizerFast, options: dict[str, bool]) -> None:
    rows = [{"prompt": "The old tree", "completion": " fell down."}, {"prompt": None, "completion": "All of it."}]
    rows.append({"prompt": "By the sea", "completion": None})
    whole, alone = tokenise(rows, small_tokenizer, **options)

    def ids(text: str) -> list[int]:
        return small_tokenizer(text, add_special_tokens=False)["input_ids"]

    end = [small_tokenizer.eos_token_id] if options.get("add_eos") else []
    assert whole["text"] == "The old tree fell down."
    assert predicted(whole) == [*ids(" fell down."), *end]
    prompt = len(whole["labels"]) - len(predicted(whole))
    assert whole["labels"][:prompt] == [IGNORE_INDEX] * prompt
    assert prompt == len(ids("The old tree")) + options.get("add_bos", True)
    assert predicted(alone)[-len([*ids("All of it."), *end]) :] == [*ids("All of it."), *end]


def test_a_token_that_prompt_and_completion_share_is_the_completions(small_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = small_tokenizer("a tree", add_special_tokens=False)["input_ids"]
    assert small_tokenizer.convert_ids_to_tokens(ids)[-1] == "Ġtree"
    (example,) = tokenise([{"prompt": "a tr", "completion": "ee"}], small_tokenizer)
    assert predicted(example) == ids[-1:]


def test_prompts_that_leave_no_completion_of_a_label(small_tokenizer: PreTrainedTokenizerFast) -> None:
    """Of one label alone, a training without any forget example would go on to its end."""
    rows = [{"prompt": "The tree " * 20, "completion": "fell."}, {"prompt": "The sea", "completion": " was calm."}]
    message = (
        r"none that is forget is left: the prompt of each of the 1 fills all of 32 tokens.* Raise `data\.max_tokens`"
    )
    with pytest.raises(ValueError, match=message):
        tokenise(rows, small_tokenizer, max_tokens=32)


def test_an_example_whose_prompt_fills_the_cut_is_dropped(small_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        {"prompt": "The tree " * 20, "completion": "fell."},
        {"prompt": "The tree", "completion": " fell and fell."},
    ]
    (kept,) = tokenise(rows, small_tokenizer, max_tokens=4)
    assert kept["text"] == "The tree fell and fell."
    assert len(kept["input_ids"]) == 4
    assert len(predicted(kept)) >= 1
    (kept,) = tokenise(rows, small_tokenizer, max_characters=30)  # a cut at characters drops it as well
    assert kept["text"] == "The tree fell and fell."


def test_messages_as_prompt_and_completion(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": turns("A tree?"), "completion": [{"role": "assistant", "content": "Yes."}]}]
    (example,) = tokenise(rows, chat_tokenizer)
    assert example["text"] == "<|user|>A tree?<|end|><|assistant|>Yes.<|end|>"
    assert predicted(example) == chat_tokenizer("Yes.<|end|>", add_special_tokens=False)["input_ids"]
    odd = PreTrainedTokenizerFast(
        tokenizer_object=chat_tokenizer.backend_tokenizer,
        chat_template="{{ messages | length }}{{ messages[0].content }}",
    )
    with pytest.raises(ValueError, match=r"does not begin a conversation as it begins its prompt.*Give `prompt` and"):
        tokenise(rows, odd)


@pytest.mark.parametrize("weighting", ["uniform", "frequency"])
def test_the_weights_of_a_completion_are_those_of_its_tokens(
    small_tokenizer: PreTrainedTokenizerFast, weighting: str
) -> None:
    rows = [{"prompt": "The old tree", "completion": " fell down."}, {"prompt": "The sea", "completion": " was calm."}]
    tokenised, rule = tokenise(rows, small_tokenizer), RoutingRuleConfig(rule="full_seq", weighting=weighting)
    table = frequency_table(tokenised, rule, 600, skip_bos=True) if weighting == "frequency" else None
    forget, retain = weigh_examples(tokenised, rule, table)
    assert set(retain["routing_weight"]) == {1.0}
    of_token = np.zeros(600) if table is None else table.weights.numpy()
    expected = of_token[forget["input_ids"][1:]]
    np.testing.assert_array_equal(np.float32(forget["routing_weight"]), np.float32([*expected, 1.0]))
    batch = RoutingCollator(0)([forget, retain])
    assert batch["labels"].tolist()[0][: len(forget["labels"])] == forget["labels"]
