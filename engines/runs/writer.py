"""Images to files, in threads of their own, while the next network call runs.

Knows: how an image is encoded, that a file appears under its name only when it is whole and on the disk, and that
only so many images may wait. Knows nothing about jobs, boxes or the journal.

H/W pixels.
"""

import hashlib
import io
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from engines.common.devices import cpu_cores
from engines.common.files import write_atomic

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Written:
    """An image that is in place."""

    name: str  # its file name
    sha256: str  # of the file


def encode_image(pixels: Pixels, image_format: str, jpeg_quality: int | None) -> bytes:
    """uint8 [H, W, 3] as a JPEG (4:4:4 from quality 90 on) or PNG file; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if image_format == "png":
        image.save(buffer, "PNG", compress_level=3)
    else:
        quality = 95 if jpeg_quality is None else jpeg_quality
        image.save(buffer, "JPEG", quality=quality, subsampling=0 if quality >= 90 else 2)
    return buffer.getvalue()


def writer_threads(on_gpu: bool) -> int:
    """Threads that write a run's images: two on a CPU, whose cores the networks want; beside a GPU as many as there are
    cores, but two for those who keep it busy."""
    return max(cpu_cores() - 2, 2) if on_gpu else 2


class ImageWriter:
    """Threads that encode and write images; a context manager that waits for them at its end.

    An error in a thread (a full disk) is raised by the next call of the one who submits. On an error, in a thread or
    outside, images still waiting are not written, and no temporary file is left.
    """

    def __init__(
        self,
        folder: Path,
        *,
        image_format: str = "jpeg",
        jpeg_quality: int | None = None,
        threads: int = 2,
        waiting: int | None = None,
        partial: Path | None = None,
    ) -> None:
        """Write to `folder` with so many threads; `submit` blocks while `waiting` images are not yet taken up, eight
        for each thread where nobody says.

        `partial`: a folder of the same disk for what is not yet whole; None: `folder`.
        """
        self._folder, self._partial = folder, partial
        self._format, self._quality = image_format, jpeg_quality
        self._tasks: queue.Queue[tuple[str, Pixels] | None] = queue.Queue(8 * threads if waiting is None else waiting)
        self._done: queue.SimpleQueue[Written] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._error is None:
            self._error = error
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        if error is None:
            self._raise()

    def submit(self, name: str, pixels: Pixels) -> None:
        """Have pixels uint8 [H, W, 3] written under `name`; blocks while too many wait."""
        self._raise()
        self._tasks.put((name, pixels))

    def finished(self) -> Iterator[Written]:
        """The images in place by now, each given once, in the order they were finished; does not wait."""
        self._raise()
        while not self._done.empty():
            yield self._done.get()

    def drain(self) -> Iterator[Written]:
        """Wait for all images submitted so far; those that `finished` has not given yet."""
        self._tasks.join()
        yield from self.finished()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                if self._error is None:
                    self._done.put(self._write(*task))
            except BaseException as error:  # whatever it is, the one who submits has to know
                self._error = error
            finally:
                self._tasks.task_done()

    def _write(self, name: str, pixels: Pixels) -> Written:
        data = encode_image(pixels, self._format, self._quality)
        write_atomic(self._folder / name, data, self._partial)
        return Written(name, hashlib.sha256(data).hexdigest())
