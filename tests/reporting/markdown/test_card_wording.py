"""What the model card says in words: its warnings, its limits and what a run left out."""

import math
import re

import pytest
from huggingface_hub import ModelCard

from hf_era.evaluation.summary import comparison_values
from hf_era.reporting import render_model_card


def stages(make_result, forget=None, retain=None):
    """The fixture's losses with other final ones."""
    losses = make_result().losses
    for kind, value in (("forget", forget), ("retain", retain)):
        if value is not None:
            losses["after_coherence"][kind]["loss"] = value
    return losses


def test_what_comes_first_and_what_is_folded(make_result):
    text = ModelCard(render_model_card(make_result(generations=GENERATIONS))).text
    heads = re.findall(r"^(?:#+ |<summary>)([^<\n]*)", text, flags=re.MULTILINE)
    assert heads == [
        "posttrain_fullseq", "Verdict", "What it writes", "Figures", "Limits", "Details",
        "What was forgotten: data and labels", "How it was trained", "All losses and differences", "Relearn attacks",
        "How it was made, and how to cite it",
    ]  # fmt: skip
    assert text.index("from_pretrained") < text.index("## Verdict")


GENERATIONS = {
    "prompts": ["To boil", "Add acid", "Heat it", "An atom", "Salt", "A base"],
    "prompt_labels": ["retain", "forget", "retain", "forget", "retain", "forget"],
    "texts": {
        "before": ["To boil|an egg", "Add acid to <b>", "Heat it", "An atom", "Salt", "A base"],
        "before_ablation": ["never shown"] * 6,
        "after_coherence": [f"To boil{' water' * 100}", "Add acid\nno", "Heat it", "An atom", "Salt"],
    },
}


def test_a_card_is_short_but_for_what_is_folded(make_result):
    result = make_result(generations=GENERATIONS, data_filtering=comparison_values(make_result(name="filtered")))
    card = render_model_card(result, seeds=[make_result(seed=1), make_result(seed=2)])
    text = ModelCard(card).text
    visible = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    assert "<details>" not in visible
    assert len(visible.strip().splitlines()) <= 80
    assert len(visible) < 0.5 * len(text)


def test_what_it_writes_stands_side_by_side(make_result):
    text = render_model_card(make_result(generations=GENERATIONS))
    rows = text[text.index("## What it writes") : text.index("## Figures")].splitlines()[2:]
    assert rows[0] == "| Prompt | Before the method (pretrained base) | This model |"
    # As many of each kind, in their order.
    assert [row.split(" | ")[0] for row in rows[2:6]] == [
        "| To boil (retain)", "| Heat it (retain)", "| Add acid (forget)", "| An atom (forget)"
    ]  # fmt: skip
    assert "| &#124;an egg | water water" in rows[2]
    assert rows[2].endswith("… |")
    assert rows[4].endswith("| to &lt;b&gt; | no |")
    assert "never shown" not in text
    assert "What it writes" not in render_model_card(make_result(generations={}))


@pytest.mark.parametrize(
    ("labelling", "sentence"),
    [
        (None, 'has one of these words in its text, as a whole word in any case: "tree", "forest". All others are'),
        ({"kind": "words", "forget_words": ["acid"]}, 'in any case: "acid". All others are retain examples.'),
        (
            {"kind": "column", "column": "topic", "forget_labels": ["a|b"], "retain_labels": []},
            '"a&#124;b" in the column "topic" makes a forget example, any other value a retain example, and those without',
        ),
        (
            {"kind": "column", "column": "topic", "forget_labels": ["x"], "retain_labels": ["y", "z"]},
            'makes a forget example, "y", "z" a retain example, and all others are unlabelled.',
        ),
        ({"kind": "score", "column": "p"}, 'The column "p" holds the probability that it is a forget example'),
        ({"kind": "sources"}, "Forget and retain examples come from two sources"),
    ],
)
def test_the_card_says_what_made_a_forget_example(make_result, labelling, sentence):
    result = make_result()
    if labelling is not None:
        result.data["labelling"] = labelling
    text = render_model_card(result)
    assert sentence in text
    assert ("**Labels are words.**" in text) == (labelling is None or labelling["kind"] == "words")


def test_non_finite_losses_are_left_out_of_the_metadata(make_result):
    text = render_model_card(make_result(losses=stages(make_result, forget=math.nan)))
    assert "🔴 **Removed? Unknown: not finite.**" in text
    assert [entry.metric_name for entry in ModelCard(text).data.eval_results] == ["Perplexity on retain examples"]


def test_what_before_means(make_result):
    assert "is the base model that was pretrained here on the same examples." in render_model_card(make_result())
    text = render_model_card(make_result(before_kind="base_control"))
    assert "is the base control (a stock model with the same data, steps and seed, without routing)." in text
    losses = stages(make_result)
    del losses["before"]
    text = render_model_card(make_result(before_kind=None, losses=losses, differences={}, attack=None))
    assert "⚪ **Removed? Localised, not compared.**" in text
    assert "**No comparison with before.**" in text


