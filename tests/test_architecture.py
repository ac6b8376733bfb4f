"""The shape of the package: who imports whom, what loads when, what is public, whether it is documented."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pricepix

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pricepix"

# Left to right, as bars become images become a factor. A module imports from its own line and those above it,
# never from below, neither on top nor inside a function; imports for type checkers alone are free.
LAYERS = [
    {"spec", "moments", "location", "samples"},
    {"_panel_kernels", "_index_kernels", "_store_kernels"},
    {"tables", "lock", "sharing"},
    {"arrays"},
    {"panel"},
    {"render"},
    {"windows", "labels", "augment", "_reader_kernels"},
    {"chunks", "document", "commit"},
    {"images", "store", "verify", "reader", "loaded"},
    {"preview"},
    {"plan", "painter", "build", "distribute", "appending", "sources", "train", "factor", "panel_images"},
    {"lookahead"},
    {"config", "pipeline", "foreign", "demo", "cli"},
]
WRITERS = {"plan", "painter", "build", "distribute", "appending"}
FRONT = LAYERS[-1]
# Where a line of the table says too little.
ONLY = {
    "spec": set(),
    "location": set(),
    "samples": set(),
    "tables": {"location", "moments"},
    "arrays": {"moments", "tables"},
    "panel": {"_panel_kernels", "arrays", "moments", "tables"},
    "render": {"render", "spec"},
    "windows": {"_index_kernels", "panel", "render", "spec", "moments"},
    "labels": {"_index_kernels", "panel"},
    "chunks": {"render", "_store_kernels"},
}
NEVER = {
    "store": {"windows"} | WRITERS,
    "reader": {"panel", "windows", "labels"},
    "preview": {"windows", "labels"},
    "train": {"factor", "sources"} | WRITERS,
    "factor": {"sources"} | WRITERS,
    "sources": {"train", "factor"},
    **{name: {"train", "factor"} for name in WRITERS},
}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())
PARTS = {name.split(".")[1] for name in MODULES if "." in name}


def imported(path):
    """Full names of the modules of ours that a file imports when it runs."""
    found = set()

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write the module's full name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                public = pricepix._HOME.get(alias.name) if node.module == "pricepix" else None
                found.add(inner if inner in MODULES else public or node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return {name for name in found if name.partition(".")[0] == "pricepix"}


def part(module):
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("module", [name for name in MODULES if "." in name])
def test_imports_go_from_left_to_right(module):
    layer = {name: i for i, names in enumerate(LAYERS) for name in names}
    mine = part(module)
    assert mine in layer, f"pricepix.{mine} is new: say in LAYERS where it stands"
    for other in imported(MODULES[module]):
        theirs = part(other)
        if theirs in ("", mine):
            assert (
                other != "pricepix" or mine in FRONT | {"train", "factor"} or _version_only(MODULES[module])
            )
            continue
        assert layer[theirs] <= layer[mine], f"{module} imports {other}, which stands to its right"
        assert theirs in ONLY.get(mine, {theirs}), f"{module} imports {other}; it may import {ONLY[mine]}"
        assert theirs not in NEVER.get(mine, ()), f"{module} must never import {other}"
        if mine == "factor" and theirs == "train":
            assert other == "pricepix.train.models", f"{module} imports {other}: networks alone are shared"


def _version_only(path):
    """Whether all that a file takes from the package itself is its version."""
    names = [
        alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "pricepix"
        for alias in node.names
        if f"pricepix.{alias.name}" not in MODULES and alias.name not in pricepix._HOME
    ]
    return set(names) <= {"__version__"}


def test_layers_name_what_there_is():
    named = set().union(*LAYERS)
    assert sum(map(len, LAYERS)) == len(named)
    assert named | {"__main__"} >= PARTS
    assert set(ONLY) | set(NEVER) <= named


def test_kernels_import_numbers_and_nothing_else():
    for name in ("render/kernels.py", "_index_kernels.py", "_panel_kernels.py", "_store_kernels.py"):
        tree = ast.parse((PACKAGE / name).read_text())
        found = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        found |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
        allowed = {"__future__", "typing", "collections.abc", "numba", "numpy", "numpy.typing", "math"}
        ours = {n for n in found if n.startswith("pricepix")}
        assert found - ours <= allowed, name
        assert ours <= {"pricepix.render.reasons"}, name


def test_networks_know_nothing_of_the_rest():
    """factor takes them without the training loop, and so may anybody."""
    assert imported(PACKAGE / "train" / "models.py") <= {"pricepix.spec"}


def test_modules_can_each_be_imported_first():
    """No module needs another to have been imported before it: one process each would be slow, so a few."""
    firsts = ["verify", "labels", "windows", "reader", "appending", "factor", "preview", "commit"]
    code = "\n".join(
        [
            "import importlib, sys",
            f"for name in {firsts!r}:",
            "    ours = [n for n in sys.modules if n.partition('.')[0] == 'pricepix']",
            "    for loaded in ours: del sys.modules[loaded]",
            "    importlib.import_module(f'pricepix.{name}')",
        ]
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)


# ---- what loads when

HEAVY = ("torch", "dask", "distributed", "lightning", "xarray", "matplotlib", "pandas")


def loaded_after(code):
    probe = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-W", "error", "-c", probe]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return set(out.stdout.split())


def test_import_loads_nothing_that_is_not_used():
    loaded = loaded_after("import pricepix")
    assert not loaded & {*HEAVY, "zarr", "polars", "numba", "numpy", "numcodecs", "tqdm", "click", "pydantic"}


def test_a_spec_needs_the_standard_library_alone():
    loaded = loaded_after("import pricepix; pricepix.ImageSpec.preset('jkx20').digest")
    assert not loaded & {*HEAVY, "zarr", "polars", "numba", "numpy"}


def test_drawing_and_storing_load_neither_torch_nor_dask():
    names = "render_universe, open_store, Panel, WindowIndex, forward_returns, render_panel, ImageStore"
    loaded = loaded_after(f"from pricepix import {names}")
    assert not loaded & set(HEAVY)
    assert {"zarr", "polars", "numba"} <= loaded


# ---- what is public


def test_all_is_true():
    assert len(set(pricepix.__all__)) == len(pricepix.__all__)
    assert set(pricepix.__all__) == {*pricepix._HOME, *pricepix._MODULES, "__version__"}
    assert set(pricepix.__all__) <= set(dir(pricepix))
    for name in pricepix._HOME:
        thing = getattr(pricepix, name)
        assert thing is getattr(importlib.import_module(pricepix._HOME[name]), name)
    with pytest.raises(AttributeError, match="module 'pricepix' has no attribute 'render_univers'"):
        _ = pricepix.render_univers


def test_names_for_type_checkers_are_the_ones_that_load():
    """`if TYPE_CHECKING:` in __init__.py says again, for tools, what _HOME says at run time."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))
    said = {}
    for node in block.body:
        for alias in node.names:
            said[alias.asname or alias.name] = node.module
    modules_said = {name for name, module in said.items() if module == "pricepix"}
    assert modules_said == set(pricepix._MODULES)
    assert {name: said[name] for name in pricepix._HOME} == pricepix._HOME
    assert set(said) == {*pricepix._HOME, *pricepix._MODULES}


