"""The site's made pages: every public name has one, and each leads to what it names."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import polars
import pytest
import yaml

import pricepix as pp

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("mkdocs")


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_a_page(hooks):
    pages = hooks.reference()
    top = {name for name, _ in pages["pricepix"]}
    packages = {"bars", "build", "explore", "factor", "paper", "samples", "train", "workflow"}
    assert set(pp.__all__) - {"__version__"} <= top | packages
    pytest.importorskip("torch")
    for names in pages.values():
        for _, path in names:
            module, _, last = path.rpartition(".")
            if not hasattr(importlib.import_module(module), last):
                importlib.import_module(path)


def test_the_navigation_names_every_page():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named = set(re.findall(r"[\w-]+\.md", str(config["nav"])))
    assert named == {path.name for path in (ROOT / "docs").glob("*.md")}


@pytest.fixture(scope="module")
def gallery(hooks):
    pytest.importorskip("jupytext")
    return hooks.gallery


def test_the_overview_names_every_notebook_by_its_question(gallery):
    rows = gallery.ROW.findall((ROOT / "docs" / "gallery.md").read_text(encoding="utf-8"))
    notebooks = gallery.notebooks()
    assert len(notebooks) >= 12
    assert [(title, file) for title, file, _ in rows] == [(n.title, n.path.name) for n in notebooks]
    assert len({n.page for n in notebooks}) == len(notebooks)


def test_notebooks_ask_show_and_lead_to_pages_that_exist(gallery):
    pages = {f"../{path.name}" for path in (ROOT / "docs").glob("*.md")}
    pages |= {Path(n.page).name for n in gallery.notebooks()}
    for notebook in gallery.notebooks():
        found = notebook.read()
        assert found.cells[0].cell_type == "markdown"
        assert notebook.title.endswith("?")
        code = "\n".join(cell.source for cell in found.cells if cell.cell_type == "code")
        assert "plt.show()" in code or "contact_sheet" in code, f"{notebook.name} has no picture"
        text = "\n".join(cell.source for cell in found.cells if cell.cell_type == "markdown")
        links = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
        for target in links:
            page, _, anchor = target.partition("#")
            assert page in pages, f"{notebook.name} links to {target}"
            if anchor:
                headings = re.findall(
                    r"^#+ (.*)$", (ROOT / "docs" / Path(page).name).read_text(), flags=re.MULTILINE
                )
                slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
                assert anchor in slugs, f"{notebook.name} links to {target}"


def test_a_download_is_a_notebook_without_output_and_without_links_of_the_site(gallery):
    import nbformat

    for notebook in gallery.notebooks():
        text = gallery.downloadable(notebook)
        found = nbformat.reads(text, as_version=4)
        nbformat.validate(found)
        assert not any(cell.get("outputs") for cell in found.cells)
        assert ".md" not in "".join(cell.source for cell in found.cells if cell.cell_type == "markdown")
        assert gallery.downloadable(notebook) == text


def test_objects_keep_their_own_look_and_tables_of_polars_take_the_pages(gallery):
    import nbformat

    def shown(html):
        return gallery.shown(
            nbformat.v4.new_output("display_data", data={"text/html": html, "text/plain": ""}), "k"
        )

    ours = pp.ImageSpec.preset("jkx5")._repr_html_()
    assert "<style" in ours
    assert shown(ours).count("<style") == ours.count("<style")
    assert "<style" not in shown(polars.DataFrame({"a": [1]})._repr_html_())


SCRIPT = """# %% [markdown]
# # What is one and one?
#
# A sum, and [the pixels](../pixels.md).

# %%
import matplotlib.pyplot as plt

print("<b>1 < 2</b>")
figure, ax = plt.subplots()
ax.plot([1, 2])
plt.show()

# %%
1 + 1

# %% tags=["hide-output"]
print("hidden")
"""


@pytest.fixture
def small(gallery, tmp_path, monkeypatch):
    pytest.importorskip("IPython")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(gallery, "KEPT", tmp_path / "kept")
    path = tmp_path / "01_one_and_one.py"
    path.write_text(SCRIPT)
    return gallery.Notebook(path)


def test_a_notebook_becomes_a_page_with_what_its_cells_gave(gallery, small):
    executed = gallery.execute(small, "digest")
    page = gallery.page(small, executed)
    assert "# What is one and one?" in page
    assert "(one-and-one.ipynb)" in page
    assert "&lt;b&gt;1 &lt; 2&lt;/b&gt;" in page
    assert "<pre>2</pre>" in page
    assert "hidden" not in page.replace('print("hidden")', "")
    # One figure for light and dark: in the page's own colour, with names of its own, without rules for the whole page.
    assert page.count("<svg") == 1
    assert "currentColor" in page
    assert gallery.INK not in page
    assert "<style" not in page
    names = re.findall(r'\bid="([^"]+)"', page)
    assert names
    assert all(name.startswith("one-and-one-") for name in names)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(names)
    # HTML that an empty line cuts in two would become text.
    assert not re.search(r"<svg(?:(?!</svg>).)*\n\s*\n", page, flags=re.DOTALL)
    # The second time nothing is run: it would fail.
    kept = list(gallery.KEPT.glob("*.ipynb"))
    assert len(kept) == 1
    assert gallery.page(small, gallery.execute(small, "digest")) == page


def test_a_notebook_that_fails_or_complains_is_an_error_that_names_it(gallery, small):
    small.path.write_text(SCRIPT.replace("1 + 1", "1 / 0"))
    with pytest.raises(RuntimeError, match=r"01_one_and_one\.py, cell 2(?s:.)*ZeroDivisionError"):
        gallery.execute(small, "digest")
    small.path.write_text(SCRIPT.replace("1 + 1", "import warnings; warnings.warn('old')"))
    with pytest.raises(RuntimeError, match=r"wrote to stderr(?s:.)*old"):
        gallery.execute(small, "digest")
