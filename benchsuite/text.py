"""Text from outside, such as that of a record or the name of a file, fit to be shown."""

from __future__ import annotations


def clean(text: str) -> str:
    """`text` in one line: white space of any kind is a space, and what no terminal or document can show is a question mark
    (control characters, marks of direction, bytes of a name that are not UTF-8)."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)
