"""Lower layers never import higher ones. The imports are read from the source, those inside functions too."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "hf_era"
# The layer of a sub-package, or of a module at the top.
LAYERS = {
    "routing": 0,
    "models": 1,
    "data": 1,
    "evaluation": 2,
    "training": 2,
    "reporting": 3,
    "configuration": 3,
    "configuration_parsing": 3,
    "yaml_text": 3,
    "training_section": 3,
    "environment": 4,
    "run_directory": 4,
    "run_folders": 4,
    "run_outputs": 4,
    "run_inputs": 4,
    "phases": 4,
    "phase_runner": 4,
    "evaluation_phases": 4,
    "model_inputs": 4,
    "model_evaluation": 4,
    "matrix": 4,
    "commands": 4,
    "pipeline": 4,
    "cli": 4,
    "__main__": 4,
}
# Small helpers that anyone may import; they import nothing of the package but helpers named before them.
HELPERS = (
    "checks", "suggestions", "version", "storage_errors", "files", "manifest", "memory", "stopping", "exit_codes",
    "processes",
)  # fmt: skip
# The package's own `__init__` re-exports from everywhere.
EXEMPT = ("__init__",)
# Configurations describe the layers below them; they do not reach sideways into reporting.
OWN_LAYER_ONLY_ITSELF = ("configuration", "configuration_parsing", "yaml_text", "training_section")
ROUTING_MAY_IMPORT = {"torch"}


def unit_of(path: Path, root: Path) -> str:
    """The sub-package, or the top-level module's name."""
    first = path.relative_to(root).parts[0]
    return first.removesuffix(".py")


