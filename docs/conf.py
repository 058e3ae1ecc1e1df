"""The site, made by `make site`. Its source is the repository's root, so that a link means the same on GitHub."""

import sys
from pathlib import Path

import matplotlib

sys.path.insert(0, str(Path(__file__).parent.parent))

project = "ntps"
author = "The ntps authors"
project_copyright = author
root_doc = "docs/index"
include_patterns = ["docs/**", "notebooks/**"]
exclude_patterns = [".*", "build", "notebooks/solutions"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "tools.site"]

nb_execution_mode = "off"  # the stored outputs
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 6

default_role = "code"
add_module_names = False
autodoc_member_order = "bysource"
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = "Next Token Perception Score"
html_favicon = "_static/icon.svg"
html_static_path = ["_static", "../build/static", f"{matplotlib.get_data_path()}/fonts/ttf/STIXGeneral.ttf"]
html_extra_path = ["_root"]
html_math_renderer = "mathml"
html_context = {"default_mode": "light"}  # figures and panels are drawn on white
html_theme_options = {
    "navbar_persistent": [],
    "show_navbar_depth": 1,
}
