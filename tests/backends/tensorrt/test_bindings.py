"""Our calls of TensorRT against the vendor's real Python bindings, three of them, each in a process of its own.

What is checked is in `helpers/tensorrt_checks`, which also shows that it can fail; here it is run. The bindings are
fetched by `make test`; without them, or gcc, these tests are skipped.
"""

import ast
import os
import subprocess
import sys

import pytest
from tensorrt_stubs import ROOT, VARIABLE, VERSIONS, bindings_folder, missing

CHECKS = ("-o", "python_files=check_*.py", "tests/helpers/tensorrt_checks")
NAMES = {"tensorrt", "tensorrt_rtx_bindings"}


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_every_call_of_the_build_and_run_code_is_one_that_tensorrt_has(version: str) -> None:
    if reason := missing(version):
        pytest.skip(reason)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=0", *CHECKS],
        cwd=ROOT,
        env=os.environ | {VARIABLE: str(bindings_folder(version)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]


def test_no_file_imports_tensorrt_by_name() -> None:
    """One module loads both TensorRTs, by what it says of each (`flavours`)."""
    assert set(_imports("import tensorrt as trt\nimport_runtime('tensorrt_rtx_bindings')")) == NAMES
    for name in ("dengine_cli", "engines", "export"):
        for path in (ROOT / name).rglob("*.py"):
            found = {module.split(".")[0] for module in _imports(path.read_text(encoding="utf-8"))} & NAMES
            assert not found, path


def _imports(source: str) -> list[str]:
    """Names of the modules that a file imports, by statement or through a function with "import" in its name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append(node.module or "")
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func).rpartition(".")[2]:
            found += [x.value for x in node.args[:1] if isinstance(x, ast.Constant) and isinstance(x.value, str)]
    return found
