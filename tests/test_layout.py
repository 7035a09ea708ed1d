"""The layout holds: imports go down the layers, files stay small, and there is no ``utils``."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "astrolabe"
FILES = sorted(SOURCE.rglob("*.py"))

LAYERS = {
    **dict.fromkeys(["words"], 0),
    **dict.fromkeys(["types"], 1),
    **dict.fromkeys(["flow", "runtime"], 2),
    **dict.fromkeys(["models"], 3),
    **dict.fromkeys(["shapes"], 4),
    **dict.fromkeys(["data", "rewards"], 5),
    **dict.fromkeys(["rollout", "rl"], 6),
    **dict.fromkeys(["experiment"], 7),
    **dict.fromkeys(["assembly"], 8),
    **dict.fromkeys(["runs", "trainer"], 9),
    **dict.fromkeys(["training", "generate", "evaluation", "export", "doctor", "plan"], 10),
    **dict.fromkeys(["pretrain", "report", "judging", "recipes"], 11),
    **dict.fromkeys(["commands"], 12),
    **dict.fromkeys(["api", "cli"], 13),
    **dict.fromkeys(["__main__"], 14),
}
MAX_LINES = 400
DISTRIBUTIONS = {
    "PIL": "pillow", "yaml": "pyyaml", "annotated_types": "annotated-types", "huggingface_hub": "huggingface-hub",
}  # fmt: skip


def imports(source: str, path: str) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of every import in ``source``, wherever it stands.

    ``path`` is the file's place under ``src``, ``astrolabe/rl/nft.py``; ``from a import b`` gives ``a.b``.
    """
    package = ["", *Path(path).parts[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[1 : len(package) - node.level + 1] if node.level else []
            stem = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)


def package_of(path: str) -> str:
    """``astrolabe/rl/nft.py`` and ``astrolabe/training.py`` are in ``rl`` and ``training``; ``__init__`` is ``""``."""
    package = Path(path).parts[1].removesuffix(".py")
    return "" if package == "__init__" else package


def layout_faults(source: str, path: str) -> list[str]:
    """What in ``source`` breaks the layout, one line each."""
    package = package_of(path)
    faults = [f"{path}: the package {package!r} has no layer; give it one"] if package and package not in LAYERS else []
    if len(source.splitlines()) > MAX_LINES:
        faults.append(f"{path}: {len(source.splitlines())} lines, over {MAX_LINES}")
    if "utils" in {part.removesuffix(".py") for part in Path(path).parts}:
        faults.append(f"{path}: there is no utils; put the code where its idea lives")
    for line, name in imports(source, path):
        fault = import_fault(package, name)
        if fault:
            faults.append(f"{path}:{line}: {fault}")
    return faults


def import_fault(package: str, name: str) -> str | None:
    """Why ``package`` may not import ``name``; None when it may."""
    top, _, rest = name.partition(".")
    if package == "" and top not in ("__future__", "typing") and name != "astrolabe.api":
        return f"astrolabe/__init__.py imports nothing, not {name}"
    if top == "torchvision":
        return "torchvision is not among our dependencies"
    if top != "astrolabe" or rest == "__version__":
        return None
    target = rest.split(".")[0]
    if target == package:
        return None
    if package == "":
        return None
    if target not in LAYERS:
        return f"{name} is in no package of this project"
    if target == "recipes" and package != "commands":
        return "only the command line imports recipes; take a configuration as an argument"
    if LAYERS[target] >= LAYERS.get(package, -1):
        return f"{package} (layer {LAYERS.get(package)}) imports {target} (layer {LAYERS[target]}): imports go down"
    return None


def undeclared(source: str, path: str, dependencies: set[str]) -> list[str]:
    """Imports of ``source`` that are neither Python's, nor ours, nor in ``dependencies``; for typing only, all may be.

    An import under ``if TYPE_CHECKING`` or in a ``try`` needs no declaration: it never runs, or may fail.
    """
    tree = ast.parse(source)
    excused = [
        range(node.lineno, (node.end_lineno or node.lineno) + 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ]
    faults = []
    for line, name in imports(source, path):
        top = name.split(".")[0]
        known = top == "astrolabe" or top in sys.stdlib_module_names
        if not known and DISTRIBUTIONS.get(top, top) not in dependencies and not any(line in span for span in excused):
            faults.append(f"{path}:{line}: {top} is not among the dependencies in pyproject.toml")
    return faults


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {re.split(r"[<>=\[ ]", line)[0] for line in project["dependencies"]}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_every_file_keeps_the_layout(file: Path):
    path = str(file.relative_to(SOURCE.parent))
    source = file.read_text(encoding="utf-8")
    assert layout_faults(source, path) + undeclared(source, path, declared()) == []


@pytest.mark.parametrize(
    ("path", "source", "said"),
    [
        ("astrolabe/rl/nft.py", "from astrolabe.rollout.videos import Sampler", "imports go down"),
        ("astrolabe/rollout/videos.py", "import astrolabe.rl.nft", "imports go down"),
        ("astrolabe/rollout/videos.py", "from astrolabe import rl", "imports go down"),
        ("astrolabe/rollout/videos.py", "from .. import rl", "imports go down"),
        ("astrolabe/models/wan/rope.py", "from ...shapes.world import draw", "imports go down"),
        ("astrolabe/flow.py", "from .runtime import errors", "imports go down"),
        ("astrolabe/flow.py", "def f():\n    from astrolabe.models import lora", "imports go down"),
        ("astrolabe/types.py", "if TYPE_CHECKING:\n    from astrolabe.models.base import Generator", "imports go down"),
        ("astrolabe/evaluation/suites.py", "from astrolabe.report import html", "imports go down"),
        ("astrolabe/training.py", "from astrolabe.generate import generate", "imports go down"),
        ("astrolabe/recipes/shapes.py", "from astrolabe.cli import main", "imports go down"),
        ("astrolabe/training.py", "from astrolabe.recipes import shapes", "only the command line"),
        ("astrolabe/__main__.py", "from astrolabe.recipes import shapes", "only the command line"),
        ("astrolabe/cli.py", "from astrolabe.attic import box", "in no package of this project"),
        ("astrolabe/attic/box.py", "", "the package 'attic' has no layer"),
        ("astrolabe/models/utils.py", "", "there is no utils"),
        ("astrolabe/data/utils/lists.py", "", "there is no utils"),
        ("astrolabe/data/video.py", "from torchvision.io import read_video", "torchvision"),
        ("astrolabe/data/video.py", "import torchvision.transforms as T", "torchvision"),
        ("astrolabe/__init__.py", "from astrolabe.types import Prompts", "imports nothing"),
        ("astrolabe/__init__.py", "import torch", "imports nothing"),
        ("astrolabe/flow.py", "\n" * (MAX_LINES + 1), "401 lines, over 400"),
    ],
)
def test_a_breach_of_the_layout_is_found(path: str, source: str, said: str):
    faults = layout_faults(source, path)
    assert len(faults) == 1 and said in faults[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("astrolabe/rl/nft.py", "from astrolabe.rl.anchor import anchored\nfrom . import anchor\nimport torch"),
        ("astrolabe/rl/nft.py", "from ..types import Scores\nfrom astrolabe.flow import to_clean"),
        ("astrolabe/models/wan/rope.py", "from ..cache import Cache\nfrom . import text"),
        ("astrolabe/cli.py", "from astrolabe import __version__, commands"),
        ("astrolabe/commands/train.py", "from astrolabe import training\nfrom astrolabe.recipes import shapes"),
        ("astrolabe/runtime/__init__.py", "from .errors import UserError"),
        ("astrolabe/flow.py", "\n" * MAX_LINES),
        ("astrolabe/__init__.py", "from __future__ import annotations\n__version__ = '1'"),
    ],
)
def test_what_keeps_the_layout_passes(path: str, source: str):
    assert layout_faults(source, path) == []


def test_an_undeclared_dependency_is_found():
    path = "astrolabe/flow.py"
    assert undeclared("import einops", path, {"torch"}) == [
        "astrolabe/flow.py:1: einops is not among the dependencies in pyproject.toml"
    ]
    fine = "import math\nimport torch\nimport yaml\nif TYPE_CHECKING:\n    import jaxtyping\n"
    fine += "try:\n    import wandb\nexcept ImportError:\n    pass\n"
    assert undeclared(fine, path, {"torch", "pyyaml"}) == []


def test_the_tables_show_every_package_in_its_layer() -> None:
    table = re.findall(r"^\| (\d+) \| (`.*?) \|", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"), re.MULTILINE)
    shown = {name: int(layer) for layer, names in table for name in re.findall(r"`(\w+)(?:\.py|/)`", names)}
    assert shown == {name: layer for name, layer in LAYERS.items() if name != "__main__"}
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("\nsrc/astrolabe/\n")[2].partition("```")[0]
    assert not [name for name in shown if not re.search(rf"\b{name}(\.py|/)", tree)]
