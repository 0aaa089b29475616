"""The model card: the whole text of one, its metadata, and what must not get into it.

If a change of the card is meant: the failing test writes the new card to a temporary file and prints the `cp` command
that makes it the expected one. Read the difference first.
"""

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from hf_era.evaluation.results import RunResult
from hf_era.evaluation.summary import comparison_values
from hf_era.reporting import render_model_card, write_model_card
from hf_era.reporting.markdown.licences import licence_fields
from hf_era.reporting.markdown.model_card import card_data
from hf_era.reporting.text import source_kind
from hf_era.utils.files import write_json

EXPECTED = Path(__file__).with_name("expected_card.md")


def test_the_whole_card(make_result, tmp_path):
    text = render_model_card(make_result(), repository="someone/no-trees", license="apache-2.0")
    new = tmp_path / "card.md"
    new.write_text(text, encoding="utf-8")
    assert text == EXPECTED.read_text(encoding="utf-8"), f"If this is meant: cp {new} {EXPECTED}"


def test_same_result_same_text_also_through_the_file(make_result, tmp_path):
    result = make_result()
    result.save(tmp_path / "result.json")
    assert render_model_card(RunResult.load(tmp_path / "result.json")) == render_model_card(result)
    path = write_model_card(result, tmp_path / "model")
    assert path == tmp_path / "model" / "README.md"
    assert path.read_text(encoding="utf-8") == render_model_card(result)
    assert [file.name for file in path.parent.iterdir()] == ["README.md"]


# ---- Metadata ----


def test_metadata_parses_back(make_result):
    data = ModelCard(render_model_card(make_result(), "someone/no-trees", "mit")).data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-generation"
    assert data.tags == ["hf_era", "gradient-routing", "unlearning"]
    assert data.license == "mit"
    assert data.base_model is None
    assert data.get("datasets") is None
    assert data.get("language") is None
    assert data.model_name == "someone/no-trees"
    # exp(1.802) and exp(1.291)
    values = [(entry.metric_type, entry.metric_name, entry.metric_value) for entry in data.eval_results]
    assert values == [
        ("perplexity", "Perplexity on forget examples", 6.0618),
        ("perplexity", "Perplexity on retain examples", 3.6364),
    ]
    entry = data.eval_results[0]
    assert (entry.task_type, entry.dataset_type, entry.dataset_name) == ("text-generation", "local", "stories.jsonl")


def test_tags_are_those_of_the_trainer(make_result):
    from hf_era.training.publishing import MODEL_TAGS

    assert card_data(make_result()).tags == MODEL_TAGS
    assert card_data(make_result(method="data_filtering")).tags == ["hf_era", "data-filtering", "unlearning"]


def test_languages_are_given_or_left_out(make_result):
    assert ModelCard(render_model_card(make_result(), language=["en", "deu"])).data.language == ["en", "deu"]
    with pytest.raises(ValueError, match="`language` should be a code of ISO 639 such as `en` or `de`, got 'English'"):
        render_model_card(make_result(), language="English")


def test_licences_are_those_of_the_hub(make_result):
    assert card_data(make_result(), license="Apache-2.0").license == "apache-2.0"
    other = card_data(make_result(), license="other: my own")
    assert (other.license, other.license_name) == ("other", "my own")
    message = r"such as apache-2.0, mit, .* got 'apache2'. Did you mean `apache-2.0`\? .* `other:its-name`"
    with pytest.raises(ValueError, match=message):
        render_model_card(make_result(), license="apache2")
    for wrong in ("other", "other:", "mit:x", "", "x"):
        with pytest.raises(ValueError, match="`license` should be an identifier of the hub"):
            card_data(make_result(), license=wrong)


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlicense: mit\n---\n# x", {"license": "mit"}),
        (
            "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n",
            {"license": "other", "license_name": "mine", "license_link": "LICENSE"},
        ),
        ("---\nlicense: mine\n---\n", {}),
        ("---\nlicense: [mit, gpl]\n---\n", {}),
        ("---\n- no mapping\n---\n", {}),
        ("---\nlicense: [\n---\n", {}),
        ("no metadata", {}),
        (None, {}),
    ],
)
def test_the_licence_of_a_local_base_is_kept_unless_one_is_given(make_result, tmp_path, readme, expected):
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert licence_fields(None, str(tmp_path)) == expected
    result = make_result()
    result.config["model"]["base"] = str(tmp_path)
    found = ModelCard(render_model_card(result)).data.to_dict()
    assert {name: value for name, value in found.items() if name.startswith("license")} == expected
    assert licence_fields("mit", str(tmp_path)) == {"license": "mit"}


