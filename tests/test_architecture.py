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

# One rank a package, from the ground up. A module imports from its own package and from lower ranks, at the top of
# the file, inside a function or for type checkers alone: there are no exceptions.
RANK = {
    name: rank
    for rank, names in enumerate(
        [
            "_version _checks",
            "location",
            "bars",
            "spec",
            "render samples",
            "windows",
            "images",
            "store",
            "build train preview",
            "factor",
            "workflow paper",
            "explore",
            "cli __init__",
            "__main__",
        ]
    )
    for name in names.split()
}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def imports(path):
    """Full names of the modules of ours that a file imports, wherever in it, with their lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "pricepix":
                    yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write the module's full name"
            if node.module.partition(".")[0] == "pricepix":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield (inner if inner in MODULES else node.module), node.lineno


def package(module):
    """The name below ``pricepix`` that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def test_every_name_at_the_top_has_a_rank():
    at_the_top = {package(module) for module in MODULES}
    assert at_the_top == set(RANK)
    # Python gives the first two their names. The plan foresees two more rooms for what the library is to do next.
    assert len(at_the_top - {"__init__", "__main__", "paper", "explore"}) <= 16


def test_imports_go_to_a_lower_rank():
    climbs = [
        f"{path.relative_to(ROOT)}:{line} imports {other}"
        for module, path in MODULES.items()
        for other, line in imports(path)
        if package(other) != package(module) and RANK[package(other)] >= RANK[package(module)]
    ]
    assert not climbs, "\n".join(climbs)


def test_no_modules_import_each_other_in_a_circle():
    needs = {module: {other for other, _ in imports(path)} - {module} for module, path in MODULES.items()}
    done, path = set(), []

    def visit(module):
        assert module not in path, "a circle: " + " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for other in sorted(needs[module]):
            visit(other)
        path.pop()
        done.add(module)

    for module in needs:
        visit(module)


def test_factor_shares_the_networks_of_train_and_not_its_loop():
    shared = {"pricepix.train.models", "pricepix.train.modules", "pricepix.train.checkpoints"}
    # What runs networks, which training shares.
    shared |= {
        f"pricepix.train.engines.{name}" for name in ("torch_engine", "onnx_engines", "exported", "quantised")
    }
    for module, path in MODULES.items():
        if package(module) == "factor":
            taken = {other for other, _ in imports(path) if package(other) == "train"}
            assert taken <= shared, f"{module} imports {taken - shared}"


def test_kernels_import_numbers_and_nothing_else():
    for name in (
        "render/kernels.py",
        "render/rules.py",
        "render/bits.py",
        "render/window_bars.py",
        "windows/kernels.py",
        "bars/kernels.py",
        "bars/hashing.py",
        "bars/market_kernels.py",
        "store/kernels.py",
        "factor/evaluation/kernels.py",
    ):
        tree = ast.parse((PACKAGE / name).read_text())
        found = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        found |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
        allowed = {"__future__", "typing", "collections.abc", "numba", "numpy", "numpy.typing", "math"}
        ours = {n for n in found if n.startswith("pricepix")}
        assert found - ours <= allowed, name
        kernels = {"reasons", "rules", "bits", "window_bars"}
        allowed = {f"pricepix.render.{kernel}" for kernel in kernels} | {"pricepix.bars.kernels"}
        assert ours <= allowed, name


def test_networks_know_nothing_of_the_rest():
    """factor takes them without the training loop, and so may anybody."""
    taken = {other for other, _ in imports(PACKAGE / "train" / "models.py")}
    assert taken <= {"pricepix.spec", "pricepix._checks", "pricepix.train.network_spec"}


# Modules that their project calls private though their names do not begin with an underscore.
PRIVATE = (
    "numba.core",
    "numpy.core",
    "zarr.core",
    "lightning.fabric.utilities",
    "lightning.pytorch.utilities",
)
# Where there is no public way, behind one wall each; the files say why.
# numba.core.event is in Numba's reference manual: it tells when a function begins to be compiled.
WALLS = {
    "bars/compiling.py": "numba.core.event",
    "bars/uncompiled.py": "numba.core.event",
    "render/simd.py": "numba.core",
    "location.py": "zarr.core.sync",
    "train/engines/folded.py": "torch.ops.mkldnn",
    "workflow/warm_up.py": "numba.core.event",
}