def test_synthetic_stories_and_coherence_are_limits_only_where_they_apply(make_result):
    text = render_model_card(make_result())
    assert "The examples are synthetic" not in text
    assert "Selection on the evaluation examples" in text
    result = make_result()
    result.data["source"] = "generator"
    result.config["coherence"]["enabled"] = False
    del result.losses["after_coherence"], result.stages[-1]
    text = render_model_card(result)
    assert "The examples are synthetic" in text
    assert "Selection on the evaluation examples" not in text
    assert "| Coherence fine-tuning | left out |" in text
    assert 'This checkpoint is the row "After ablation".' in text
    assert ModelCard(text).data.eval_results[0].dataset_type == "generator"


def test_a_control_says_that_it_routes_nothing(make_result):
    result = make_result(routing_table=[])
    result.config["routing"] = {"rule": "none", "weighting": "frequency"}
    text = render_model_card(result)
    assert "| Mask rule | none: no token is routed: this run is a control |" in text
    assert "most strongly routed" not in text


def test_every_module_is_named_and_the_router_that_was_chosen(make_result):
    result = make_result()
    one = {"name": "forget", "width": 7, "target_layers": [0], "kind": "mlp"}
    two = {"name": "biology", "width": 9, "target_layers": [1, 2], "kind": "lens"}
    three = {"name": "sea", "width": 16, "target_layers": [1], "kind": "heads"}
    four = {"name": "river", "width": None, "width_ratio": 0.5, "target_layers": [2], "kind": "heads"}
    result.config["expansion"] = {"width": 64, "target_layers": None, "modules": [one, two, three, four]}
    result.config["router"] = {"name": "toy", "share": 0.25}
    text = render_model_card(result)
    assert "| Auxiliary module forget | an MLP with 7 hidden units beside the MLP of layers 0 |" in text
    assert "| Auxiliary module biology | lens with 9 hidden units beside the MLP of layers 1, 2 |" in text
    assert "| Auxiliary module sea | attention heads of 16 units together beside the heads of layers 1 |" in text
    assert "attention heads of 0.5 times the units of the model's own beside the heads of layers 2 |" in text
    assert "| Router | toy, share 0.25 |" in text
    assert "64 hidden units" not in text
    assert "Gradient multipliers" not in text


def test_a_width_that_is_a_share_is_said_to_be_one(make_result):
    result = make_result()
    result.config["expansion"] = {"width": None, "width_ratio": 0.125, "target_layers": [0]}
    text = render_model_card(result)
    assert "an MLP with 0.125 times the hidden units of the model's own beside the MLP of layers 0 |" in text


def test_the_settings_of_a_method_are_shown(make_result):
    result = make_result()
    assert "Settings of the method" not in render_model_card(result)
    result.config["method_settings"] = {"steering": 6.5}
    assert "| Settings of the method | steering 6.5 |" in render_model_card(result)


@pytest.mark.parametrize(
    ("control", "wording"),
    [
        ({"l1_coefficient": 1e-4}, "seed, and the same L1 term |"),
        # Of an earlier version, which had none.
        ({}, "but with an L1 coefficient of 0.0: differences to it are partly those of the L1 term |"),
    ],
)
def test_a_base_control_without_the_runs_l1_term_is_said_to_be_one(make_result, control, wording):
    result = make_result(before_kind="base_control", base_training=control)
    result.training["arguments"] = {"l1_coefficient": 1e-4}
    (row,) = [line for line in render_model_card(result).splitlines() if line.startswith("| Base control |")]
    assert row.endswith(wording)


@pytest.mark.parametrize(
    ("control", "wording"),
    [
        ({"l1_coefficient": 1e-4, "unlabelled_stories": 371}, "labelled forget, with the same L1 term |"),
        ({"l1_coefficient": 1e-4, "unlabelled_stories": 0}, "L1 term; it left the examples without a label out |"),
        # Of an earlier version.
        (None, "with an L1 coefficient of 0.0; it did not see the 371 forget examples without a label either: it knew more "
               "than this run |"),
    ],
)  # fmt: skip
def test_data_filtering_that_knew_more_is_said_to_have(make_result, control, wording):
    filtered = {**comparison_values(make_result(name="filtered")), "training": control}
    result = make_result(data_filtering=filtered)
    result.training["arguments"] = {"l1_coefficient": 1e-4}
    (row,) = [line for line in render_model_card(result).splitlines() if line.startswith("| Data filtering |")]
    assert row.endswith(wording)


def test_coherence_names_the_stories_that_it_took_for_retain(make_result):
    result = make_result()
    assert "each on the same 32 retain examples;" in render_model_card(result)
    result.config["coherence"]["unlabelled"] = True
    assert "each on the same 32 examples that are not labelled forget;" in render_model_card(result)


