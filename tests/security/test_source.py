"""The package never unpickles, evaluates text or runs a checkpoint's code: its source is read, call by call."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FORBIDDEN_MODULES = ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "telnetlib", "ftplib")
FORBIDDEN_CALLS = (
    "torch.load", "eval", "exec", "compile", "__import__", "os.system", "os.popen", "numpy.load", "np.load",
    "pandas.read_pickle",
    "yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "torch.hub.load", "tempfile.mktemp",
)  # fmt: skip
MODEL_LOADERS = ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM", "model_class")


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def findings(root: Path) -> list[str]:
    """One line for each thing that must not be there."""
    files = sorted(root.rglob("*.py"))
    assert files, f"no Python file under {root}: nothing was checked"
    return [f"{path.name}:{line}: {what}" for path in files for line, what in of_file(path)]


def of_file(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((node.lineno, name) for name in names if name.split(".")[0] in FORBIDDEN_MODULES)
        if isinstance(node, ast.Call):
            yield from of_call(node)


def of_call(node: ast.Call) -> Iterator[tuple[int, str]]:
    name = dotted(node.func)
    if name in FORBIDDEN_CALLS:
        yield node.lineno, name
    options = {keyword.arg: keyword.value for keyword in node.keywords}
    for option in ("shell", "trust_remote_code", "weights_only", "allow_pickle"):
        value = options.get(option)
        expected = option == "weights_only"
        if option in options and not (isinstance(value, ast.Constant) and value.value is expected):
            yield node.lineno, f"{option} is not {expected}"
    owner, _, method = name.rpartition(".")
    if method in ("from_pretrained", "from_config") and owner.split(".")[-1] in MODEL_LOADERS:
        if "trust_remote_code" not in options:
            yield node.lineno, f"{name} without trust_remote_code=False"
        is_model = owner not in ("AutoConfig", "AutoTokenizer") and method == "from_pretrained"
        if is_model and not getattr(options.get("use_safetensors"), "value", False):
            yield node.lineno, f"{name} without use_safetensors=True"


# Whether an error can be sent to the other processes of its own launch: nothing is read from anywhere.
KNOWN = "processes.py"


def test_the_package_loads_no_pickle_and_runs_no_text(repository_root: Path) -> None:
    found = findings(repository_root / "hf_era")
    found = [line for line in found if not (line.startswith(KNOWN) and line.endswith(": pickle"))]
    assert found == []


def test_the_check_sees_the_loaders_of_the_package(repository_root: Path) -> None:
    text = "".join(path.read_text() for path in (repository_root / "hf_era" / "models").glob("*.py"))
    for call in ("AutoConfig.from_pretrained(", "AutoTokenizer.from_pretrained(", "model_class.from_pretrained("):
        assert call in text


def test_models_are_loaded_in_one_place(repository_root: Path) -> None:
    """Where it is checked what they are, and nothing is printed of it."""
    texts = {path.name: path.read_text() for path in (repository_root / "hf_era").rglob("*.py")}
    trees = {name: ast.parse(text) for name, text in texts.items() if ".from_pretrained(" in text}
    calls = [(name, node) for name, tree in trees.items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert {name for name, node in calls if dotted(node.func).endswith(".from_pretrained")} == {"loading.py"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("def f():\n    import dill", "dill"),
        ("import torch\ntorch.load('x')", "torch.load"),
        ("torch.load('x', weights_only=False)", "weights_only is not True"),
        ("yaml.load(text)", "yaml.load"),
        ("yaml.load(text, Loader=yaml.Loader)", "yaml.load"),
        ("eval('1')", "eval"),
        ("exec(text)", "exec"),
        ("subprocess.run(command, shell=True)", "shell is not False"),
        ("f(trust_remote_code=True)", "trust_remote_code is not False"),
        ("f(trust_remote_code=given)", "trust_remote_code is not False"),
        ("AutoConfig.from_pretrained(x)", "AutoConfig.from_pretrained without trust_remote_code=False"),
        ("AutoTokenizer.from_pretrained(x)", "AutoTokenizer.from_pretrained without trust_remote_code=False"),
        ("model_class.from_pretrained(x, trust_remote_code=False)", "without use_safetensors=True"),
        ("AutoModelForCausalLM.from_config(c)", "without trust_remote_code=False"),
    ],
)
def test_a_planted_call_is_found(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(source)
    assert any(message in line for line in findings(tmp_path)), source


def test_a_harmless_file_has_no_finding(tmp_path: Path) -> None:
    (tmp_path / "fine.py").write_text(
        "import json, re\nre.compile('x')\nyaml.safe_load(text)\nmodel.eval()\nsubprocess.run(['ls'], shell=False)\n"
        "model_class.from_pretrained(x, use_safetensors=True, trust_remote_code=False)\n"
    )
    assert findings(tmp_path) == []
