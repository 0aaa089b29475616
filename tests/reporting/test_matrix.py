"""Recipes x seeds: the cells, running them, going on, and what they say together."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from hf_era.cli import main
from hf_era.evaluation import RunResult
from hf_era.evaluation.summary import aggregate
from hf_era.run.matrix import load_matrix
from hf_era.run.matrix_running import _Process, _Running, run_cells, start_paths, threads_of_a_cell

# Stands for `hf-era run`: writes down that it was called, fails for a row called `broken`, and leaves a result.
FAKE_RUN = """
import sys, yaml, pathlib, json
config = yaml.safe_load(open(sys.argv[1]))
if config["name"] == "broken":
    sys.exit(3)
folder = pathlib.Path(config["output_dir"].replace("{name}", config["name"]).replace("{seed}", str(config["seed"])))
folder.mkdir(parents=True, exist_ok=True)
with open(folder.parent / "calls.txt", "a") as calls:
    calls.write(f"{config['name']} {config['seed']}\\n")
result = json.load(open(config["data"]["train"]))
result |= {"name": config["name"], "seed": config["seed"]}
if config.get("method") == "data_filtering":
    result |= {"method": "data_filtering", "method_title": "data filtering", "method_role": "control"}
result["differences"]["unlearning"]["value"] += config["seed"]
json.dump(result, open(folder / "result.json", "w"))
"""


@pytest.fixture(autouse=True)
def _reports_without_plots(monkeypatch):
    """A second for each cell's report; those of the comparison are drawn."""
    monkeypatch.setattr("hf_era.reporting.html.report.plots_of", lambda results, names: [])


@pytest.fixture
def matrix_file(tmp_path, make_result):
    """A matrix of three rows and two seeds whose runs are fakes; `write(...)` changes it."""
    (tmp_path / "run.py").write_text(FAKE_RUN)
    make_result().save(tmp_path / "stored.json")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"model": {"start": "scratch"}, "seed": 7}))
    values = {
        "output_dir": str(tmp_path / "matrix"),
        "seeds": [0, 1],
        "data_filtering": "filtered",
        "launcher": [sys.executable, str(tmp_path / "run.py")],
        "settings": {
            "output_dir": str(tmp_path / "runs" / "{name}-seed{seed}"),
            "data": {"train": str(tmp_path / "stored.json"), "forget_words": ["tree"]},
        },
        "runs": [
            {"name": "filtered", "recipe": "recipe.yaml", "settings": {"method": "data_filtering"}},
            {"name": "routed", "recipe": "recipe.yaml"},
        ],
    }  # fmt: skip

    def write(**changes):
        path = tmp_path / "matrix.yaml"
        path.write_text(yaml.safe_dump({**values, **changes}, sort_keys=False))
        return path

    return write


def test_cells_are_recipes_times_seeds(matrix_file, tmp_path):
    _, cells = load_matrix(matrix_file())
    assert [(cell.row, cell.seed) for cell in cells] == [("filtered", 0), ("routed", 0), ("filtered", 1), ("routed", 1)]
    assert cells[3].config.seed == 1  # not the recipe's own
    assert len(load_matrix(matrix_file(), {"seeds": ["0,1,2"]})[1]) == 6  # as `--seeds 0,1,2` gives them
    assert cells[2].config.method == "data_filtering"
    assert cells[3].config.output_path == tmp_path / "runs" / "routed-seed1"


def test_all_cells_run_and_are_compared_with_data_filtering_beside(matrix_file, tmp_path):
    assert main(["matrix", str(matrix_file())]) == 0
    assert (tmp_path / "runs" / "calls.txt").read_text().split("\n")[:4] == [
        "filtered 0",
        "routed 0",
        "filtered 1",
        "routed 1",
    ]
    results = {(name, seed): RunResult.load(tmp_path / "runs" / f"{name}-seed{seed}" / "result.json")
               for name in ("filtered", "routed") for seed in (0, 1)}  # fmt: skip
    # Each seed has the data filtering of its own seed beside it: unlearning 0.601 + seed.
    for seed in (0, 1):
        beside = results["routed", seed].data_filtering
        assert (beside["name"], beside["seed"]) == ("filtered", seed)
        assert beside["differences"]["unlearning"]["value"] == pytest.approx(0.601 + seed)
        assert results["filtered", seed].data_filtering is None
        report = (tmp_path / "runs" / f"routed-seed{seed}" / "report.html").read_text()
        assert "Data filtering (filtered)" in report
        assert "Over 2 seeds (0, 1)" in report
    rows = {row["name"]: row for row in aggregate(list(results.values()))}
    assert rows["routed"]["figures"]["unlearning"]["value"] == pytest.approx(1.101)
    for name in ("comparison.md", "comparison.csv", "comparison.json", "comparison.html"):
        assert (tmp_path / "matrix" / name).stat().st_size > 500
    kept = RunResult.load(tmp_path / "matrix" / "seed1" / "routed.json")
    assert kept == results["routed", 1]


