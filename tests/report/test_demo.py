"""The page of the demo: offline, escaped, boxes at their place."""

import html.parser

import numpy as np

from locray.report.demo import DemoPage, Failure, render_demo_page
from locray.report.page import Picture, PictureBox


def page() -> str:
    image = np.full((40, 60, 3), 200, dtype=np.uint8)
    return render_demo_page(
        DemoPage(
            title="t",
            summary="s",
            facts={"images": "1"},
            pictures=[Picture("<b>.jpg", image, (PictureBox("disc", 0.987, (1.0, 2.0, 31.0, 22.0)),))],
            failures=[Failure("odd & <i>.jpg", "corrupt", "bad <data>")],
            query="print('<x>')",
        )
    )


class Elements(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_is_offline() -> None:
    elements = Elements()
    elements.feed(page())
    links = [value for _, attributes in elements.found for name, value in attributes.items() if name in {"src", "href"}]
    assert len(links) == 1
    assert str(links[0]).startswith("data:image/jpeg;base64,")


def test_boxes_are_drawn_in_the_pixels_of_the_picture() -> None:
    elements = Elements()
    elements.feed(page())
    (rectangle,) = [attributes for tag, attributes in elements.found if tag == "rect"]
    assert [float(str(rectangle[name])) for name in ("x", "y", "width", "height")] == [1, 2, 30, 20]
    (frame,) = [attributes["viewbox"] for tag, attributes in elements.found if tag == "svg"]
    assert frame == "0 0 60 40"


def test_names_and_messages_are_escaped() -> None:
    text = page()
    assert "&lt;b&gt;.jpg" in text
    assert "bad &lt;data&gt;" in text
    assert "<i>.jpg" not in text
