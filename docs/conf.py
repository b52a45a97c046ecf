"""Configuration of the site: ``sphinx-build -W -b html docs OUT``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "lit_ft"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "pages"]
exclude_patterns = ["_ext"]
myst_heading_anchors = 4

nitpicky = True
# Names of other libraries lead nowhere, as nothing is fetched for them; nor do those that are not public.
nitpick_ignore_regex = [(r"py:.*", r"(?!lit_ft\.).*|lit_ft\.\w+\..*")]
default_role = "py:obj"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = project
html_show_copyright = False
html_static_path = ["_ext/static"]
html_css_files = ["site.css"]
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
