"""Settings of the documentation site; `make docs` builds it."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

from exml_fast import __version__

project, author, release = "exml_fast", "The authors of exml_fast", __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
root_doc = "index"
html_theme = "furo"
html_title = f"exml_fast {release}"
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "imported-members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
# Avalanche is not installed with the extra docs.
autodoc_mock_imports = ["avalanche"]

# Pages of the site whose text is a file of the repository's root.
ROOT_PAGES = {"index": "README.md", "contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
LINK = re.compile(r"(\]\()(?!https?:|#|mailto:)([^)#\s]+)")
ROOT = Path(__file__).resolve().parents[1]


def _of_the_site(target: str) -> str:
    """A link of a file in the root, as a link of a page in docs/."""
    return target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"


def _page_of(target: str) -> str:
    """The page that shows a file of the root, or the target as it is."""
    named = {f"../{file}": f"{page}.md" for page, file in ROOT_PAGES.items()}
    return named.get(target, target)


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the text of a file of the root into its page, and make links lead to pages of the site."""
    if page in ROOT_PAGES:
        text = (ROOT / ROOT_PAGES[page]).read_text(encoding="utf-8")
        text = LINK.sub(lambda found: found[1] + _of_the_site(found[2]), text)
        source[0] = f"{text}\n{source[0]}"
    source[0] = LINK.sub(lambda found: found[1] + _page_of(found[2]), source[0])


def _run_notebooks(app: Sphinx) -> None:
    """Execute the notebooks, and write each with its outputs as a page beside it."""
    sys.path.insert(0, str(Path(__file__).parent))
    from notebook_pages import write_page

    for notebook in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        write_page(notebook)


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", _run_notebooks)
    app.connect("source-read", _read)
