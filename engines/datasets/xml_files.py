"""XML annotation files, read safely.

Knows: that a document type, and with it every entity that a file could define, is refused; and that files come in
encodings which the parser doesn't know by itself, such as GBK. Knows nothing about what the elements mean.
"""

import codecs
import re
from xml.etree import ElementTree

from engines.common.quote import shorten
from engines.datasets.tree import Tree
from engines.errors import DatasetError

_DECLARATION = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["'][^>]*\?>""")
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_HEAD = 4096  # bytes in which a file's first element begins


class _SafeBuilder(ElementTree.TreeBuilder):
    """A tree builder that refuses document types."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise DatasetError("has a DOCTYPE, which annotations don't need and dengine doesn't read; remove it")


def root_tag(tree: Tree, name: str) -> str:
    """The name of a file's first element, without parsing the rest; "" where it shows none."""
    try:
        with tree.path(name).open("rb") as file:
            head = file.read(_HEAD).replace(b"\0", b"")
    except OSError:
        return ""
    match = re.search(rb"<([A-Za-z_][\w.-]*)", _COMMENT.sub(b"", head))
    return match[1].decode("ascii", "replace") if match else ""


def parse(tree: Tree, name: str) -> ElementTree.Element:
    """The root element of a file; DatasetError naming it."""
    try:
        parser = ElementTree.XMLParser(target=_SafeBuilder())
        return ElementTree.fromstring(_decoded(tree.path(name).read_bytes()), parser=parser)
    except DatasetError as error:
        raise DatasetError(f"{name} {error}.") from None
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as cause:
        raise DatasetError(f"{name} is not readable as XML: {shorten(str(cause))}.") from cause


def _decoded(data: bytes) -> bytes | str:
    """Bytes that the parser can read: in another encoding than its own few, the text without its declaration."""
    match = _DECLARATION.match(data)
    if match is None or match[1].lower() in (b"utf-8", b"utf8", b"utf-16", b"us-ascii", b"ascii"):
        return data
    codec = codecs.lookup(match[1].decode("ascii"))
    if not codec._is_text_encoding:
        raise ValueError(f"{codec.name} is no encoding of text")
    return data[match.end() :].decode(codec.name)
