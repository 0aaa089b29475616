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


def test_a_good_run_has_no_warning(make_result):
    assert "[!WARNING]" not in render_model_card(make_result(attack=None))
    [warning] = re.findall(r"> \*\*(.*)\*\* ", render_model_card(make_result()))
    assert warning == "The relearn attack is not converged."


def test_nothing_localised_is_a_loud_warning_at_the_top(make_result):
    losses = stages(make_result)
    losses["after_ablation"]["forget"]["loss"] = 1.09
    text = render_model_card(make_result(losses=losses, differences={}))
    warning = text.index(
        "> [!WARNING]\n> **NOTHING WAS LOCALISED.** Ablating the auxiliary module changed the forget loss"
    )
    assert warning < text.index("A causal language model")
    assert "by +0.004 nats a token, less than the threshold of 0.05" in text


@pytest.mark.parametrize(
    ("forget", "message"),
    [
        (1.151, "is -0.050 nats a token: this model predicts forget stories better than that one."),
        (1.221, "is +0.020 nats a token: less than the threshold of 0.05."),
    ],
)
def test_negative_or_tiny_unlearning_is_said_plainly(make_result, forget, message):
    text = render_model_card(make_result(losses=stages(make_result, forget=forget), differences={}))
    assert "**The capability was not removed.**" in text
    assert message in text


def test_general_damage_is_not_called_removal(make_result):
    text = render_model_card(make_result(losses=stages(make_result, retain=2.0), differences={}))
    assert "**The retain loss rose as much as the forget loss.** It is +0.727 against +0.601 nats a token:" in text


def test_a_model_that_went_on_learning_is_not_compared_naively(make_result):
    sentence = "The model also went on learning"
    assert sentence not in render_model_card(make_result())
    text = render_model_card(make_result(losses=stages(make_result, forget=0.6, retain=0.2), differences={}))
    assert sentence in text
    assert "**The capability was not removed.**" in text


def test_non_finite_losses_are_said_and_left_out_of_the_metadata(make_result):
    text = render_model_card(make_result(losses=stages(make_result, forget=math.nan)))
    assert "**A loss is not finite.**" in text
    names = [entry.metric_name for entry in ModelCard(text).data.eval_results]
    assert "forget loss after coherence (nats/token)" not in names
    assert "unlearning (nats/token)" not in names
    assert "retain tax (nats/token)" in names


def test_what_before_means(make_result):
    assert "is the base model that was pretrained here on the same stories." in render_model_card(make_result())
    text = render_model_card(make_result(before_kind="base_control"))
    assert "is the base control (a stock model with the same data, steps and seed, without routing)." in text
    losses = stages(make_result)
    del losses["before"]
    text = render_model_card(make_result(before_kind=None, losses=losses, differences={}, attack=None))
    assert "How it compares with the model before the method was not measured." in text
    assert "**No comparison with before.**" in text


def test_synthetic_stories_and_coherence_are_limits_only_where_they_apply(make_result):
    text = render_model_card(make_result())
    assert "The stories are synthetic" not in text
    assert "Selection on the evaluation stories" in text
    result = make_result()
    result.data["source"] = "generator"
    result.config["coherence"]["enabled"] = False
    del result.losses["after_coherence"], result.stages[-1]
    text = render_model_card(result)
    assert "The stories are synthetic" in text
    assert "Selection on the evaluation stories" not in text
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
    result.config["expansion"] = {"width": 64, "target_layers": None, "modules": [one, two]}
    result.config["router"] = {"name": "toy", "share": 0.25}
    text = render_model_card(result)
    assert "| Auxiliary module forget | an MLP with 7 hidden units beside the MLP of layers 0 |" in text
    assert "| Auxiliary module biology | lens with 9 hidden units beside the MLP of layers 1, 2 |" in text
    assert "| Router | toy, share 0.25 |" in text
    assert "64 hidden units" not in text
    assert "Gradient multipliers" not in text


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
        # Of an earlier version.
        (None, "with an L1 coefficient of 0.0; it did not see the 371 forget stories without a label either: it knew more "
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
    assert "each on the same 32 retain stories;" in render_model_card(result)
    result.config["coherence"]["unlabelled"] = True
    assert "each on the same 32 stories that are not labelled forget;" in render_model_card(result)


def test_data_filtering_is_not_called_gradient_routing(make_result):
    losses = {"before": make_result().losses["before"], "after_training": make_result().losses["after_coherence"]}
    result = make_result(method="data_filtering", losses=losses, selectivity={}, leak_audit={}, routing_table=[])
    text = render_model_card(result)
    assert "without the stories labelled forget: *data filtering*" in text
    assert "Auxiliary module" not in text
    assert "localised.**" not in text  # it has nothing that could be
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
    assert "| **full fine-tuning on 4 stories at learning rate 5e-05 (strongest)** | 2 | ≤ 1.320" in text
    assert "| LoRA fine-tuning on 4 stories at learning rate 0.001 | 1 | 1.600 |" in text
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
    assert "**It is not known whether anything was localised.**" in text
    assert "What ablation removes was not measured." in text
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
