"""What a push should leave, and what lies in the places that one goes to."""

from collections.abc import Callable
from pathlib import Path

from fakes import tree
from hub_server import HubServer

from engines.cluster.store import Store

There = Callable[[], dict[str, bytes]]  # the files of a place, by name


def objects(store: Store) -> dict[str, bytes]:
    """Every object of a bucket, by name."""
    return {name: store.get(name) or b"" for name in store.names("")}


def without_attributes(server: HubServer) -> dict[str, bytes]:
    """The files of the repository that is pushed to, without the one that the hub makes."""
    files = server.repositories.get("owner/cells", {})
    return {name: data for name, data in files.items() if name != ".gitattributes"}


def expected(run: Path) -> set[str]:
    """Names of what a push of a run leaves: its own files but what this machine alone needs, and the push's list."""
    return {name for name in tree(run) if not name.startswith(".dengine/") and name != "review.jsonl"} | {"push.json"}
