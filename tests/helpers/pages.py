"""What every page must be: whole, without scripts, and without references to anything else."""

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "wbr", "link", "br"}


class Checker(HTMLParser):
    """Collects tags, text, links and identifiers, and sees that every tag is closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.links, self.ids, self.text = [], [], [], [], ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.links += [attributes[name] for name in ("href", "src") if name in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def check_page(path, *, beside=()) -> Checker:
    """Read a page that is whole, runs no script and refers to nothing but itself and the files `beside` it."""
    page = path.read_text(encoding="utf-8")
    checker = Checker(page)
    assert "script" not in checker.tags
    assert all(link.startswith(("data:image/png;base64,", "#")) or link in beside for link in checker.links)
    assert not re.search(r"https?:|url\(|@import", page)
    return checker
