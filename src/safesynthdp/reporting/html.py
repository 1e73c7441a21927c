"""From a Page to one HTML file that runs nothing and fetches nothing.

Here: the Jinja environment and its rules. Elsewhere: the template and the style sheet (templates/), the values
(layout.py).

Guarantee:
    Every value is made visible (wording.visible) and then escaped, whatever the template says; SVG from figures.py is
    the only exception. A Content-Security-Policy that forbids scripts and connections is the second wall.
"""

from pathlib import Path

from safesynthdp.reporting.layout import Page
from safesynthdp.reporting.wording import NOT_STATED, visible

TEMPLATES = Path(__file__).parent / "templates"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render(page: Page) -> str:
    """Return the whole page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,  # by file ending, report.html.j2 would not be escaped
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(page=page, style=style, policy=POLICY)


def _finalize(value: object) -> object:
    from markupsafe import Markup

    if isinstance(value, Markup):
        return value
    return NOT_STATED if value is None else visible(value) if isinstance(value, str) else value
