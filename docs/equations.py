"""Hook of MkDocs: equations between dollar signs become MathML, which browsers show without any script."""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

CODE_OR_MATH = re.compile(r"(?P<code>```.*?```|`[^`\n]*`)|\$\$(?P<block>[^$]+)\$\$|\$(?P<inline>[^$\n]+)\$", re.DOTALL)
MARKDOWN = str.maketrans({mark: f"&#{ord(mark)};" for mark in "|_*`\\"})
"""What Markdown would read as its own within a table or a paragraph."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page's text with its equations converted; what is code stays."""
    return CODE_OR_MATH.sub(_convert, markdown)


def _convert(found: re.Match[str]) -> str:
    if found["code"]:
        return found[0]
    block = found["block"]
    equation = convert(block or found["inline"], display="block" if block else "inline").translate(MARKDOWN)
    # Markdown takes an equation at the beginning of a line for a paragraph of its own
    return equation if block else f"<span>{equation}</span>"
