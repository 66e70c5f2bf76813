"""What mkdocs asks of us: pages that lie outside docs/, and links that work on the site as they do in the repository.

Knows: which files of the repository are pages, and where each lies on the site. Knows nothing about their contents.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"} | {
    file.relative_to(ROOT).as_posix(): file.relative_to(ROOT).as_posix()
    for file in sorted((ROOT / "benchmarks" / "results").rglob("*"))
    if file.suffix in (".md", ".txt")
}  # path in the repository -> path on the site
_HOMES = {site: home for home, site in OUTSIDE.items()}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside docs/."""
    for home, site in OUTSIDE.items():
        files.append(File.generated(config, site, abs_src_path=str(ROOT / home)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as the site needs them; one to a file that is no page of it becomes its text."""
    here = page.file.src_uri
    home = _HOMES.get(here, f"docs/{here}")

    def linked(match: re.Match[str]) -> str:
        mark, text, link = match.groups()
        path, _, anchor = link.partition("#")
        if "://" in link or not path:
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(home), path))
        if not (ROOT / target).exists():
            return match[0]  # mkdocs says that it is broken
        site = OUTSIDE.get(target, target.removeprefix("docs/") if target.startswith("docs/") else "")
        if not site:
            return text
        relative = posixpath.relpath(site, posixpath.dirname(here) or ".")
        return f"{mark}[{text}]({relative}{f'#{anchor}' if anchor else ''})"

    return _LINK.sub(linked, markdown)
