"""The life cycle on generated stories with a tiny model: phases, skipping, continuing, refusing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoConfig, GPTNeoForCausalLM, TrainerCallback

import hf_era.phases as phases_module
from hf_era import RunConfig, run_pipeline
from hf_era.cli import main
from hf_era.evaluation import RunResult
from hf_era.files import read_json
from hf_era.training import GradientRoutingTrainer, NonFiniteLossError

ARCHITECTURE = {
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "attention_types": [[["global", "local"], 1]],
    "max_position_embeddings": 64,
    "window_size": 32,
}


class KilledError(Exception):
    pass


@pytest.fixture(autouse=True)
def _small_and_quiet(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))


def make_config(folder: Path, **changes: Any) -> RunConfig:
    """A life cycle of a few steps; `changes` are sections whose values go over these."""
    values: dict[str, Any] = {
        "name": "tiny",
        "output_dir": str(folder / "run"),
        "model": {"architecture": ARCHITECTURE, "vocabulary_size": 300},
        "expansion": {"width": 4, "target_layers": [0]},
        "data": {
            "generator_stories": 120,
            "max_tokens": 48,
            "forget_validation_stories": 5,
            "retain_validation_stories": 6,
            "attack_stories": 3,
        },
        "training": {
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "warmup_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_steps": 2,
            "disable_tqdm": True,
            "minimum_ablation_gap": 0.0,
        },
        "coherence": {"steps": 2, "stories": 4},
        "evaluation": {"bootstrap_samples": 50},
    }
    for section, fields in changes.items():
        values[section] = {**values[section], **fields} if isinstance(fields, dict) else fields
    return RunConfig.from_dict(values)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, RunResult]:
    """One posttrain run, base pretrained here, that went through."""
    config = make_config(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "hf_era.training.trainer.GradientRoutingTrainer._warn_if_nothing_was_localised", lambda self: None
        )
        return config, run_pipeline(config)


def test_result_has_every_stage_with_intervals(finished: tuple[RunConfig, RunResult]) -> None:
    config, result = finished
    assert list(result.losses) == ["before", "before_ablation", "after_ablation", "after_coherence"]
    for stage in result.losses.values():
        for kind, stories in (("forget", 5), ("retain", 6)):
            estimate = stage[kind]
            assert estimate["low"] <= estimate["loss"] <= estimate["high"]
            assert estimate["stories"] == stories
    assert result.before_kind == "pretrained"
    assert result.data["train_stories"] == 120 - 5 - 6 - 3
    assert result.routing_table
    stored = json.loads((config.output_path / "result.json").read_text())
    assert stored["schema_version"] == 1
    assert stored["config"]["expansion"]["width"] == 4
    assert {"torch", "transformers", "python"} <= set(stored["versions"])
    assert RunResult.load(config.output_path / "result.json") == result


def test_the_final_folder_is_a_stock_checkpoint_with_a_card(
    finished: tuple[RunConfig, RunResult], run_python: Callable[..., str]
) -> None:
    config, _ = finished
    folder = config.output_path / "model"
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        path.name for path in folder.iterdir()
    }
    assert all(b"auxiliary" not in path.read_bytes() for path in folder.iterdir() if path.suffix != ".md")
    card = ModelCard.load(folder / "README.md")
    assert "gradient-routing" in card.data.tags
    code = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
inputs = tokenizer("One day", return_tensors="pt")
out = model.generate(**inputs, max_new_tokens=5, do_sample=False)
assert not any(name.startswith("hf_era") for name in sys.modules)
print(type(model).__name__, out.shape[1] - inputs["input_ids"].shape[1])
"""
    assert run_python(code, str(folder)).split()[0] == "GPTNeoForCausalLM"


def test_figures_of_the_stages_belong_to_the_saved_models(finished: tuple[RunConfig, RunResult]) -> None:
    config, result = finished
    expanded = AutoModelForCausalLM.from_pretrained(config.output_path / "expanded").eval()
    contracted = AutoModelForCausalLM.from_pretrained(config.output_path / "contracted").eval()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad(), expanded.ablated():
        assert torch.equal(expanded(ids).logits, contracted(ids).logits)
    assert result.losses["before_ablation"]["forget"] != result.losses["after_ablation"]["forget"]
    assert result.coherence["best_loss"] <= result.coherence["first_loss"]


