"""The page of the demo: labelled pictures, failures, and a query of the table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from locray.report.page import Picture, hues_of, picture_values, render_template


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that could not be labelled, with the reason."""

    name: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class DemoPage:
    """Content of the page, from top to bottom."""

    title: str
    summary: str
    facts: Mapping[str, str]
    pictures: Sequence[Picture]
    failures: Sequence[Failure]
    query: str


def render_demo_page(page: DemoPage) -> str:
    """Returns the page as HTML."""
    hue_of_label = hues_of(page.pictures)
    pictures = [picture_values(picture, hue_of_label) for picture in page.pictures]
    return render_template("demo.html", page=page, pictures=pictures)
