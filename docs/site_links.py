"""A hook of `make docs`: a link that leads out of docs/ is the file's name on the site, which has pages alone."""

import re

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)\s]+)\)")


def on_page_markdown(markdown, **_):
    """A page as it goes to the site."""
    return OUTSIDE.sub(r"\1 (`\2` in the checkout)", markdown)
