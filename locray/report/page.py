"""A page of labelled pictures: one offline HTML file. Called by the demo."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from locray.report.figures import Box, Picture, figure, hues_of
from locray.report.html import render_template

__all__ = ["Box", "Failure", "Page", "Picture", "render"]


@dataclass(frozen=True, slots=True)
class Failure:
    """An image without labels, and why."""

    name: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Page:
    """What the page shows, from top to bottom."""

    title: str
    summary: str
    facts: Mapping[str, str]
    pictures: Sequence[Picture]
    failures: Sequence[Failure]
    query: str


def render(page: Page) -> str:
    """The page as HTML. It refers to nothing outside itself; every text in it is escaped."""
    colours = hues_of(page.pictures)
    return render_template("page.html", page=page, pictures=[figure(picture, colours) for picture in page.pictures])
