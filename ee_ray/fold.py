"""Text for terminals: long lines folded at words, where a width is known; whole where a script reads them."""

import os
import shutil
import sys
import textwrap


def width() -> int | None:
    """Columns to fold at: of COLUMNS, or of the terminal; None where there is neither."""
    if not (os.environ.get("COLUMNS", "").isdigit() or sys.stdout.isatty()):
        return None
    return max(20, shutil.get_terminal_size().columns)


def fold(text: str, indent: int = 2) -> str:
    """The text with every line that is too long folded at spaces, its further lines indented; words are never cut."""
    columns = width()
    if columns is None:
        return text

    def one(line: str) -> str:
        if len(line) <= columns:
            return line
        return textwrap.fill(line, columns, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)  # fmt: skip

    return "\n".join(map(one, text.split("\n")))
