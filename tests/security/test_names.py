"""Names from configs, models and results stay names: they lead to no file outside of where output goes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_era.cli import main
from hf_era.commands.evaluate import default_folder
from hf_era.run.config import RunConfig, load_run_config
from hf_era.run.matrix import load_matrix

LEADING_ELSEWHERE = ["../../x", "/etc/x", "a/../../x", "..", ".", ".ssh", "", " ", "a\0b", "a\nb", "a\\b", "\u202ea"]
TOO_LONG = ["x" * 101, "\N{DECIDUOUS TREE}" * 26, "x" * 1_000_000]
BROKEN = ["\ud800", "a\udfffb"]
HARMLESS = ["~", "a-b_c.d", "naïve tree", "{seed}", "x" * 100, "-rf", "CON"]


@pytest.mark.parametrize("name", LEADING_ELSEWHERE + TOO_LONG + BROKEN)
def test_a_name_that_is_no_part_of_a_path_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^`name` (becomes part of a path|should be valid Unicode).{1,300}$"):
        RunConfig(name=name)


@pytest.mark.parametrize("name", HARMLESS)
def test_other_names_stay_in_the_output_directory(name: str, tmp_path: Path) -> None:
    config = RunConfig(name=name, output_dir=str(tmp_path / "{name}-seed{seed}"))
    assert config.output_path.parent == tmp_path
    assert config.base_path.parent == config.output_path


def test_the_home_directory_is_meant_by_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = RunConfig.from_dict({"output_dir": "~/runs/{name}", "model": {"base_dir": "~/base"}})
    assert (config.output_path, config.base_path) == (tmp_path / "runs" / "run", tmp_path / "base")


@pytest.mark.parametrize("seed", [-1, 2**32, 10**30])
def test_a_seed_is_a_seed(seed: int) -> None:
    with pytest.raises(ValueError, match="`seed` should be at"):
        RunConfig(seed=seed)


@pytest.mark.parametrize("field", ["output_dir", "model.base", "model.tokenizer", "model.base_dir", "data_filtering"])
@pytest.mark.parametrize("value", ["a\0b", "\ud800", "x" * 300])
def test_a_path_that_no_file_system_takes_is_refused(field: str, value: str) -> None:
    values: dict[str, Any] = {}
    section, _, name = field.rpartition(".")
    (values.setdefault(section, {}) if section else values)[name] = value
    with pytest.raises(ValueError, match=rf"`{field}` (should be|has a part)"):
        RunConfig.from_dict(values)


@pytest.mark.parametrize("name", ["../../x", "a b", "owner/na/me", "", "a\nb", "--x", "~/x"])
def test_a_hub_id_is_refused_before_the_training(name: str) -> None:
    with pytest.raises(ValueError, match=r"`training\.hub_model_id` should be a hub id such as `owner/name`, got"):
        RunConfig(training={"hub_model_id": name})
    assert RunConfig(training={"hub_model_id": "owner/name-1.0"}).training == {"hub_model_id": "owner/name-1.0"}


@pytest.mark.parametrize(
    "name", [*LEADING_ELSEWHERE, *TOO_LONG, *BROKEN, *HARMLESS, "roneneldan/TinyStories-28M", "a/b/..", "$(ls)"]
)
def test_the_default_folder_is_in_the_working_directory(name: str, tmp_path: Path) -> None:
    folder = default_folder(name, "eval")
    assert Path(folder).name == folder
    assert not folder.startswith((".", "-", "~"))
    assert folder.endswith("-eval")
    assert folder.isascii()
    (tmp_path / folder).mkdir()


def test_default_folders_of_ordinary_names_are_as_before() -> None:
    assert default_folder("TinyStories-28M", "eval") == "TinyStories-28M-eval"
    assert default_folder("my_model.v2", "relearn") == "my_model.v2-relearn"


def write_matrix(folder: Path, name: Any, seeds: Sequence[Any] = (0,)) -> Path:
    (folder / "recipe.yaml").write_text("output_dir: runs/{name}-seed{seed}\n")
    file = folder / "matrix.yaml"
    file.write_text(yaml.safe_dump({"seeds": list(seeds), "runs": [{"name": name, "recipe": "recipe.yaml"}]}))
    return file


@pytest.mark.parametrize("name", LEADING_ELSEWHERE + TOO_LONG[:2])
def test_a_row_of_a_matrix_is_no_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`name` becomes part of a path"):
        load_matrix(write_matrix(tmp_path, name))


@pytest.mark.parametrize("seeds", [["../x"], [-1], [0, 0], list(range(20_000))])
def test_seeds_of_a_matrix_are_seeds(seeds: list, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`seeds`|`seed`|`runs x seeds` should be at most 10,000, got 20000"):
        load_matrix(write_matrix(tmp_path, "row", seeds))


# ---- Results that somebody else wrote ----


@pytest.fixture
def result_file(tmp_path: Path) -> Callable[..., Path]:
    values = json.loads(
        next(Path(__file__).parents[2].glob("benchmarks/results/matrix_small/seed0/*.json")).read_text()
    )

    def write(**changes: Any) -> Path:
        (tmp_path / "result.json").write_text(json.dumps({**values, **changes}))
        return tmp_path / "result.json"

    return write


def run(command: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Runs a command in a folder of its own; returns everything that it wrote, relative to the folder above it."""
    work = folder / "deep" / "inner"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    before = {path for path in folder.rglob("*") if path.is_file()}
    assert main(command) == 0
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {
        path.relative_to(folder).as_posix() for path in before
    }


