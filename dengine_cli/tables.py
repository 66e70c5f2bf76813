"""Rows of text in columns. Knows nothing about what is in them."""

from collections.abc import Sequence

_BETWEEN = "  "


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = (), width: int | None = None) -> str:
    """Rows of text in aligned columns: the first to the left, the others, when all are numbers, to the right.

    Where they do not fit into `width`, the table goes on below itself, with the first column again.

    >>> print(table([("rbc", "1234", "7"), ("wbc", "9", "12")], ("class", "boxes", "images"), width=14))
    class  boxes
    rbc     1234
    wbc        9
    <BLANKLINE>
    class  images
    rbc         7
    wbc        12
    """
    every = [list(header), *map(list, rows)] if header else [list(row) for row in rows]
    columns = list(zip(*every, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [i > 0 and all(_is_number(row[i]) for row in rows) for i in range(len(widths))]
    cells = [
        [cell.rjust(size) if at_right else cell.ljust(size) for cell in column]
        for column, size, at_right in zip(columns, widths, right, strict=True)
    ]
    parts = ["\n".join(_BETWEEN.join(row).rstrip() for row in zip(*part, strict=True)) for part in _parts(cells, width)]
    return "\n\n".join(parts)


def _parts(columns: Sequence[list[str]], width: int | None) -> list[list[list[str]]]:
    """The columns, in groups that fit, each behind the first column."""
    parts = [list(columns[:2])]
    for column in columns[2:]:
        if width is not None and len(_BETWEEN.join(one[0] for one in (*parts[-1], column))) > width:
            parts.append([columns[0]])
        parts[-1].append(column)
    return parts


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace(",", "").removeprefix("-").removesuffix("%").isdigit()
