"""Text from outside, such as that of a record or the name of a file, fit to be shown."""

from __future__ import annotations

import re


def clean(text: str) -> str:
    """`text` in one line: white space of any kind is a space, and what no terminal or document can show is a question mark
    (control characters, marks of direction, bytes of a name that are not UTF-8)."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


MARKDOWN = re.compile(
    r"""
    ^\ *(?=[#>=~\[] | [-+](?!\d) | ```)         # what would begin a heading, a quotation, a list, a reference or a block of code
    | ^\d+(?=[.)](\s|$))                        # or a numbered list
    | (?=[\\|*] | ~~ | \](?=\() | (?<!\w)_ | _(?!\w))
    """,
    re.VERBOSE,
)


def markdown_text(text: str) -> str:
    """Plain text in Markdown: no mark-up but code in backticks, no HTML, no cell of a table."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", MARKDOWN.sub(r"\g<0>\\", text))
