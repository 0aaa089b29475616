"""Bad input is refused before any work, with what to do instead and without a traceback."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import StableLmConfig, StableLmForCausalLM

from hf_era import RunConfig, run_pipeline
from hf_era.cli import main
from hf_era.evaluation import RunResult

NO_HEADS = {"width": None, "target_layers": None, "modules": [{"name": "a", "kind": "heads", "width": 8}]}
BAD_INPUT: list[tuple[dict[str, Any], str]] = [
    ({"data": {"forget_words": ["xylophonist"]}}, r"none of the 120 training examples has one of xylophonist"),
    ({"data": {"forget_words": ["a", "the", "was"]}}, r"there is no retain example"),
    ({"data": {"forget_words": [" "]}}, r"`data.forget_words` should hold words, got ' '"),
    ({"expansion": {"target_layers": [5]}}, r"names layer 5, but the model has 2 layers"),
    ({"expansion": {"target_layers": [-1]}}, r"takes no negative index, got -1"),
    ({"expansion": {"target_layers": [0, 0]}}, r"names layer 0 more than once"),
    ({"expansion": {"width": 0}}, r"`expansion.width` should be an integer of at least 1, got 0"),
    ({"expansion": {"widht": 4}}, r"Unknown key `widht` in section `expansion`. Did you mean `width`"),
    ({"expansion": NO_HEADS}, r"models of type `gpt_neo` have no place for heads"),
    ({"routing": {"rule": "concpt"}}, r"Did you mean `concept`"),
    ({"data": {"forget_validation_stories": 4000}}, r"4000 forget examples .* but the training data has \d+ distinct"),
    ({"data": {"train": "no/such/stories.jsonl"}}, r"the file no/such/stories.jsonl does not exist"),
    ({"data": {"train": "someone/stories"}}, r"could not get the data set `someone/stories` from the hub .*local file"),
    ({"data": {"max_tokens": 100}}, r"`data.max_tokens` is 100, but the model has 64 positions"),
    ({"coherence": {"stories": 5000}}, r"`coherence.stories` asks for 5000 retain examples"),
    ({"model": {"architecture": {}, "base": "./no/such/model"}}, r"the directory no/such/model does not exist"),
    ({"model": {"architecture": {}, "base": "someone/model"}}, r"could not get the model `someone/model` from the hub"),
    ({"model": {"architecture": {"model_type": "bert"}}}, r"type `bert` is an encoder, no causal LM\."),
    (
        {"model": {"architecture": {"hidden_size": 15, "num_heads": 2}}},
        r"`model.architecture` cannot be built: .*divisible",
    ),
    ({"training": {"learning_rate": -1}}, r"`training.learning_rate` should be positive, got -1"),
    ({"training": {"per_device_train_batch_size": 0}}, r"`training.per_device_train_batch_size` should be at least 1"),
    ({"training": {"max_steps": 0}}, r"`training.max_steps` is 0"),
    ({"training": {"lr_scheduler_type": "cosin"}}, r"section `training`: cosin is not a valid SchedulerType"),
    ({"model": {"architecture": {"num_layers": 3}}}, r"`model.architecture` does not fit `gpt_neo`"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_INPUT, ids=[message[:40] for _, message in BAD_INPUT])
def test_bad_input_is_refused_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    message: str,
    make_run_config: Callable[..., RunConfig],
    replace_work: Callable[..., None],
) -> None:
    replace_work(monkeypatch, lambda phase, key: pytest.fail("work was begun"))
    values = make_run_config(tmp_path).to_dict()
    for section, fields in changes.items():
        values[section] = {**values[section], **fields}
    with pytest.raises(ValueError, match=message):
        run_pipeline(RunConfig.from_dict(values))
    assert not (tmp_path / "run").exists()


def saved_stablelm(folder: Path) -> str:
    """A stock model of another architecture; no tokenizer is needed to refuse it."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1}
    StableLmForCausalLM(StableLmConfig(vocab_size=20, num_hidden_layers=1, **sizes)).save_pretrained(folder)
    return str(folder)


def test_other_architectures_and_expanded_bases_are_refused(
    tmp_path: Path, finished: tuple[RunConfig, RunResult], make_run_config: Callable[..., RunConfig]
) -> None:
    unknown = saved_stablelm(tmp_path / "stablelm")
    with pytest.raises(ValueError, match=r"type `stablelm` is of no family that hf_era knows\. .*eval.* work for it"):
        run_pipeline(make_run_config(tmp_path, model={"architecture": {}, "base": unknown}))
    expanded = str(finished[0].output_path / "expanded")
    with pytest.raises(ValueError, match=r"is expanded already"):
        run_pipeline(make_run_config(tmp_path, model={"architecture": {}, "base": expanded}))


def test_a_directory_with_other_files_is_refused_and_kept(
    tmp_path: Path, make_run_config: Callable[..., RunConfig]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"is not empty and holds no run of hf_era"):
        run_pipeline(make_run_config(tmp_path))
    assert (tmp_path / "run" / "thesis.tex").read_text() == "precious"


def test_the_command_line_says_what_is_wrong_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(tmp_path / "missing.yaml")]) == 2
    assert "missing.yaml does not exist" in capsys.readouterr().err
    assert main(["fields"]) == 0
    assert "--expansion.target_layers" in capsys.readouterr().out


def test_an_option_in_place_of_the_config_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--seed", "1", "x.yaml"])
    assert stopped.value.code == 2
    assert "CONFIG comes first" in capsys.readouterr().err
