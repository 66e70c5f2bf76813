"""What every page of ours is made of: one file that needs nothing else, in parts.

Knows: the frame of a page, its sections, tables and cards, in light and dark, from 375 pixels of width upwards. Knows
nothing about what they say.
"""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("style.css")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def document(title: str, parts: Iterable[str], style: str = "") -> str:
    """The whole file, of parts that are HTML; `style` is added to that of all pages."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<style>{STYLE.read_text('utf-8')}{style}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def top(title: str, numbers: Iterable[tuple[str, int]], *notes: str) -> str:
    """A page's heading, with what matters most in large numbers."""
    shown = "".join(f"<div><dt>{escape(name)}</dt><dd>{number:,}</dd></div>" for name, number in numbers)
    large = f'<dl class="big">{shown}</dl>' if shown else ""
    return f"<header><h1>{escape(title)}</h1>{large}{_quiet(notes)}</header>"


def section(title: str, content: str, *notes: str) -> str:
    """Content under a heading, with quiet lines below."""
    return f"<section><h2>{escape(title)}</h2>{content}{_quiet(notes)}</section>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text: the first column names its row, the others are numbers."""
    told = "".join(f"<th scope=col>{escape(text)}</th>" for text in head)
    lines = "".join(
        f"<tr><th scope=row>{escape(first)}</th>{''.join(f'<td class=n>{escape(one)}</td>' for one in others)}</tr>"
        for first, *others in rows
    )
    whole = f"<table><thead><tr>{told}</tr></thead><tbody>{lines}</tbody></table>"
    return f'<div class="classes" role="region" aria-label="{escape(head[0])}" tabindex="0">{whole}</div>'


def facts(values: Iterable[tuple[str, object]]) -> str:
    """A table of names and what they are; what is None is left out."""
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in values
        if value is not None
    )
    return f"<table><tbody>{rows}</tbody></table>"


def card(title: str, content: str, *notes: str) -> str:
    """A small thing with a title, to be one of `cards`."""
    return f'<div class="card"><h3>{escape(title)}</h3>{content}{_quiet(notes)}</div>'


def cards(each: Iterable[str]) -> str:
    """Cards side by side, as many as fit."""
    return f'<div class="cards">{"".join(each)}</div>'


def shots(title: str, pictures: Sequence[str], *notes: str) -> str:
    """A section of pictures; nothing where there are none."""
    return section(title, f'<div class="shots">{"".join(pictures)}</div>', *notes) if pictures else ""


def _quiet(notes: Iterable[str]) -> str:
    return "".join(f"<p class=quiet>{escape(note)}</p>" for note in notes)
