"""From a template to an offline page. Called by the pages.

A page's template extends `base.html`, which holds the style, and draws with the macros of `parts.html`.
"""

from typing import Any

import jinja2


def render_template(name: str, **values: Any) -> str:
    """A template of this folder as HTML. Every text in it is escaped; a value that it lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("locray.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**values)
