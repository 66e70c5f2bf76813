"""Numbers of things in messages.

Knows: how a few nouns of ours are written of one and of several. Knows nothing about what is counted.
"""

_IRREGULAR = {"is": "are", "has": "have", "this": "these", "box": "boxes", "class": "classes", "match": "matches"}


def counted(number: int, noun: str) -> str:
    """A number with its noun, of which the last word changes.

    >>> counted(1, "thread"), counted(0, "box"), counted(2, "validation image")
    ('1 thread', '0 boxes', '2 validation images')
    """
    return f"{number} {plural(number, noun)}"


def plural(number: int, word: str) -> str:
    """A word as it goes with that number of things.

    >>> plural(1, "has"), plural(3, "has")
    ('has', 'have')
    """
    if number == 1:
        return word
    before, space, last = word.rpartition(" ")
    return f"{before}{space}{_IRREGULAR.get(last, f'{last}s')}"
