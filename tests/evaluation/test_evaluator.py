"""The evaluator: stories in the order given, paired differences, the reference's average, and what it refuses."""

import pytest
import torch
from datasets import Dataset

from hf_era.evaluation import EvaluationConfig, Evaluator

LENGTHS = {"forget": [5, 12, 3, 9], "retain": [7, 2, 11]}


@pytest.fixture
def stories():
    """Forget and retain stories of mixed lengths; the second token of each is a forget word's."""
    generator = torch.Generator().manual_seed(0)

    def dataset(lengths):
        ids = [torch.randint(0, 52, (length,), generator=generator).tolist() for length in lengths]
        words = [[index == 1 for index in range(length)] for length in lengths]
        return Dataset.from_dict({"input_ids": ids, "is_forget_word": words, "length": lengths})

    return {name: dataset(lengths) for name, lengths in LENGTHS.items()}


@pytest.fixture
def make_evaluator(stories):
    def make(**settings):
        return Evaluator(stories["forget"], stories["retain"], 0, EvaluationConfig(**settings), progress=False)

    return make


def one_by_one(model, dataset):
    """Summed negative log-likelihood of each story, without padding or batches."""
    found = []
    for ids in dataset["input_ids"]:
        tokens = torch.tensor([ids])
        with torch.no_grad():
            logits = model(input_ids=tokens).logits[0, :-1].log_softmax(-1)
        found.append(float(-logits.gather(1, tokens[0, 1:, None]).sum()))
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_losses_stand_in_the_order_in_which_stories_were_given(make_base, stories, make_evaluator, batch_size):
    model = make_base().eval()
    measured = make_evaluator(batch_size=batch_size).measure(model, "test")
    for name, dataset in stories.items():
        assert measured[name].nll.tolist() == pytest.approx(one_by_one(model, dataset), rel=1e-5)
        assert measured[name].tokens.tolist() == [length - 1 for length in LENGTHS[name]]


def test_differences_are_those_of_the_losses_and_tighter_than_they_are(make_base, make_evaluator):
    evaluator = make_evaluator(bootstrap_samples=200)
    one, other = (evaluator.measure(make_base(seed=seed), "test") for seed in (0, 1))
    losses = [evaluator.estimates(part) for part in (one, other)]
    differences = evaluator.differences(one, other)
    for kind in ("forget", "retain", "forget_words"):
        assert differences[kind]["value"] == pytest.approx(losses[0][kind]["loss"] - losses[1][kind]["loss"], abs=1e-9)
        assert differences[kind]["low"] <= differences[kind]["value"] <= differences[kind]["high"]
    # With itself: nothing, exactly, where the losses by themselves have a wide interval.
    same = evaluator.differences(one, one)
    assert same["forget"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert losses[0]["forget"]["high"] > losses[0]["forget"]["low"]


def test_means_of_batch_means_take_the_given_order(make_base, stories, make_evaluator):
    model = make_base().eval()
    evaluator = make_evaluator(mean_of_batch_means_size=3)
    found = evaluator.means_of_batch_means(evaluator.measure(model, "test"))
    nll = one_by_one(model, stories["forget"])
    # Tokens that are predicted: 4, 11, 2 in the first batch and 8 in the second.
    expected = (sum(nll[:3]) / 17 + nll[3] / 8) / 2
    assert found["forget"] == pytest.approx(expected, rel=1e-5)
    assert found["retain"] == pytest.approx(sum(one_by_one(model, stories["retain"])) / 17, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_accuracy_is_of_the_examples_with_a_prompt_alone(make_base, stories, batch_size):
    model, prompt = make_base().eval(), 2
    labels, expected = [], []
    for row, ids in enumerate(stories["forget"]["input_ids"]):
        with torch.no_grad():
            likeliest = model(input_ids=torch.tensor([ids])).logits[0, :-1].argmax(-1).tolist()
        # The first has no prompt; of the others every second asks for what the model says, the rest for another token too.
        answers = [token if place < len(ids) - 2 or row % 2 else 51 - token for place, token in enumerate(likeliest)]
        labels.append([-100] * prompt + answers[prompt - 1 :] if row else ids)
        expected += [all(a == b for a, b in zip(answers, likeliest, strict=True))] if row else []
    assert expected == [True, False, True]
    asked = stories["forget"].add_column("labels", labels)
    plain = stories["retain"].add_column("labels", stories["retain"]["input_ids"][:])
    settings = EvaluationConfig(batch_size=batch_size, bootstrap_samples=100)
    found = Evaluator(asked, plain, 0, settings, progress=False).accuracies(model, "test")
    assert list(found) == ["forget_accuracy"]
    assert found["forget_accuracy"]["value"] == pytest.approx(2 / 3)
    assert found["forget_accuracy"]["low"] < 2 / 3 < found["forget_accuracy"]["high"]
    assert found["forget_accuracy"]["examples"] == 3
    assert Evaluator(stories["forget"], stories["retain"], 0, settings, progress=False).accuracies(model, "test") == {}


def test_no_story_to_evaluate_on(stories):
    with pytest.raises(ValueError, match="There is no forget example to evaluate on"):
        Evaluator(stories["forget"].select([]), stories["retain"], 0, EvaluationConfig(), progress=False)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"mean_of_batch_means_size": 0}, {"bootstrap_samples": -1}])
def test_numbers_out_of_range(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"`evaluation.{name}` should be"):
        EvaluationConfig(**settings)


def test_examples_without_a_label_are_a_set_of_their_own(make_base, stories):
    sets = (stories["forget"], stories["retain"], 0, EvaluationConfig(bootstrap_samples=50))
    model, other = make_base().eval(), make_base(seed=1).eval()
    evaluator = Evaluator(*sets, progress=False, unlabelled=stories["retain"].select([0, 2]))
    measured = evaluator.measure(model, "test")
    assert list(measured) == ["forget", "retain", "unlabelled"]
    assert measured["unlabelled"].nll.tolist() == pytest.approx(one_by_one(model, stories["retain"])[::2], rel=1e-5)
    differences = evaluator.differences(measured, evaluator.measure(other, "test"))
    losses = [sum(one_by_one(part, stories["retain"])[::2]) / 16 for part in (model, other)]
    assert differences["unlabelled"]["value"] == pytest.approx(losses[0] - losses[1], abs=1e-5)
    for nothing in (None, stories["retain"].select([])):
        assert list(Evaluator(*sets, progress=False, unlabelled=nothing).sets) == ["forget", "retain"]


def test_the_loss_is_on_the_completion_only(make_base, stories):
    model = make_base().eval()
    labels = [[-100] * 2 + ids[2:] for ids in stories["forget"]["input_ids"]]
    forget = stories["forget"].add_column("labels", labels)
    evaluator = Evaluator(forget, stories["retain"], 0, EvaluationConfig(bootstrap_samples=50), progress=False)
    measured = evaluator.measure(model, "test")["forget"]
    prompts = stories["forget"].map(lambda row: {"input_ids": row["input_ids"][:2]})
    expected = torch.tensor(one_by_one(model, stories["forget"])) - torch.tensor(one_by_one(model, prompts))
    assert measured.nll.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert measured.tokens.tolist() == [length - 2 for length in LENGTHS["forget"]]
