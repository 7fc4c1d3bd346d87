"""The layout: no module is imported in a circle, by name or in any hidden way; files stay short."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
FILES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((SOURCE / "normscan").rglob("*.py"))
}
# Modules that import others by a name made at run time; lint-imports can't see those.
BY_NAME = {
    "normscan.lazy",  # a package its own modules, see below
    "normscan.registry",  # every module of methods, which register themselves in it
    "normscan.datasets.preparation",  # the builder that a recipe names
    "normscan.datasets.builders",  # h5py, which may be missing
}


def nearest(name: str) -> str:
    while name not in FILES:
        name = name.rpartition(".")[0]
    return name


def imported(module: str) -> set[str]:
    """Modules that a module imports anywhere: at the top, in functions, for types."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {nearest(n) for n in names if n.split(".")[0] == "normscan"}
    return found - {module}


def with_packages(module: str) -> set[str]:
    """Importing a module runs the packages that it lies in, too."""
    found = set()
    for name in imported(module):
        while name not in ("", "normscan"):
            if not module.startswith(f"{name}."):
                found.add(name)
            name = name.rpartition(".")[0]
    return found | imported(module)


def test_no_module_is_imported_in_a_circle():
    left = {name: with_packages(name) - {name} for name in FILES}
    while True:  # take away what imports nothing that is left
        free = [name for name, needs in left.items() if not needs & left.keys()]
        if not free:
            break
        for name in free:
            del left[name]
    assert not left


def test_only_few_modules_import_by_name():
    users = {m for m, p in FILES.items() if "import_module" in p.read_text("utf-8")}
    assert users == BY_NAME


@pytest.mark.parametrize(
    "package",
    [m for m, p in FILES.items() if "lazily(" in p.read_text("utf-8") and p.stem[0] == "_"],
)
def test_a_lazy_package_says_the_same_to_types_and_at_run_time(package):
    tree = ast.parse(FILES[package].read_text("utf-8"))
    typed = {
        alias.asname: (node.module, alias.name)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    module = import_module(package)
    assert typed.keys() == set(module.__all__) - {"__version__"}
    for name, (home, attribute) in typed.items():
        assert getattr(module, name) is getattr(import_module(home), attribute)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


def test_no_file_is_longer_than_500_lines():
    lengths = {m: len(p.read_text("utf-8").splitlines()) for m, p in FILES.items()}
    assert {m: n for m, n in lengths.items() if n > 500} == {}
