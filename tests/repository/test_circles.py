"""No module imports itself by a detour, not even inside a function or for type checkers only."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.repository.test_rooms import ROOMS, ROOT, files


def modules() -> dict[str, ast.Module]:
    """Every module of the rooms, by its dotted name."""
    found = {}
    for room in ROOMS:
        base = ROOT / room if room == "src/isoform" else ROOT
        for path in files(room):
            parts = ("isoform", *path.relative_to(base).with_suffix("").parts)
            name = ".".join(parts).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def graph(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Which modules each one imports. An edge goes to the module that defines the imported name.

    So a package counts only for a name that it defines itself, not for one that it passes on, nor for its submodules.
    """
    passed_on = {
        module: {alias.asname or alias.name: (source, alias.name) for source, alias in _names(tree)}
        for module, tree in trees.items()
    }

    def definer(module: str, name: str) -> str:
        seen: set[tuple[str, str]] = set()
        while (module, name) not in seen:
            seen.add((module, name))
            if f"{module}.{name}" in trees:
                return f"{module}.{name}"
            module, name = passed_on.get(module, {}).get(name, (module, name))
        return module

    edges: dict[str, set[str]] = {}
    for module, tree in trees.items():
        taken = {definer(source, alias.name) for source, alias in _names(tree)}
        whole = (n.names for n in ast.walk(tree) if isinstance(n, ast.Import))
        taken |= {alias.name for names in whole for alias in names}
        edges[module] = (taken & trees.keys()) - {module}
    return edges


def _names(tree: ast.Module) -> Iterator[tuple[str, ast.alias]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                yield node.module, alias


def circle(edges: Mapping[str, set[str]]) -> str:
    """A circle as "a imports b imports a", empty when there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return " imports ".join(reversed(error.args[1]))
    return ""


def test_no_module_imports_itself_by_a_detour() -> None:
    found = circle(graph(modules()))
    assert not found, found


def test_a_circle_is_found_wherever_its_imports_stand() -> None:
    sources = {
        "isoform": "from isoform.one import first",
        "isoform.one": "import isoform.errors\nfirst = 1\ndef later():\n    from isoform.two import second",
        "isoform.two": "if TYPE_CHECKING:\n    from isoform import first\nsecond = 2",
        "isoform.errors": "",
    }
    edges = graph({name: ast.parse(source) for name, source in sources.items()})
    assert edges["isoform.two"] == {"isoform.one"}, "the package passes the name on and does not define it"
    assert circle(edges) in (
        "isoform.one imports isoform.two imports isoform.one",
        "isoform.two imports isoform.one imports isoform.two",
    )
    edges["isoform.two"].clear()
    assert circle(edges) == ""


def test_every_module_of_the_package_is_in_the_graph() -> None:
    names = graph(modules())
    assert {"isoform", "isoform.api", "isoform.steps", "isoform.runtimes.open", "isoform.reference.rules"} <= set(names)
    assert "isoform.errors" in names["isoform.api"]
    assert Path(ROOT / "src/isoform/runtimes").is_symlink(), "the links are not followed: a module has one name"
