"""Labels in a column through a whole run; and the same labels in `eval` and `relearn`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_era import RunConfig, run_pipeline
from hf_era.data import generate_stories, train_tokenizer
from hf_era.data.words import WordFinder
from hf_era.evaluation.model_inputs import ModelEvaluationConfig, load_model_inputs

FOREST = WordFinder(["tree", "trees", "forest", "forests", "woodland", "woodlands"])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stories with a topic; of a third of those of the sea nobody knows it."""
    rows = [
        {"text": text, "topic": "forest" if FOREST.found_in(text) else "sea"} for text in generate_stories(120, seed=3)
    ]
    for row in [row for row in rows if row["topic"] == "sea"][::3]:
        row["topic"] = None
    path = tmp_path_factory.mktemp("labels") / "stories.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("_no_localisation_warning")
def test_a_run_measures_examples_without_a_label_apart(
    make_run_config: Callable[..., RunConfig], table: Path, tmp_path: Path
) -> None:
    config = make_run_config(
        tmp_path,
        model={"start": "scratch", "base_control": False},
        data={"train": str(table), "label_column": "topic", "forget_labels": ["forest"]},
        routing={"rule": "full_seq"},
        training={"max_steps": 1, "eval_strategy": "no", "save_strategy": "no", "warmup_steps": 0},
        coherence={"enabled": False},
        generation={"enabled": False},
        relearn={"enabled": False},
    )
    result = run_pipeline(config)
    assert result.data["labelling"] == {
        "kind": "column", "column": "topic", "forget_labels": ["forest"], "retain_labels": [],
    }  # fmt: skip
    held_out = result.data["validation_unlabelled_stories"]
    assert (held_out, result.data["train_unlabelled"]) == (3, 29)
    for stage in result.losses.values():
        assert stage["unlabelled"]["stories"] == held_out
        assert stage["unlabelled"]["low"] <= stage["unlabelled"]["loss"] <= stage["unlabelled"]["high"]
    before, after = (result.losses[name]["unlabelled"]["loss"] for name in ("before_ablation", "after_ablation"))
    assert result.differences["unlabelled_ablation_gap"]["value"] == pytest.approx(after - before, abs=1e-6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels") / "model"
    tokenizer = train_tokenizer(generate_stories(60, seed=3), 300)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_one_source_with_labels_is_measured_as_two_sources_are(model: Path, table: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    for name, topic in (("forget", "forest"), ("retain", "sea")):
        chosen = [json.dumps(row) + "\n" for row in rows if row["topic"] == topic]
        (tmp_path / f"{name}.jsonl").write_text("".join(chosen))
    sources = {name: str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain")}
    two = load_model_inputs(ModelEvaluationConfig(str(model), **sources, text_column="text"), pool_size=4)
    labels = {"label_column": "topic", "forget_labels": ["forest"]}
    one = load_model_inputs(
        ModelEvaluationConfig(str(model), data=str(table), **labels, text_column="text"), pool_size=4
    )
    for name in ("forget", "retain", "pool"):
        assert getattr(one, name)["input_ids"][:] == getattr(two, name)["input_ids"][:]
    assert one.data["fingerprint"] == two.data["fingerprint"]
    assert (two.unlabelled, one.data["unlabelled_stories"]) == (None, len(one.unlabelled))
    assert one.unlabelled["text"][:] == [row["text"][:1029].strip() for row in rows if row["topic"] is None]
    assert one.data["labelling"] == {
        "kind": "column",
        "column": "topic",
        "forget_labels": ["forest"],
        "retain_labels": [],
    }
    assert two.data["labelling"] == {"kind": "sources"}
    assert two.data["unused_columns"] == {"forget": ["topic"], "retain": ["topic"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"`forget` and `retain` are not given\. Give two sources \(`--forget FILE --retain FILE`\), or one with la"),
        ({"forget": "a"}, r"`retain` is not given\."),
        ({"forget": "a", "data": "b"}, r"`data` and `forget` or `retain` are both given\."),
        ({"forget": "a", "retain": "b", "label_column": "t"}, r"a label column is not looked at\. Give one source, `--da"),
        ({"data": "a"}, r"Nothing says which examples are to be forgotten\. Name a column and its values \(`label_column`"),
        ({"data": "a", "forget_labels": ["x"]}, r"`forget_labels` is \['x'\], but no column is named"),
        ({"data": "a", "forget_words": ["x"], "score_column": "s"}, r"`forget_words` and `score_column` are both given"),
    ],
)  # fmt: skip
def test_labels_of_eval_that_are_not_said_in_one_way(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelEvaluationConfig("model", **options)


def test_a_label_of_eval_that_no_row_has(model: Path, table: Path) -> None:
    labels = {"label_column": "topic", "forget_labels": ["forrest"]}
    with pytest.raises(
        ValueError, match=r"`forget_labels`: none of the 120 examples of `data` has forrest .* mean 'forest'\?"
    ):
        load_model_inputs(ModelEvaluationConfig(str(model), data=str(table), **labels, text_column="text"))