def test_a_second_run_skips_every_phase(finished: tuple[RunConfig, RunResult], monkeypatch: pytest.MonkeyPatch) -> None:
    config, result = finished
    for phase in ("train_base", "route", "contract", "coherence", "evaluate"):
        monkeypatch.setattr(phases_module.Phases, phase, lambda self, key: pytest.fail("ran again"))
    again = run_pipeline(config)
    assert again.losses == result.losses


def test_changed_coherence_runs_again_from_there(
    finished: tuple[RunConfig, RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = finished
    ran: list[str] = []
    for phase in ("train_base", "route", "contract", "coherence", "evaluate"):
        original = getattr(phases_module.Phases, phase)
        monkeypatch.setattr(
            phases_module.Phases,
            phase,
            lambda self, key, name=phase, work=original: (ran.append(name), work(self, key))[1],
        )
    changed = make_config(config.output_path.parent, coherence={"steps": 1})
    result = run_pipeline(changed)
    assert ran == ["coherence", "evaluate"]
    assert len(result.coherence["history"]) == 2


def test_another_run_in_the_directory_is_refused_and_kept(finished: tuple[RunConfig, RunResult]) -> None:
    config, _ = finished
    before = (config.output_path / "expanded" / "model.safetensors").read_bytes()
    other = make_config(config.output_path.parent, training={"learning_rate": 0.123})
    with pytest.raises(ValueError, match=r"holds another run \(`training.learning_rate` was None, is now 0.123\)"):
        run_pipeline(other)
    assert (config.output_path / "expanded" / "model.safetensors").read_bytes() == before


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KilledError


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GradientRoutingTrainer, "_warn_if_nothing_was_localised", lambda self: None)
    scratch = {"model": {"start": "scratch", "base_control": False}, "coherence": {"enabled": False}}
    whole = make_config(tmp_path / "whole", **scratch)
    run_pipeline(whole)

    config = make_config(tmp_path / "killed", **scratch)
    steps: list[int] = []
    with monkeypatch.context() as patch:
        original = GradientRoutingTrainer.__init__

        def with_kill(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            self.add_callback(KillAt(3))

        patch.setattr(GradientRoutingTrainer, "__init__", with_kill)
        with pytest.raises(KilledError):
            run_pipeline(config)
    assert not (config.output_path / "expanded").exists()
    original_step = GradientRoutingTrainer.training_step
    monkeypatch.setattr(
        GradientRoutingTrainer,
        "training_step",
        lambda self, *args: (steps.append(self.state.global_step), original_step(self, *args))[1],
    )
    run_pipeline(config)
    assert steps == [2, 3]  # from the checkpoint of step 2, not from the start
    files = [path / "expanded" / "model.safetensors" for path in (whole.output_path, config.output_path)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (config.output_path / "checkpoints" / "route").exists()


def test_scratch_shares_its_base_control_with_a_posttrain_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GradientRoutingTrainer, "_warn_if_nothing_was_localised", lambda self: None)
    shared = str(tmp_path / "base")
    first = run_pipeline(make_config(tmp_path / "a", model={"start": "scratch", "base_dir": shared}))
    assert first.before_kind == "base_control"
    monkeypatch.setattr(phases_module.Phases, "train_base", lambda self, key: pytest.fail("trained again"))
    second = run_pipeline(make_config(tmp_path / "b", model={"base_dir": shared}))
    assert second.losses["before"] == first.losses["before"]


def test_a_shared_base_of_other_settings_is_refused(tmp_path: Path) -> None:
    shared = str(tmp_path / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases_module.Phases, "route", lambda self, key: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            run_pipeline(make_config(tmp_path / "a", model={"base_dir": shared}))
    with pytest.raises(ValueError, match=r"`model.base_dir`: .*base holds another run"):
        run_pipeline(make_config(tmp_path / "b", model={"base_dir": shared}, training={"learning_rate": 0.05}))
    assert not (tmp_path / "b").exists()
    other = tmp_path / "thesis"
    (other / "model").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"`model.base_dir`: .*thesis is not empty and holds no run"):
        run_pipeline(make_config(tmp_path / "b", model={"base_dir": str(other)}))


def test_a_run_killed_before_saving_does_not_train_another_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GradientRoutingTrainer, "_warn_if_nothing_was_localised", lambda self: None)
    config = make_config(tmp_path, model={"start": "scratch", "base_control": False}, coherence={"enabled": False})
    with monkeypatch.context() as patch:
        patch.setattr(phases_module.Phases, "_save", lambda self, model, folder: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            run_pipeline(config)
    (checkpoint,) = (config.output_path / "checkpoints").glob("route-*/checkpoint-4")
    trained = (checkpoint / "model.safetensors").read_bytes()
    result = run_pipeline(config)
    assert result.training["steps"] == 4
    assert (config.output_path / "expanded" / "model.safetensors").read_bytes() == trained


def test_provenance_is_that_of_the_training(
    finished: tuple[RunConfig, RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, result = finished
    monkeypatch.setattr(phases_module, "git_revision", lambda: "another")
    again = run_pipeline(config)
    assert (again.git_revision, again.created) == (result.git_revision, result.created)


def test_a_push_uploads_the_final_folder(
    finished: tuple[RunConfig, RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    uploads: list[dict[str, Any]] = []

    class Repository:
        repo_id = "someone/forgetful"

    monkeypatch.setattr(huggingface_hub, "create_repo", lambda *args, **options: Repository())
    monkeypatch.setattr(huggingface_hub, "upload_folder", lambda **options: uploads.append(options))
    pushing = {"push_to_hub": True, "hub_model_id": "someone/forgetful", "hub_token": "hf_secret"}
    config = make_config(finished[0].output_path.parent, training=pushing)
    run_pipeline(config)
    (upload,) = uploads
    folder = Path(upload["folder_path"])
    assert "someone/forgetful" in (folder / "README.md").read_text()
    assert type(AutoModelForCausalLM.from_pretrained(folder)) is GPTNeoForCausalLM
    assert "hf_secret" not in (config.output_path / "result.json").read_text()
    assert "hf_secret" not in (config.output_path / "run.json").read_text()


def test_from_a_local_base(
    tmp_path: Path, finished: tuple[RunConfig, RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GradientRoutingTrainer, "_warn_if_nothing_was_localised", lambda self: None)
    base = finished[0].output_path / "base" / "model"
    config = make_config(tmp_path, model={"architecture": {}, "base": str(base)}, coherence={"enabled": False})
    result = run_pipeline(config)
    assert list(result.losses) == ["before", "before_ablation", "after_ablation"]
    assert not (config.output_path / "base").exists()
    assert AutoTokenizer.from_pretrained(config.output_path / "model").vocab_size == 300


def test_nothing_localised_is_said_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(
        tmp_path,
        model={"start": "scratch", "base_control": False},
        training={"minimum_ablation_gap": 50.0},
        coherence={"enabled": False},
    )
    with pytest.warns(UserWarning, match="NOTHING WAS LOCALISED"):
        result = run_pipeline(config)
    assert result.localised is False
    assert "NOTHING WAS LOCALISED" in capsys.readouterr().err
    assert "localised" in (config.output_path / "model" / "README.md").read_text().lower()


def test_a_diverging_run_stops_with_its_own_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(self: Any, key: str) -> None:
        raise NonFiniteLossError("The loss became nan at step 3 of 4.")

    monkeypatch.setattr(phases_module.Phases, "route", diverge)
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(make_config(tmp_path, model={"start": "scratch", "base_control": False}).to_dict()))
    assert main(["run", str(file)]) == 1
    assert "step 3 of 4" in capsys.readouterr().err


def stock_model(folder: Path, kind: str) -> str:
    """A saved stock model of some architecture; no tokenizer is needed to refuse it."""
    if kind == "llama":
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    else:
        GPTNeoForCausalLM(GPTNeoConfig(**ARCHITECTURE, vocab_size=20, bos_token_id=0, eos_token_id=0)).save_pretrained(
            folder
        )
    return str(folder)


BAD_INPUT: list[tuple[dict[str, Any], str]] = [
    ({"data": {"forget_words": ["xylophonist"]}}, r"none of the 120 training stories has one of xylophonist"),
    ({"data": {"forget_words": ["a", "the", "was"]}}, r"there is no retain story"),
    ({"data": {"forget_words": [" "]}}, r"`data.forget_words` should hold words, got ' '"),
    ({"expansion": {"target_layers": [5]}}, r"names layer 5, but the model has 2 layers"),
    ({"expansion": {"target_layers": [-1]}}, r"takes no negative index, got -1"),
    ({"expansion": {"target_layers": [0, 0]}}, r"names layer 0 more than once"),
    ({"expansion": {"width": 0}}, r"`expansion.width` should be an integer of at least 1, got 0"),
    ({"expansion": {"widht": 4}}, r"Unknown key `widht` in section `expansion`. Did you mean `width`"),
    ({"routing": {"rule": "concpt"}} | {}, r"Did you mean `concept`"),
    ({"data": {"forget_validation_stories": 4000}}, r"4000 forget stories .* but the training data has \d+ distinct"),
    ({"data": {"train": "no/such/stories.jsonl"}}, r"the file no/such/stories.jsonl does not exist"),
    ({"data": {"train": "someone/stories"}}, r"could not get the data set `someone/stories` from the hub .*local file"),
    ({"data": {"max_tokens": 100}}, r"`data.max_tokens` is 100, but the model has 64 positions"),
    ({"coherence": {"stories": 5000}}, r"`coherence.stories` asks for 5000 retain stories"),
    ({"model": {"architecture": {}, "base": "./no/such/model"}}, r"the directory no/such/model does not exist"),
    ({"model": {"architecture": {}, "base": "someone/model"}}, r"could not get the model `someone/model` from the hub"),
    ({"model": {"architecture": {"model_type": "bert"}}}, r"No architecture spec .* `bert`. Known: gpt_neo"),
    (
        {"model": {"architecture": {**ARCHITECTURE, "hidden_size": 15}}},
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(phases_module.Phases, "train_base", lambda self, key: pytest.fail("work was begun"))
    values = make_config(tmp_path).to_dict()
    for section, fields in changes.items():
        values[section] = {**values[section], **fields}
    with pytest.raises(ValueError, match=message):
        run_pipeline(RunConfig.from_dict(values))
    assert not (tmp_path / "run").exists()


def test_other_architectures_and_expanded_bases_are_refused(
    tmp_path: Path, finished: tuple[RunConfig, RunResult]
) -> None:
    llama = stock_model(tmp_path / "llama", "llama")
    with pytest.raises(ValueError, match=r"No architecture spec for the base model's type `llama`. Known: gpt_neo"):
        run_pipeline(make_config(tmp_path, model={"architecture": {}, "base": llama}))
    expanded = str(finished[0].output_path / "expanded")
    with pytest.raises(ValueError, match=r"is expanded already"):
        run_pipeline(make_config(tmp_path, model={"architecture": {}, "base": expanded}))


def test_a_directory_with_other_files_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"is not empty and holds no run of hf_era"):
        run_pipeline(make_config(tmp_path))
    assert (tmp_path / "run" / "thesis.tex").read_text() == "precious"


def test_the_command_line_says_what_is_wrong_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(tmp_path / "missing.yaml")]) == 2
    assert "missing.yaml does not exist" in capsys.readouterr().err
    assert main(["fields"]) == 0
    assert "--expansion.target_layers" in capsys.readouterr().out


def test_run_file_names_the_settings(finished: tuple[RunConfig, RunResult]) -> None:
    stored = read_json(finished[0].output_path / "run.json")
    assert stored["settings"]["routing"]["rule"] == "full_seq"
