"""A dataset repository on the Hugging Face hub as a place to push to.

Knows: the calls of its client, and what is said of those that fail. A commit is whole or not at all; data that was sent
before one failed is not sent again, which the hub sees to.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engines.common.quote import shorten
from engines.diffusion.libraries import first_line
from engines.errors import DengineError, RunError
from engines.push.items import Item
from engines.push.place import Changes, There, Told
from engines.push.settings import HUB

_KIND = "dataset"
_COMMIT = 1000  # files of a commit at most: those that are left come in further ones
_WAYS = {
    401: " Log in with `hf auth login`, or give a token as HF_TOKEN.",
    403: " Give a token that may write there.",
    404: " Log in as its owner, or give another name.",
}


class Hub:
    """A repository by its name, OWNER/NAME; made where it is not there."""

    most_in_folder = 10_000  # as the hub's own pages say

    def __init__(self, address: str, private: bool) -> None:
        from huggingface_hub import HfApi

        self.where, self._name, self._private = address, address.removeprefix(HUB), private
        self._api = HfApi()

    def listed(self) -> Iterator[There]:
        """Every file, with its SHA-256, or what git calls it."""
        from huggingface_hub import RepoFile
        from huggingface_hub.errors import RepositoryNotFoundError

        with self._errors():
            try:
                for one in self._api.list_repo_tree(self._name, recursive=True, repo_type=_KIND):
                    if isinstance(one, RepoFile):
                        yield There(one.path, one.size, one.lfs.sha256 if one.lfs else one.blob_id)
            except RepositoryNotFoundError:
                return

    def read(self, name: str) -> bytes | None:
        """A file's bytes."""
        from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError

        with self._errors():
            try:
                return Path(self._api.hf_hub_download(self._name, name, repo_type=_KIND)).read_bytes()
            except (RemoteEntryNotFoundError, RepositoryNotFoundError):
                return None

    def same(self, item: Item, there: There) -> bool:
        """By SHA-256 of what is large, and else by git's hash."""
        return there.tag == item.sha256 or (len(there.tag or "") == 40 and there.tag == item.git_hash())

    def change(self, changes: Changes, told: Told) -> None:
        """One commit, or, of more files than one takes, a few: the one with the labels last."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        batches = _batches(changes.send)
        with self._errors(), _silent():
            self._api.create_repo(self._name, repo_type=_KIND, private=self._private, exist_ok=True)
            for number, batch in enumerate(batches, start=1):
                last, several = number == len(batches), len(batches) > 1
                gone = [*(changes.clear if several and number == 1 else ()), *(changes.remove if last else ())]
                added = [CommitOperationAdd(item.name, item.source) for item in batch]
                self._api.create_commit(
                    self._name,
                    [*added, *map(CommitOperationDelete, gone)],
                    commit_message="Dataset of dengine" + (f", part {number} of {len(batches)}" if several else ""),
                    repo_type=_KIND,
                )
                told(sum(item.size for item in batch))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except DengineError:
            raise
        except Exception as cause:  # the hub's client raises its own, the network's and the file system's errors
            status = getattr(getattr(cause, "response", None), "status_code", 0)
            said = shorten(first_line(cause), 200).rstrip(".")
            text = f"{self.where}: the hub did not do what was asked: {said}.{_WAYS.get(status, '')}"
            raise RunError(text, field="to") from cause


def _batches(send: Sequence[Item]) -> list[Sequence[Item]]:
    """As few as there can be, the last one full: what comes last stays together."""
    stops = range(len(send), 0, -_COMMIT)
    return [send[max(0, stop - _COMMIT) : stop] for stop in reversed(stops)]


@contextmanager
def _silent() -> Iterator[None]:
    """Without the client's own progress bars."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()
