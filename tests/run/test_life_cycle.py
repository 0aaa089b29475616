"""The life cycle from the stories to the stock checkpoint: what it leaves behind, and what it says of itself."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoForCausalLM

from hf_era import RunConfig, run_pipeline
from hf_era.cli import main
from hf_era.data import WordFinder
from hf_era.evaluation import RunResult
from hf_era.evaluation.distance import weight_distance
from hf_era.methods import Phase
from hf_era.models.fast.causal_lm import ALL_SLOW
from hf_era.models.generation_config import GenerationConfigWarning
from hf_era.models.loading import load_causal_lm
from hf_era.training import NonFiniteLossError
from hf_era.utils.files import read_json


def test_result_has_every_stage_with_intervals(finished: tuple[RunConfig, RunResult]) -> None:
    config, result = finished
    assert list(result.losses) == ["before", "before_ablation", "after_ablation", "after_coherence"]
    for stage in result.losses.values():
        for kind, stories in (("forget", 5), ("retain", 6)):
            estimate = stage[kind]
            assert estimate["low"] <= estimate["loss"] <= estimate["high"]
            assert estimate["stories"] == stories
    assert result.before_kind == "pretrained"
    assert result.data["train_stories"] == 120 - 5 - 6 - 3 - 4
    assert result.routing_table
    stored = json.loads((config.output_path / "result.json").read_text())
    assert stored["schema_version"] == 5
    assert stored["config"]["expansion"]["width"] == 4
    assert {"torch", "transformers", "python"} <= set(stored["versions"])
    assert RunResult.load(config.output_path / "result.json") == result


def test_the_final_folder_is_a_stock_checkpoint_with_a_card(
    finished: tuple[RunConfig, RunResult],
) -> None:
    """It names nothing of hf_era; that such a checkpoint loads without it, the families' tests show."""
    config, _ = finished
    folder = config.output_path / "model"
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        path.name for path in folder.iterdir()
    }
    assert all(b"auxiliary" not in path.read_bytes() for path in folder.iterdir() if path.suffix != ".md")
    card = ModelCard.load(folder / "README.md")
    assert "gradient-routing" in card.data.tags
    settings = [read_json(folder / name) for name in ("config.json", "tokenizer_config.json")]
    assert settings[0]["model_type"] == "gpt_neo"
    assert all("auto_map" not in values and "hf_era" not in str(values) for values in settings)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(model) is GPTNeoForCausalLM
    inputs = tokenizer("One day", return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=5, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


def test_the_stages_differ_in_their_configs_by_the_expansion_alone(finished: tuple[RunConfig, RunResult]) -> None:
    configs = {
        stage: read_json(finished[0].output_path / stage / "config.json")
        for stage in ("base/model", "expanded", "contracted", "model")
    }
    before = configs["base/model"]
    assert before["use_cache"] is True
    assert configs["contracted"] == configs["model"] == before
    added = {name: value for name, value in configs["expanded"].items() if before.get(name) != value}
    assert sorted(added) == ["architectures", "expansion", "load_with", "model_type"]
    assert {**configs["expanded"], **{name: before.get(name) for name in added}} == {
        **before,
        **dict.fromkeys(added.keys() - before.keys()),
    }
    assert (finished[0].output_path / "expanded" / "README.md").is_file()


def test_figures_of_the_stages_belong_to_the_saved_models(finished: tuple[RunConfig, RunResult]) -> None:
    config, result = finished
    # The stock class has no fast paths: without them the logits are equal bit for bit.
    expanded = AutoModelForCausalLM.from_pretrained(config.output_path / "expanded", attn_implementation="eager").eval()
    expanded.set_fast_paths(ALL_SLOW)
    contracted = AutoModelForCausalLM.from_pretrained(config.output_path / "contracted").eval()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad(), expanded.ablated():
        assert torch.equal(expanded(ids).logits, contracted(ids).logits)
    assert result.losses["before_ablation"]["forget"] != result.losses["after_ablation"]["forget"]
    assert result.coherence["best_loss"] <= result.coherence["first_loss"]


def test_what_was_never_trained_on_is_kept(finished: tuple[RunConfig, RunResult]) -> None:
    """So that another model can be measured on it, and this one again."""
    config, result = finished
    texts = {
        path.stem: [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
        for path in sorted((config.output_path / "held_out").iterdir())
    }
    assert {name: len(part) for name, part in texts.items()} == {
        "attack": result.data["attack_forget_stories"],
        "coherence": result.data["coherence_validation_stories"],
        "forget": result.data["validation_forget_stories"],
        "retain": result.data["validation_retain_stories"],
    }
    finder = WordFinder(config.data.forget_words)
    assert [all(map(finder.found_in, texts[name])) for name in ("attack", "forget")] == [True, True]
    assert not any(map(finder.found_in, texts["retain"] + texts["coherence"]))


def test_run_file_names_the_settings(finished: tuple[RunConfig, RunResult]) -> None:
    stored = read_json(finished[0].output_path / "run.json")
    assert stored["settings"]["routing"]["rule"] == "full_seq"


@pytest.mark.usefixtures("_no_localisation_warning")
def test_from_a_local_base(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    finished: tuple[RunConfig, RunResult],
    make_run_config: Callable[..., RunConfig],
) -> None:
    base = tmp_path / "base"
    shutil.copytree(finished[0].output_path / "base" / "model", base)
    # As many on the hub: it can be read, and saved again as long as nobody changes it, as the Trainer does.
    (base / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.7, "pad_token_id": 5}')
    config = make_run_config(
        tmp_path,
        model={"architecture": {}, "base": str(base)},
        coherence={"enabled": False},
        generation={"new_tokens": 46},
        evaluation={"barrier_points": 1},
    )
    with pytest.warns(GenerationConfigWarning, match="`temperature`"):
        result = run_pipeline(config)
    assert "so texts may reach" in capsys.readouterr().err
    assert result.generations["settings"]["trained_tokens"] == 48
    assert "trained_tokens" not in finished[1].generations["settings"]
    report = (config.output_path / "report.html").read_text()
    assert "Beyond the first 48 tokens nothing was trained in this run." in report
    moved = weight_distance(*(load_causal_lm(path) for path in (config.output_path / "model", base)))
    assert {name: result.base_distance[name] for name in moved} == moved
    ends = [result.base_distance["line"][place]["forget"] for place in (0, -1)]
    assert ends == pytest.approx([result.loss(stage, "forget") for stage in ("before", result.final_stage)])
    assert "Loss barrier, forget examples" in report
    assert list(result.losses) == ["before", "before_ablation", "after_ablation"]
    assert not (config.output_path / "base").exists()
    assert AutoTokenizer.from_pretrained(config.output_path / "model").vocab_size == 300


def test_nothing_localised_is_said_loudly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make_run_config: Callable[..., RunConfig]
) -> None:
    config = make_run_config(
        tmp_path,
        model={"start": "scratch", "base_control": False},
        training={"minimum_ablation_gap": 50.0},
        coherence={"enabled": False},
    )
    with pytest.warns(UserWarning, match="NOTHING WAS LOCALISED"):
        result = run_pipeline(config)
    assert result.localised is False
    told = capsys.readouterr().err
    assert "No: nothing was localised" in told
    assert not [bar for bar in ("Loading weights", "Writing model shards") if bar in told]
    assert "**Removed? No: nothing was localised.**" in (config.output_path / "model" / "README.md").read_text()


def test_a_diverging_run_stops_with_its_own_exit_status(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    make_run_config: Callable[..., RunConfig],
    replace_work: Callable[..., None],
) -> None:
    def diverge(phase: Phase, key: str) -> None:
        raise NonFiniteLossError("The loss became nan at step 3 of 4.")

    replace_work(monkeypatch, diverge, "route")
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(make_run_config(tmp_path, model={"start": "scratch", "base_control": False}).to_dict()))
    assert main(["run", str(file)]) == 1
    assert "step 3 of 4" in capsys.readouterr().err
