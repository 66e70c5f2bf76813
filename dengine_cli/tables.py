"""Rows of text in columns. Knows nothing about what is in them."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Rows of text in aligned columns: the first to the left, the others, when all are numbers, to the right."""
    every = [list(header), *map(list, rows)] if header else [list(row) for row in rows]
    widths = [max(len(row[i]) for row in every) for i in range(len(every[0]))] if every else []
    right = [i > 0 and all(_is_number(row[i]) for row in rows) for i in range(len(widths))]
    lines = []
    for row in every:
        cells = [
            cell.rjust(width) if at_right else cell.ljust(width)
            for cell, width, at_right in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace(",", "").removeprefix("-").removesuffix("%").isdigit()