def test_version_is_the_one_of_the_package():
    import tomllib

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == pricepix.__version__
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("name", ["pricepix.render", "pricepix.train", "pricepix.factor", "pricepix.bars"])
def test_subpackages_list_what_they_have(name):
    needed = {"pricepix.train": "torch"}
    if name in needed:
        pytest.importorskip(needed[name])
    module = importlib.import_module(name)
    for public in module.__all__:
        assert getattr(module, public) is not None
    assert len(set(module.__all__)) == len(module.__all__)


# ---- documentation of what is public


def public_things():
    """Qualified name and object of every public function, class and method at the top of the package."""
    for name in sorted(pricepix._HOME):
        thing = getattr(pricepix, name)
        if inspect.isclass(thing):
            yield name, thing
            for attribute, member in vars(thing).items():
                if attribute.startswith("_") or not callable(getattr(thing, attribute)):
                    continue
                if isinstance(member, (classmethod, staticmethod)) or inspect.isfunction(member):
                    yield f"{name}.{attribute}", getattr(thing, attribute)
        elif callable(thing):
            yield name, thing


def section(doc, title):
    """Names that the entries of a numpydoc section define, None if there is no such section."""
    lines = doc.splitlines()
    for i in range(len(lines) - 1):
        if lines[i].strip() == title and set(lines[i + 1].strip()) == {"-"}:
            names = []
            for line in lines[i + 2 :]:
                if re.fullmatch(r"-{3,}", line.strip()):
                    names.pop()
                    break
                if line and not line[0].isspace():
                    names += [n.strip().lstrip("*") for n in line.partition(":")[0].split(",")]
            return [n for n in names if n]
    return None


