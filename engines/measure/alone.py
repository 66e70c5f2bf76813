"""A measurement in a process of its own, so that memory, threads and caches are its own too.

Knows: how to hand a JSON object to a function in a fresh Python and get one back, what the function says while it
works, and how an error of ours crosses over. Knows nothing about what is measured.

`python -m engines.measure.alone MODULE:FUNCTION FOLDER` is the other side: it reads FOLDER/arguments.json and writes
FOLDER/result.json. Standard output and error are not the way back, because libraries print there.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engines import errors
from engines.errors import BackendError, DengineError

ROOT = Path(__file__).resolve().parents[2]  # where the packages lie
_SAYS = "\x1e"  # begins a line of stderr that is meant for `tell`
_ARGUMENTS, _RESULT = "arguments.json", "result.json"

Tell = Callable[[str], None]
Task = Callable[[Mapping[str, Any], Tell], Mapping[str, Any]]  # what MODULE:FUNCTION names


def run_alone(task: str, arguments: Mapping[str, Any], tell: Tell = lambda line: None) -> dict[str, Any]:
    """Call the function `task` ("module:function", a Task) in a fresh process, and return its JSON object.

    `tell` is given every line that the function tells. Raises the DengineError that the function raised, and
    BackendError with the last words of a process that ended in another way (killed for memory, crashed).
    """
    with tempfile.TemporaryDirectory(prefix="dengine-measure-") as name:
        folder = Path(name)
        (folder / _ARGUMENTS).write_text(json.dumps(arguments), "utf-8")
        command = [sys.executable, "-m", "engines.measure.alone", task, name]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        last: deque[str] = deque(maxlen=5)
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, errors="replace", env=os.environ | {"PYTHONPATH": path},
        ) as process:  # fmt: skip
            try:
                for line in process.stderr or ():
                    if line.startswith(_SAYS):
                        tell(line.removeprefix(_SAYS).rstrip())
                    elif line.strip():
                        last.append(line.strip())
            except BaseException:
                process.kill()
                raise
        result = folder / _RESULT
        if not result.is_file():
            said = f": {last[-1]}" if last else ""
            raise BackendError(f"{task} ended with exit code {process.returncode} and no result{said}.")
        value: dict[str, Any] = json.loads(result.read_text("utf-8"))
    if "error" in value:
        kind = getattr(errors, value["error"], DengineError)
        raise kind(value["text"], field=value["field"])
    return dict(value["result"])


def main(task: str, folder: Path) -> int:
    """The other side of `run_alone`."""
    module, _, function = task.partition(":")
    call: Task = getattr(importlib.import_module(module), function)

    def tell(line: str) -> None:
        sys.stderr.write(f"{_SAYS}{' '.join(line.splitlines())}\n")
        sys.stderr.flush()

    try:
        value: dict[str, Any] = {"result": call(json.loads((folder / _ARGUMENTS).read_text("utf-8")), tell)}
    except DengineError as cause:
        value = {"error": type(cause).__name__, "text": str(cause), "field": cause.field}
    (folder / _RESULT).write_text(json.dumps(value), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