@pytest.mark.parametrize("name", ["../../x", "/tmp/hf_era_must_not_be_here", "~", "a\0b", "x" * 5_000])
def test_the_name_in_a_result_leads_nowhere(
    name: str, result_file: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = result_file(name=name)
    written = run(["compare", str(file), "--output", "out"], tmp_path, monkeypatch)
    assert written
    assert all(path.startswith("deep/inner/out/") for path in written)
    assert not Path("/tmp/hf_era_must_not_be_here").exists()


def test_a_card_goes_where_it_is_told_to(
    result_file: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = result_file(name="../../x", seed="../../y")
    written = run(["card", str(file), "--output", "out"], tmp_path, monkeypatch)
    assert written == {"deep/inner/out/README.md", "deep/inner/out/report.html"}


@pytest.mark.parametrize("command", ["card", "compare"])
@pytest.mark.parametrize(
    "changes", [{"losses": 5}, {"losses": {"before": 5}}, {"config": []}, {"data": None}, {"selectivity": [1]}]
)
def test_a_result_of_the_wrong_shape_is_named(
    command: str, changes: dict, result_file: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main([command, str(result_file(**changes)), "--output", str(tmp_path / "out")])
    if status:  # what does not look at the field may go through
        assert status == 2
        assert "result.json: a value is not what hf_era writes" in capsys.readouterr().err
    assert status == 2 or "losses" not in changes


def test_a_repository_that_is_none_is_refused(result_file: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    file = result_file()
    assert main(["card", str(file), "--repository", "../../x", "--output", str(file.parent / "out")]) == 2
    assert "`repository` should be a hub id such as `owner/name`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
        "a0: &a0 {x: 1, y: 2}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60)),
        "data: " + "[" * 100_000,
        "data: " + "{a: " * 60 + "1" + "}" * 60,
        "data: &a [*a]",
        "x: [" + "1, " * 200_000 + "1]",
        "x: " + "1" * 2_000_000,
    ],
    ids=["laughs", "merges", "unclosed", "deep", "recursive", "many", "large"],
)
def test_yaml_that_grows_without_end_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "bomb.yaml").write_text(content)
    with pytest.raises(
        ValueError, match=r"bomb\.yaml (is no valid YAML: .*(values|nest|anchor)|has 2,000,\d+ bytes)"
    ) as caught:
        load_run_config([tmp_path / "bomb.yaml"])
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("word", ["[" * 5_000, "&a [*a]", "2024-99-99", "1" * 5_000, "!!python/object:os.system x"])
def test_words_of_the_command_line_that_only_look_like_yaml_are_text(word: str) -> None:
    assert load_run_config([], ["--data.train", word, "--data.forget_words", "tree"]).data.train == word
