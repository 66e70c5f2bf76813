"""Our calls of TensorRT against the vendor's real Python bindings, three of them, each in a process of its own.

What is checked is in `tensorrt_stubs_checks.py`; here it is run, and it is shown that it can fail. The bindings are
fetched by `make test`; without them, or gcc, these tests are skipped.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tensorrt_stubs import ROOT, VARIABLE, VERSIONS, bindings_folder, missing

CHECKS = "tests/helpers/tensorrt_stubs_checks.py"
SOURCES = ("dengine_cli", "engines", "export", "tests")
NAMES = {"tensorrt", "tensorrt_rtx_bindings"}


def run_checks(version: str, root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the checks of the sources in `root` against a version of the bindings."""
    if reason := missing(version):
        pytest.skip(reason)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=0", CHECKS, *options],
        cwd=root,
        env=os.environ | {VARIABLE: str(bindings_folder(version)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_every_call_of_the_build_and_run_code_is_one_that_tensorrt_has(version: str) -> None:
    result = run_checks(version, ROOT)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]


@pytest.mark.slow
def test_a_flag_that_tensorrt_11_does_not_have_makes_its_run_fail(tmp_path: Path) -> None:
    for name in SOURCES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("pretrained", "__pycache__"))
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    file = tmp_path / "export" / "tensorrt" / "builder.py"
    line = "        config = builder.create_builder_config()\n"
    assert file.read_text().count(line) == 1
    file.write_text(file.read_text().replace(line, line + "        config.set_flag(trt.BuilderFlag.FP16)\n"))
    result = run_checks("11", tmp_path, "-k", "strongly_typed")
    assert result.returncode == 1, result.stdout[-8000:] + result.stderr[-2000:]
    assert (
        "AttributeError: type object 'tensorrt_bindings.tensorrt.BuilderFlag' has no attribute 'FP16'" in result.stdout
    )


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