def imported_modules(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything that a file imports, `importlib.import_module("literal")` included."""
    package = [root.name, *path.relative_to(root).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import name`: the name may be a module, and for the root it is what tells the layer.
            names = [f"{module}.{alias.name}" for alias in node.names] if module == root.name else [module]
            yield from ((node.lineno, name) for name in names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield node.lineno, argument.value


def may_import(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    if imported in HELPERS:
        return importer not in HELPERS or HELPERS.index(imported) <= HELPERS.index(importer)
    if importer in HELPERS or imported not in LAYERS:
        return False
    if importer in OWN_LAYER_ONLY_ITSELF and imported not in OWN_LAYER_ONLY_ITSELF:
        return LAYERS[imported] < LAYERS[importer]
    return LAYERS[imported] <= LAYERS[importer]


def violations(root: Path) -> list[str]:
    """One line for each forbidden import, and for each file whose layer nobody has written down."""
    found = []
    files = sorted(root.rglob("*.py"))
    assert files, f"no Python file under {root}: nothing was checked"
    for path in files:
        importer = unit_of(path, root)
        where = path.relative_to(root.parent).as_posix()
        if importer in EXEMPT:
            continue
        if importer not in LAYERS and importer not in HELPERS:
            found.append(f"{where}: `{importer}` has no layer; add it to the table in this test")
            continue
        for line, module in imported_modules(path, root):
            top, _, rest = module.partition(".")
            if top == root.name:
                imported = rest.split(".")[0]
                if not may_import(importer, imported):
                    found.append(f"{where}:{line}: {importer} imports {module}")
            elif importer == "routing" and top not in ROUTING_MAY_IMPORT and top not in sys.stdlib_module_names:
                found.append(f"{where}:{line}: routing imports {module}, which is neither torch nor standard library")
    return sorted(found)


def test_lower_layers_never_import_higher_ones(repository_root: Path) -> None:
    assert violations(repository_root / PACKAGE) == []


def test_the_check_reads_the_real_imports(repository_root: Path) -> None:
    """It sees what is known to be there: else it would pass on anything."""
    root = repository_root / PACKAGE
    seen = {(unit_of(path, root), module) for path in root.rglob("*.py") for _, module in imported_modules(path, root)}
    assert ("models", "hf_era.routing") in seen
    assert ("routing", "hf_era.suggestions") in seen
    assert ("models", "transformers") in seen
    assert len({unit for unit, _ in seen}) >= 5


def plant(root: Path, name: str, source: str) -> Path:
    """A tree with a legal file of each layer and one planted file."""
    legal = {
        "__init__.py": "from hf_era.pipeline import run_pipeline\n",
        "suggestions.py": "import difflib\nfrom hf_era.checks import x\n",
        "version.py": "",
        "checks.py": "import math\n",
        "memory.py": "import psutil\n",
        "files.py": "import os\n",
        "routing/core.py": "import math\nimport torch\nfrom hf_era.suggestions import x\nfrom .other import y\n",
        "models/core.py": "from hf_era.routing import x\nfrom transformers import y\nfrom hf_era.data import z\n",
        "training/core.py": "def f():\n    import hf_era.models.core\n",
        "configuration.py": "from hf_era.training.config import x\nfrom hf_era.configuration_parsing import y\n",
        "reporting/core.py": "from hf_era.evaluation import x\n",
        "pipeline.py": "from hf_era import reporting\nimport hf_era.configuration\n",
    }
    for path, text in {**legal, name: source}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_a_legal_tree_has_no_violation(tmp_path: Path) -> None:
    assert violations(plant(tmp_path / PACKAGE, "models/extra.py", "from hf_era.version import x\n")) == []


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("routing/bad.py", "from hf_era.models import x", "hf_era/routing/bad.py:1: routing imports hf_era.models"),
        ("models/bad.py", "import hf_era.training.trainer", "models imports hf_era.training.trainer"),
        ("data/bad.py", "from hf_era import evaluation", "data imports hf_era.evaluation"),
        ("data/bad.py", "from ..training import x", "data imports hf_era.training"),
        ("data/bad.py", "from .. import pipeline", "data imports hf_era.pipeline"),
        ("models/deep/bad.py", "from ...training import x", "models imports hf_era.training"),
        ("evaluation/bad.py", "from hf_era.configuration import x", "evaluation imports hf_era.configuration"),
        ("training/bad.py", "def f():\n    from hf_era.reporting import x", "training imports hf_era.reporting"),
        ("training/bad.py", "class A:\n    def f(self):\n        import hf_era.cli", "training imports hf_era.cli"),
        ("models/bad.py", "if TYPE_CHECKING:\n    from hf_era.training import x", "models imports hf_era.training"),
        ("models/bad.py", 'importlib.import_module("hf_era.training")', "models imports hf_era.training"),
        ("models/bad.py", "import hf_era", "models imports hf_era"),
        ("models/bad.py", "from hf_era import ExpansionConfig", "models imports hf_era.ExpansionConfig"),
        ("reporting/bad.py", "from hf_era.pipeline import x", "reporting imports hf_era.pipeline"),
        ("configuration.py", "from hf_era.reporting import x", "configuration imports hf_era.reporting"),
        ("files.py", "from hf_era.routing import x", "files imports hf_era.routing"),
        ("suggestions.py", "from hf_era.version import x", "suggestions imports hf_era.version"),
        ("checks.py", "from hf_era.suggestions import x", "checks imports hf_era.suggestions"),
        (
            "routing/bad.py",
            "import transformers.utils",
            "routing imports transformers.utils, which is neither torch nor",
        ),
        ("routing/bad.py", "def f():\n    from numpy import x", "routing imports numpy, which is neither torch nor"),
        ("elsewhere.py", "", "`elsewhere` has no layer; add it to the table in this test"),
        ("elsewhere/bad.py", "", "`elsewhere` has no layer; add it to the table in this test"),
    ],
)
def test_a_planted_violation_is_found(name: str, source: str, message: str, tmp_path: Path) -> None:
    (found,) = violations(plant(tmp_path / PACKAGE, name, source))
    assert message in found