@pytest.mark.parametrize(
    ("name", "thing"), list(public_things()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_docstrings_name_every_parameter(name, thing):
    doc = inspect.getdoc(thing)
    assert doc, f"{name} has no docstring"
    assert doc.splitlines()[0].rstrip().endswith("."), f"{name}: the first line is a sentence"
    if inspect.isclass(thing):
        return
    parameters = [p for p in inspect.signature(thing).parameters if p not in ("self", "cls")]
    described = section(doc, "Parameters")
    if described is None:
        assert len(parameters) <= 2, f"{name} takes {parameters} and describes none of them"
    else:
        assert len(set(described)) == len(described)
        assert set(described) == set(parameters), f"{name} takes {parameters}, its docstring has {described}"


def test_parts_of_a_docstring_are_found():
    doc = "Say.\n\nParameters\n----------\na, b : int\n    Two.\n*rest\n    More.\n\nReturns\n-------\nint\n"
    assert section(doc, "Parameters") == ["a", "b", "rest"]
    assert section(doc, "Returns") == ["int"]
    assert section(doc, "Raises") is None


@pytest.mark.parametrize("module", list(MODULES))
def test_every_module_says_what_it_is(module):
    doc = ast.get_docstring(ast.parse(MODULES[module].read_text()))
    assert doc
    assert doc.splitlines()[0].endswith((".", ":"))


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if ">>> " in path.read_text()])
def test_examples_in_docstrings(module):
    if module.startswith("pricepix.train"):
        pytest.importorskip("torch")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, tried = doctest.testmod(importlib.import_module(module), optionflags=flags)
    assert tried
    assert not failed


# ---- what no file says

TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".cfg", ".txt", ""}
FORBIDDEN = [
    (re.compile(r"(?<![\w.])/(work|home|root|Users|mnt)/\w"), "a path of one machine"),
    (re.compile(r"\.to_pickle|pickle\.load\(|yaml\.load\(|weights_only=False"), "unsafe loading"),
    (re.compile("[\U0001f300-\U0001faff\u2600-\u27bf]"), "an emoji"),
]


def written_files():
    for folder in ("pricepix", "tests", "benchmarks", "docs", "examples", ".ci"):
        yield from (p for p in sorted((ROOT / folder).rglob("*")) if p.is_file() and p.suffix in TEXT)
    yield from (p for p in sorted(ROOT.iterdir()) if p.is_file() and p.suffix in TEXT)


def test_no_file_names_a_machine_or_loads_what_it_should_not():
    found = []
    for path in written_files():
        if "__pycache__" in path.parts or path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found += [f"{path.relative_to(ROOT)}:{number}: {what}" for p, what in FORBIDDEN if p.search(line)]
    assert not found, "\n".join(found)