def test_one_cell_for_an_array_and_the_list(matrix_file, tmp_path, capsys):
    path = str(matrix_file())
    assert main(["matrix", path, "--cell", "1"]) == 0
    assert (tmp_path / "runs" / "calls.txt").read_text() == "routed 0\n"
    assert not (tmp_path / "matrix" / "comparison.md").exists()
    capsys.readouterr()
    assert main(["matrix", path, "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["done" in line for line in lines] == [False, True, False, False]
    assert main(["matrix", path, "--cell", "4"]) == 2
    assert "`--cell` should be from 0 to 3, got 4" in capsys.readouterr().err


def test_rows_and_testbeds_by_name(matrix_file, tmp_path, capsys):
    testbeds = {"trees": {}, "letters": {"data": {"max_tokens": 16}}}
    path = str(matrix_file(testbeds=testbeds, settings={"output_dir": str(tmp_path / "runs/{testbed}/{name}-{seed}")}))
    assert main(["matrix", path, "--rows", "routed", "--testbeds", "letters", "--list"]) == 0
    lines = [line.split()[:5] for line in capsys.readouterr().out.splitlines()]
    assert lines == [["3", "letters", "routed", "seed", "0"], ["7", "letters", "routed", "seed", "1"]]
    assert main(["matrix", path, "--rows", "rooted"]) == 2
    assert "Unknown value for `--rows`: 'rooted'. Did you mean `routed`?" in capsys.readouterr().err
    assert main(["matrix", path, "--rows", "routed", "--cell", "0"]) == 2
    assert "`--cell`, `--rows` and `--testbeds` name no cell together" in capsys.readouterr().err


def test_a_cell_that_fails_does_not_stop_the_others(matrix_file, tmp_path, capsys):
    row = {"name": "broken", "recipe": "recipe.yaml"}
    path = matrix_file(runs=[row, {"name": "routed", "recipe": "recipe.yaml"}], data_filtering=None)
    assert main(["matrix", str(path)]) == 1
    assert "Failed: broken (seed 0), broken (seed 1)" in capsys.readouterr().err.replace("\n", " ")
    assert (tmp_path / "runs" / "calls.txt").read_text() == "routed 0\nrouted 1\n"
    assert (tmp_path / "matrix" / "comparison.html").is_file()


def test_data_filtering_on_other_stories_is_not_put_beside(matrix_file, make_result, monkeypatch):
    monkeypatch.setattr("hf_era.run.matrix_results.write_comparison_files", lambda results, folder: None)
    path = str(matrix_file())
    cells = load_matrix(path)[1]
    for cell in cells:
        result = make_result(name=cell.row, seed=cell.seed)
        if cell.key == ("", "filtered", 0):
            result.data["fingerprint"] = "of other stories"
        result.save(cell.result_file)
    assert main(["matrix", path, "--aggregate"]) == 0
    beside = {cell.key[1:]: cell.result().data_filtering is not None for cell in cells}
    assert beside == {("filtered", 0): False, ("routed", 0): False, ("filtered", 1): False, ("routed", 1): True}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": []}, "The matrix is empty"),
        ({"seeds": []}, "The matrix is empty"),
        ({"seeds": [1, 1]}, "`seeds`: 1 stands twice"),
        ({"runs": [{"name": "a", "recipe": "recipe.yaml"}] * 2, "data_filtering": None}, "`runs`: 'a' stands twice"),
        ({"runs": [{"name": "a"}]}, "should have `name` and `recipe`"),
        ({"runs": ["a"]}, "should have `name` and `recipe`"),
        ({"data_filtering": "filterd"}, "Did you mean `filtered`?"),
        ({"sedes": [0]}, "Did you mean `seeds`?"),
        ({"settings": {"output_dir": "one/for/all"}}, "Two cells of the matrix have the output directory one/for/all"),
        ({"runs": [{"name": "a", "recipe": "none.yaml"}], "data_filtering": None}, "none.yaml does not exist"),
        ({"overlays": ["none.yaml"]}, "none.yaml does not exist"),
    ],
)
def test_wrong_matrices_are_refused_before_anything_runs(matrix_file, changes, message, tmp_path, capsys):
    assert main(["matrix", str(matrix_file(**changes))]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_nothing_to_aggregate(matrix_file, capsys):
    assert main(["matrix", str(matrix_file()), "--aggregate"]) == 2
    assert "None of the 4 cells has a result yet" in capsys.readouterr().err


CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"
MATRICES = [path.name for path in CONFIGS.glob("*.yaml") if "\nruns:\n" in path.read_text()]


@pytest.mark.parametrize("name", sorted(MATRICES))
def test_every_matrix_of_the_recipes_can_be_read(name: str, repository_root: Path, monkeypatch):
    """References and rows of a frontier are looked for; every cell has a valid config."""
    monkeypatch.chdir(repository_root)
    matrix, cells = load_matrix(f"recipes/configs/{name}", {"seeds": [3]})
    assert {cell.row for cell in cells} == {run.name for run in matrix.runs}
    assert {cell.seed for cell in cells} == {3}


def test_the_small_matrix_of_the_recipes(repository_root: Path, monkeypatch):
    monkeypatch.chdir(repository_root)
    matrix, cells = load_matrix("recipes/configs/matrix_small.yaml")
    assert len(cells) == len(matrix.runs) * 3
    by_name = {cell.row: cell.config for cell in cells if cell.seed == 0}
    assert by_name["untouched_base"].method == "base"
    assert by_name["data_filtering"].model.start == "scratch"
    assert by_name["posttrain_no_routing"].routing.rule == "none"
    assert by_name["scratch_no_routing"].routing.rule == "none"
    assert by_name["scratch_no_routing"].model.start == "scratch"
    # All share the stories, and those of one start the base or base control, or their figures could not be compared.
    assert len({str(config.data) for config in by_name.values()}) == 1
    assert len({(config.model.start, config.base_path) for config in by_name.values()}) == 2


# Stands for a cell that is asked to stop: says that it is there, and saves when the signal comes.
SAVING_RUN = """
import os, pathlib, signal, sys, time
here = pathlib.Path(sys.argv[0]).parent
def save(number, frame):
    (here / "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
if (here / "only_cell").exists():
    os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(30)
"""


@pytest.mark.parametrize("only_the_cell", [False, True])
def test_a_signal_stops_the_cell_in_good_order_and_the_matrix(matrix_file, tmp_path, capsys, only_the_cell):
    path = matrix_file()
    (tmp_path / "run.py").write_text(SAVING_RUN)
    if only_the_cell:
        (tmp_path / "only_cell").touch()
    assert main(["matrix", str(path)]) == 75
    assert (tmp_path / "saved").exists()
    assert "Give the same command again to go on from there." in capsys.readouterr().err


# ---- Testbeds, cells side by side, and what is left of a cell ----


def test_cells_of_testbeds_and_their_order(matrix_file, tmp_path):
    path = matrix_file(
        testbeds={
            "trees": {},
            "letters": {"training": {"max_steps": 7}, "data": {"label_column": "about", "forget_labels": ["x"]}},
        },
        settings={
            "output_dir": str(tmp_path / "{testbed}" / "{name}-seed{seed}"),
            "model": {"base_dir": "bases/{testbed}-{seed}"},
            "data": {"train": "{testbed}.jsonl", "forget_words": ["tree"]},
        },
        runs=[
            {"name": "filtered", "recipe": "recipe.yaml", "settings": {"method": "data_filtering"}},
            {"name": "routed", "recipe": "recipe.yaml", "testbeds": ["letters"]},
            {"name": "budget", "recipe": "recipe.yaml", "seeds": [1, 5]},
        ],
    )
    matrix, cells = load_matrix(path)
    assert [cell.title for cell in cells] == [
        "trees, filtered, seed 0",
        "letters, filtered, seed 0",
        "letters, routed, seed 0",
        "trees, filtered, seed 1",
        "trees, budget, seed 1",
        "letters, filtered, seed 1",
        "letters, routed, seed 1",
        "letters, budget, seed 1",
    ]
    routed = cells[2].config
    assert routed.output_path == tmp_path / "letters" / "routed-seed0"
    assert (str(routed.base_path), routed.data.train) == ("bases/letters-0", "letters.jsonl")
    assert routed.training["max_steps"] == 7
    # A testbed's labels take the place of the others, as those of a later file do.
    assert (routed.data.labels.kind, cells[0].config.data.labels.kind) == ("column", "words")
    matrix.runs[1].testbeds = []
    assert len(matrix.cells_of()) == 6


def test_cells_that_would_train_two_bases_in_one_place_are_refused(matrix_file, tmp_path):
    shared = {"model": {"start": "pretrained", "base_dir": str(tmp_path / "base-{seed}")}, "method": "continue_all"}
    short = shared | {"training": {"warmup_steps": 5}}
    rows = [{"name": name, "recipe": "recipe.yaml", "settings": part} for name, part in (("a", shared), ("b", short))]
    with pytest.raises(ValueError, match=r"`a, seed 0` and `b, seed 0` share the base in .*`training.warmup_steps` is"):
        load_matrix(matrix_file(runs=rows, data_filtering=None))
    said = short | {"pretraining": {"warmup_steps": 50}}
    rows = [{"name": name, "recipe": "recipe.yaml", "settings": part} for name, part in (("a", said), ("b", said))]
    load_matrix(matrix_file(runs=rows, data_filtering=None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_curve": ["filtered", "routed"]}, "`base_curve` names 2 rows; a compute ratio needs base controls"),
        ({"filtering_curve": ["filterd"]}, "Unknown value for `filtering_curve`: 'filterd'. Did you mean `filtered`?"),
        ({"base_control": "rooted"}, "Unknown value for `base_control`: 'rooted'. Did you mean `routed`?"),
        ({"runs": [{"name": "filtered", "recipe": "recipe.yaml", "data_filtering": "all"}]},
         "Unknown value for `runs.filtered.data_filtering`: 'all'"),
        ({"testbeds": {"a/b": {}}}, "`testbeds` becomes part of a path"),
        ({"testbeds": {"trees": 3}}, "`testbeds.trees` should be a mapping of settings, got 3"),
        ({"testbeds": {"trees": {}, "letters": {}}}, "Put {testbed}, {name} and {seed} in it"),
        ({"testbeds": {"trees": {}}, "runs": [{"name": "filtered", "recipe": "recipe.yaml", "testbeds": ["tree"]}]},
         "Unknown value for `runs.filtered.testbeds`: 'tree'. Did you mean `trees`?"),
        ({"testbeds": {"trees": {"data": {"trian": "x"}}}}, "trees: filtered: Unknown key `trian`"),
        ({"runs": [{"name": "filtered", "recipe": "recipe.yaml", "seeds": [4]}]}, "no row has one of its `seeds`"),
        ({"jobs": 0}, "`jobs` should be at least 1, got 0"),
        ({"frontier": {"noise": ["routed"]}}, "Set `frontier_control`"),
        ({"frontier": {"noise": [None]}}, "`frontier.noise` should be a list of rows, got [None]"),
        ({"frontier": {"noise": ["routed", "routed"]}}, "`frontier.noise`: 'routed' stands twice"),
        ({"frontier": {"noise": ["rooted"]}, "frontier_control": "noise"},
         "Unknown value for `frontier.noise`: 'rooted'. Did you mean `routed`?"),
        ({"frontier": {"noise": "routed"}}, "`frontier.noise` should be a list of rows, got 'routed'"),
        ({"frontier": {"noise": ["routed"]}, "frontier_control": "all"}, "Unknown value for `frontier_control`: 'all'"),
    ],
)  # fmt: skip
def test_wrong_testbeds_are_refused(matrix_file, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_matrix(matrix_file(**changes))


# Stands for a run: notes its threads and when it ran, leaves a model, and a result of the settings that it was given.
MODEL_RUN = """
import json, os, pathlib, sys, time, yaml
start = time.time()
config = yaml.safe_load(open(sys.argv[1]))
if config["name"] == "broken":
    sys.exit("what went wrong")
folder = pathlib.Path(config["output_dir"].replace("{name}", config["name"]).replace("{seed}", str(config["seed"])))
for name in ("model", "base", "checkpoints/train-1", "held_out"):
    (folder / name).mkdir(parents=True, exist_ok=True)
for name in ("model/model.safetensors", "base/model.safetensors", "held_out/forget.jsonl"):
    (folder / name).touch()
time.sleep(0.2)
result = json.load(open(config["data"]["train"]))
result |= {"name": config["name"], "seed": config["seed"], "config": config}
json.dump(result, open(folder / "result.json", "w"))
with open(folder.parent / "calls.txt", "a") as calls:
    calls.write(f"{config['name']} {config['seed']} {os.environ['OMP_NUM_THREADS']} {start} {time.time()}\\n")
"""


def test_cells_side_by_side_leave_their_results_and_no_models(matrix_file, tmp_path, capsys):
    shared = tmp_path / "runs" / "a-seed0" / "base"  # another cell starts from it
    rows = [{"name": name, "recipe": "recipe.yaml"} for name in ("a", "broken", "b")]
    rows[2]["settings"] = {"model": {"start": "pretrained", "base": str(shared)}}
    path = matrix_file(runs=rows, data_filtering=None, seeds=[0], jobs=3, keep_models=False)
    (tmp_path / "run.py").write_text(MODEL_RUN)
    matrix, cells = load_matrix(path)
    console = Console(stderr=True, soft_wrap=True)
    ended = []
    failed = run_cells(matrix, cells, console, start_paths(cells), lambda cell: ended.append(cell.row))
    assert [cell.row for cell in failed] == ["broken"]
    assert sorted(ended) == ["a", "b"]
    assert "what went wrong" in capsys.readouterr().err
    calls = [line.split() for line in (tmp_path / "runs" / "calls.txt").read_text().splitlines()]
    assert [call[2] for call in calls] == [str(threads_of_a_cell(3))] * 2
    (first, second) = ([float(number) for number in call[3:]] for call in calls)
    assert max(first[0], second[0]) < min(first[1], second[1])
    left = {row: sorted(path.name for path in (tmp_path / "runs" / f"{row}-seed0").iterdir()) for row in ("a", "b")}
    assert left == {"a": ["base", "held_out", "result.json"], "b": ["held_out", "result.json"]}
    # What is done is not run again, since its models are gone; with other settings it is.
    assert [cell.is_done() for cell in cells] == [True, False, True]
    assert not load_matrix(path, {"settings": {"training": {"max_steps": 3}}})[1][0].is_done()
    assert run_cells(matrix, cells[::2], console) == []
    assert len((tmp_path / "runs" / "calls.txt").read_text().splitlines()) == 2


def test_a_cell_whose_base_another_one_is_training_waits_for_others(matrix_file, tmp_path):
    rows = [
        {"name": name, "recipe": "recipe.yaml", "settings": {"model": {"base_dir": str(tmp_path / base)}}}
        for name, base in (("a", "one"), ("b", "one"), ("c", "two"))
    ]
    matrix, cells = load_matrix(matrix_file(runs=rows, data_filtering=None, seeds=[0]))
    running = _Running(matrix, Console(), 2)
    assert running.next_of(cells) == 0
    running.processes = [_Process(cells[0], None, 0.0)]
    assert running.next_of(cells[1:]) == 1
    assert running.next_of(cells[1:2]) == 0  # there are no others
    (tmp_path / "one" / "phases").mkdir(parents=True)
    (tmp_path / "one" / "phases" / "base.json").touch()
    assert running.next_of(cells[1:]) == 0


def test_a_row_is_run_again_of_which_a_line_is_left_alone(matrix_file, tmp_path, capsys, monkeypatch):
    """On a fresh clone, whose results are there without their runs: only on demand; and what is run is not run twice."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a cell alone is given none, and the fake notes it
    rows = [{"name": name, "recipe": "recipe.yaml"} for name in ("a", "b")]
    path = matrix_file(runs=rows, data_filtering=None, seeds=[0], keep_models=False)
    (tmp_path / "run.py").write_text(MODEL_RUN)
    calls = tmp_path / "runs" / "calls.txt"

    def run(*options):
        assert main(["matrix", str(path), "--rows", "a", *options]) == 0
        return (calls.read_text() if calls.exists() else "").split("\n")[:-1], "done already" in capsys.readouterr().err

    first, _ = run()
    shutil.rmtree(tmp_path / "runs")
    assert run() == ([], True)
    (again,), was_done = run("--again")
    assert again.split()[0] == first[0].split()[0] == "a"
    assert not was_done
    assert run("--again") == ([again], True)
