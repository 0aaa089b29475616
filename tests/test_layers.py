"""Lower layers never import higher ones. The imports are read from the source, those inside functions too."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "hf_era"
# The layer of a folder, or of one of the few modules at the top: it imports what is below it, and its own layer.
LAYERS = {
    "version": 0,
    "utils": 0,
    "routing": 1,
    "models": 2,
    "data": 2,
    "evaluation": 3,
    "reporting": 4,
    "training": 5,
    "methods": 6,
    "run": 7,
    "commands": 8,
    "cli": 9,
    "__main__": 10,
}
# Each knows nothing of the other: a report reads results, whatever method made them.
STRANGERS = ({"methods", "reporting"}, {"models", "data"})
# The package's own `__init__` re-exports from everywhere.
EXEMPT = ("__init__",)
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
    if imported not in LAYERS:  # the package itself: it re-exports from everywhere
        return False
    are_strangers = importer != imported and {importer, imported} in STRANGERS
    return LAYERS[imported] <= LAYERS[importer] and not are_strangers


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
        if importer not in LAYERS:
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
    assert ("routing", "hf_era.utils.checks") in seen
    assert ("models", "transformers") in seen
    assert len({unit for unit, _ in seen}) >= 5


def plant(root: Path, name: str, source: str) -> Path:
    """A tree with a legal file of each layer and one planted file."""
    legal = {
        "__init__.py": "from hf_era.run.pipeline import run_pipeline\n",
        "version.py": "",
        "utils/checks.py": "import math\nfrom hf_era.version import x\n",
        "utils/files.py": "import os\nfrom hf_era.utils.checks import x\n",
        "routing/core.py": "import math\nimport torch\nfrom hf_era.utils.checks import x\nfrom .other import y\n",
        "models/core.py": "from hf_era.routing import x\nfrom transformers import y\n",
        "evaluation/core.py": "from hf_era.models.core import x\nfrom hf_era.data import y\n",
        "training/core.py": "def f():\n    import hf_era.models.core\n",
        "methods/core.py": "from hf_era.training.config import x\n",
        "reporting/core.py": "from hf_era.evaluation import x\n",
        "run/pipeline.py": "from hf_era import reporting\nimport hf_era.methods\n",
        "cli.py": "from hf_era.commands import x\n",
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
        (
            "models/bad.py",
            "import hf_era.training.gradient_r",
            "models imports hf_era.training.gradient_r",
        ),
        ("data/bad.py", "from hf_era import evaluation", "data imports hf_era.evaluation"),
        ("data/bad.py", "from ..training import x", "data imports hf_era.training"),
        ("data/bad.py", "from .. import run", "data imports hf_era.run"),
        ("models/deep/bad.py", "from ...training import x", "models imports hf_era.training"),
        ("evaluation/bad.py", "from hf_era.run.config import x", "evaluation imports hf_era.run.config"),
        ("methods/bad.py", "from hf_era.run.config import x", "methods imports hf_era.run.config"),
        ("methods/bad.py", "from hf_era.reporting import x", "methods imports hf_era.reporting"),
        ("reporting/bad.py", "from hf_era.methods import x", "reporting imports hf_era.methods"),
        ("models/bad.py", "from hf_era.data import x", "models imports hf_era.data"),
        ("reporting/bad.py", "def f():\n    from hf_era.training import x", "reporting imports hf_era.training"),
        ("training/bad.py", "class A:\n    def f(self):\n        import hf_era.cli", "training imports hf_era.cli"),
        ("models/bad.py", "if TYPE_CHECKING:\n    from hf_era.training import x", "models imports hf_era.training"),
        ("models/bad.py", 'importlib.import_module("hf_era.training")', "models imports hf_era.training"),
        ("models/bad.py", "import hf_era", "models imports hf_era"),
        ("models/bad.py", "from hf_era import ExpansionConfig", "models imports hf_era.ExpansionConfig"),
        ("reporting/bad.py", "from hf_era.run.pipeline import x", "reporting imports hf_era.run.pipeline"),
        ("utils/bad.py", "from hf_era.routing import x", "utils imports hf_era.routing"),
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