def names_of_dependencies(tree):
    """Full dotted names of what a file takes from other projects, as imports and as attributes of modules."""
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
                modules[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno
                modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        parts, inner = [], node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if parts and isinstance(inner, ast.Name) and inner.id in modules:
            yield ".".join([modules[inner.id], *reversed(parts)]), node.lineno


def is_private(name):
    """Whether a dotted name of another project is not meant for us."""
    if name.partition(".")[0] in {*sys.stdlib_module_names, "pricepix"}:
        return False
    if any(name == module or name.startswith(f"{module}.") for module in PRIVATE):
        return True
    return any(re.match(r"_(?!_)", part) for part in name.split("."))


def test_no_private_module_of_a_dependency():
    found = []
    for path in MODULES.values():
        where = str(path.relative_to(PACKAGE))
        for name, line in names_of_dependencies(ast.parse(path.read_text())):
            wall = WALLS.get(where)
            if is_private(name) and not (wall and (name == wall or name.startswith(f"{wall}."))):
                found.append(f"{where}:{line} uses {name}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("code", "private"),
    [
        ("from zarr.core.buffer import cpu", True),
        ("from zarr.buffer import cpu", False),
        ("import zarr\nzarr.core.sync.sync(x)", True),
        ("import numpy as np\nnp._core.multiarray", True),
        ("from numcodecs import _shuffle", True),
        ("from numcodecs._shuffle import x", True),
        ("import lightning.pytorch as lightning\nlightning.utilities.rank_zero_only", True),
        ("import zarr\nzarr.__version__", False),
        ("import numba\nnumba.njit(cache=True)", False),
    ],
)
def test_private_names_are_found(code, private):
    assert any(is_private(name) for name, _ in names_of_dependencies(ast.parse(code))) == private


def test_modules_can_each_be_imported_first():
    """No module needs another to have been imported before it: one process each would be slow, so a few."""
    firsts = ["store.verify", "windows.labels", "images.batches", "build.append", "factor", "preview"]
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
    assert set(pricepix.__all__) <= set(dir(pricepix))
    for name in pricepix.__all__:
        assert getattr(pricepix, name) is not None
    with pytest.raises(AttributeError, match="render_univers"):
        _ = pricepix.render_univers


def test_version_is_the_one_of_the_package():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    written = (ROOT / project["tool"]["hatch"]["version"]["path"]).read_text()
    assert f'__version__ = "{pricepix.__version__}"' in written
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
    for name in sorted(pricepix.__all__):
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


# Users call these with keywords; what they share with one another they name alike.
MANY_PARAMETERS = {
    "render_universe", "Panel.from_table", "Panel.from_arrays", "PanelImages.__init__", "fit",
    "evaluate", "simulate",
}  # fmt: skip
MOST_PARAMETERS = 12


def test_no_function_takes_many_parameters():
    """What belongs together is handed on as one object, to compiled kernels too."""
    found = {}
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text())
        owners = {id(f): f"{c.name}." for c in ast.walk(tree) if isinstance(c, ast.ClassDef) for f in c.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                a = node.args
                names = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
                count = sum(name.arg not in ("self", "cls") for name in names)
                if count > MOST_PARAMETERS:
                    found[f"{owners.get(id(node), '')}{node.name}"] = f"{module}: {count} parameters"
    assert found.keys() <= MANY_PARAMETERS, found


@pytest.mark.parametrize(
    ("maker", "like", "own"),
    [
        (
            pricepix.Panel.from_arrays, pricepix.Panel.from_table,
            {"open", "high", "low", "close", "volume", "instruments", "time", "intervals", "fields"},
        ),
        (pricepix.PanelImages, pricepix.render_universe, {"threads"}),
    ],
)  # fmt: skip
def test_ways_into_the_same_thing_take_the_same_keywords(maker, like, own):
    """Arrays are read as tables are, and images drawn on demand are chosen as those of a store are."""
    parameters, others = inspect.signature(maker).parameters, inspect.signature(like).parameters
    shared = parameters.keys() - own
    assert shared <= others.keys()
    assert {name: parameters[name].default for name in shared} == {
        name: others[name].default for name in shared
    }


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

TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".cfg", ".txt", ".j2", ".css", ""}
FORBIDDEN = [
    (re.compile(r"(?<![\w.])/(work|home|root|Users|mnt)/\w"), "a path of one machine"),
    (re.compile(r"\.to_pickle|pickle\.load\(|yaml\.load\(|weights_only=False"), "unsafe loading"),
    (re.compile("[\U0001f300-\U0001faff\u2600-\u27bf]"), "an emoji"),
]


def written_files():
    for folder in ("pricepix", "tests", "benchmarks", "docs", "examples", ".ci"):
        yield from (p for p in sorted((ROOT / folder).rglob("*")) if p.is_file() and p.suffix in TEXT)
    # In a worktree .git is a file that says where the repository is; `make coverage` leaves a data base.
    top = (p for p in sorted(ROOT.iterdir()) if p.is_file() and p.name not in (".git", ".coverage"))
    yield from (p for p in top if p.suffix in TEXT)


def test_no_file_names_a_machine_or_loads_what_it_should_not():
    found = []
    for path in written_files():
        if "__pycache__" in path.parts or path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found += [f"{path.relative_to(ROOT)}:{number}: {what}" for p, what in FORBIDDEN if p.search(line)]
    assert not found, "\n".join(found)