def test_the_card_says_on_what_coherence_chose(make_result):
    result = make_result()
    assert "the lowest loss on the retain validation examples were kept" in render_model_card(result)
    result.data["coherence_validation_stories"] = 90
    text = render_model_card(result)
    assert "the lowest loss on 90 other retain examples, which no figure is measured on, were kept" in text
    assert "Selection on the evaluation examples" not in text


@pytest.mark.parametrize(
    ("fraction", "errors", "wording"),
    [
        (0.25, {}, "25 % of the forget training examples kept their label. Which ones lost it was drawn at random."),
        (0.25, {"kind": "short"}, "25 % of the forget training examples kept their label. The shortest ones lost it."),
        (1.0, {"kind": "score", "threshold": 0.9}, "A classifier of words labelled the training examples: forget from a "
         "probability of 0.9 on. Forget examples below it lost their label, and retain examples above it were labelled "
         "forget by mistake."),
        (1.0, {}, None),
    ],
)  # fmt: skip
def test_the_card_says_which_labels_were_taken_away(make_result, fraction, errors, wording):
    result = make_result()
    result.config["data"]["labelled_fraction"], result.data["label_errors"] = fraction, errors
    text = render_model_card(result)
    assert ("| Labels taken away |" in text) == (wording is not None)
    assert wording is None or f"| Labels taken away | {wording} |" in text


def test_data_filtering_is_not_called_gradient_routing(make_result):
    losses = {"before": make_result().losses["before"], "after_training": make_result().losses["after_coherence"]}
    result = make_result(method="data_filtering", losses=losses, selectivity={}, leak_audit={}, routing_table=[])
    text = render_model_card(result)
    assert "without the examples labelled forget: *data filtering*" in text
    assert "Auxiliary module" not in text
    assert "localised" not in text  # it has nothing that could be
    assert "Selectivity" not in text
    assert 'This checkpoint is the row "After training".' in text
    assert "No comparison with data filtering" not in text


def test_data_filtering_stands_beside_the_run(make_result):
    assert "No comparison with data filtering" in render_model_card(make_result())
    filtered = make_result(method="data_filtering", name="filtered")
    text = render_model_card(make_result(data_filtering=comparison_values(filtered)))
    assert "No comparison with data filtering" not in text
    assert "| Difference, nats a token | This result | Data filtering (filtered) |" in text
    assert "Data filtering: robust unlearning" in text


def test_the_strongest_attack_is_marked_and_notes_are_shown(make_result):
    text = render_model_card(make_result())
    # The mean of the lowest losses, 1.24 and 1.4; robust unlearning is that minus 1.2. LoRA got to 1.6.
    assert "| **full fine-tuning on 4 examples at learning rate 5e-05 (strongest)** | 2 | ≤ 1.320" in text
    assert "| LoRA fine-tuning on 4 examples at learning rate 0.001 | 1 | 1.600 |" in text
    assert "One trial was left out." in text


def test_resolved_arguments_win_over_the_config(make_result):
    result = make_result()
    multipliers = {"original_forget": 0, "original_retain": 1, "auxiliary_forget": 1, "auxiliary_retain": 0.5}
    result.training["arguments"] = {"learning_rate": 0.01, "adam_beta2": 0.95, "multipliers": multipliers}
    text = render_model_card(result)
    assert "peak learning rate 0.01; AdamW beta 2 0.95;" in text
    assert "original dims 1 on retain, 0 on forget tokens; auxiliary module 0.5 on retain, 1 on forget tokens" in text


def test_multipliers_given_as_json(make_result):
    result = make_result()
    result.config["training"]["multipliers"] = '{"original_forget": -0.5}'
    assert "original dims default on retain, -0.5 on forget tokens" in render_model_card(result)


def test_a_result_that_holds_next_to_nothing_still_gives_a_card(make_result):
    empty = {"config": {}, "versions": {}, "machine": {}, "data": {}, "losses": {}, "selectivity": {}, "coherence": {}}
    bare = {**empty, "training": {}, "routing_table": [], "seconds": {}, "before_kind": None, "git_revision": None}
    text = render_model_card(make_result(**bare, differences={}, leak_audit={}, attack=None))
    assert "⚪ **Removed? Not known.**" in text
    assert "**Relearning was not tested.**" in text
    assert "None" not in text
    data = ModelCard(text).data
    assert not data.eval_results
    assert data.model_name is None


def test_repository(make_result):
    text = render_model_card(make_result(), "someone/no-trees")
    assert 'AutoModelForCausalLM.from_pretrained("someone/no-trees")' in text
    with pytest.raises(ValueError, match="Repo id must"):
        render_model_card(make_result(), 'x")\nimport os')