def test_hub_ids_are_in_the_metadata(make_result):
    result = make_result()
    result.config["model"] = {"start": "pretrained", "base": "roneneldan/TinyStories-28M"}
    result.data["source"] = "delphi-suite/stories"
    text = render_model_card(result)
    data = ModelCard(text).data
    assert data.base_model == "roneneldan/TinyStories-28M"
    assert data.datasets == ["delphi-suite/stories"]
    assert data.eval_results[0].dataset_type == "delphi-suite/stories"
    assert '"Before the method" is the pretrained base model roneneldan/TinyStories-28M.' in text


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("generator", ("generator", "generator")),
        ("topics", ("generator", "topics")),
        ("delphi-suite/stories", ("hub", "delphi-suite/stories")),
        ("/home/somebody/stories.jsonl", ("local", "stories.jsonl")),
        ("~/private/stories/", ("local", "stories")),
        ("data/stories.jsonl", ("local", "stories.jsonl")),
        ("data/stories.csv.gz", ("local", "stories.csv.gz")),
        ("./stories", ("local", "stories")),
        ("../shared/data/tinystories", ("local", "tinystories")),
        ("C:\\Users\\me\\stories.txt", ("local", "stories.txt")),
        ("gpt2", ("local", "gpt2")),
        (None, ("local", "not recorded")),
    ],
)
def test_source_kind_never_shows_a_directory(source, expected):
    assert source_kind(source) == expected


def test_nothing_private_is_in_the_card(make_result):
    text = render_model_card(make_result())
    for secret in ("somebody", "/home", "secret", "hf_secret"):
        assert secret not in text


# ---- Escaping ----

HOSTILE = [
    "<script>alert(1)</script>",
    "a|b",
    "`",
    "**b**",
    "---",
    "{{ 7 * 7 }}",
    "[x](http://e.org)",
    "a\n---\nb",
    "# c: d",
]


def test_hostile_text_stays_text(make_result):
    text = "".join(HOSTILE)
    result = make_result(name=text, created=text, git_revision=text, versions={"hf-era": text, text: text})
    result.data |= {"forget_words": HOSTILE, "source": f"/tmp/{text}"}
    result.routing_table[0]["token"] = text
    result.selectivity = {text: {"value": 1.0}}
    result.leak_audit["ablation"][text] = {"forget": {"value": 1.0}, "retain": {"value": 1.0}}
    result.attack["notes"] = [text]
    result.data_filtering = comparison_values(make_result(name=text))
    result.config["model"] |= {"architecture": {text: text}, "base": text}
    result.config["routing"]["rule"] = text
    result.config["training"] |= {"learning_rate": text, "multipliers": text}
    result.machine["device"] = text
    card = ModelCard(render_model_card(result))
    assert card.data.model_name == text
    assert card.data.tags == ["hf_era", "gradient-routing", "unlearning"]
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = parser.parse(card.text)
    clean = parser.parse(ModelCard(render_model_card(make_result())).text)
    inline = [child.type for token in tokens for child in token.children or []]
    assert not {"html_inline", "image"} & set(inline)
    assert inline.count("link_open") == sum(c.type == "link_open" for token in clean for c in token.children or [])
    headings = [token.map for token in tokens if token.type == "heading_open"]
    assert len(headings) == sum(token.type == "heading_open" for token in clean)
    blocks = [[token.content for token in part if token.type in ("html_block", "hr")] for part in (tokens, clean)]
    assert blocks[0] == blocks[1]  # those of the template
    assert "{{ 7 \\* 7 }}" in card.text
    _check_table_widths(card.text)


def _check_table_widths(text):
    """Every row has as many unescaped pipes as its table's head."""
    width = None
    for line in text.splitlines():
        count = line.count("|") if line.startswith("|") else None
        if count is None or width is None:
            width = count
        assert count == width, line


def test_metadata_is_plain_yaml(make_result):
    block = re.match(r"---\n(.*?)\n---\n", render_model_card(make_result()), re.DOTALL)
    assert isinstance(yaml.safe_load(block.group(1)), dict)


# ---- Result files ----


def test_a_file_that_is_no_result(tmp_path):
    path = write_json(tmp_path / "other.json", {"losses": {}})
    with pytest.raises(ValueError, match="is no result file of hf_era"):
        RunResult.load(path)
    with pytest.raises(ValueError, match=r"missing\.json does not exist"):
        RunResult.load(tmp_path / "missing.json")


@pytest.mark.parametrize("spoil", [lambda text: text[:-100], lambda text: "[" * 100_000], ids=["cut off", "nested"])
def test_a_file_that_is_no_json(make_result, tmp_path, spoil):
    path = make_result().save(tmp_path / "result.json")
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ValueError, match="is cut off or no JSON"):
        RunResult.load(path)


def test_a_model_result_is_no_run(make_result, tmp_path):
    path = write_json(tmp_path / "result.json", {**make_result().to_dict(), "kind": "model"})
    with pytest.raises(ValueError, match="is a result of `hf-era eval` or `hf-era relearn`"):
        RunResult.load(path)


def test_another_schema_version(make_result, tmp_path):
    path = write_json(tmp_path / "result.json", {**make_result().to_dict(), "schema_version": 99})
    with pytest.raises(ValueError, match="has schema version 99, this hf_era reads 2 to 5"):
        RunResult.load(path)
