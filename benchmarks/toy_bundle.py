"""A bundle of tiny random networks, as the tests make it: for benchmarks whose pictures do not matter.

Knows: where the tests' maker of toy models lies. Does not know what is done with the bundle.
"""

import shutil
import sys
from pathlib import Path

from engines.measure.alone import ROOT


def make_toy_bundle(folder: Path) -> Path:
    """Write base, adapter and bundle below `folder`, unless the bundle is there; returns the bundle's folder."""
    bundle = folder / "bundle"
    if not bundle.exists():
        from export.assemble import export
        from export.settings import ExportSettings

        sys.path.append(str(ROOT / "tests" / "helpers"))
        import toy

        for name in ("base", "adapter"):
            shutil.rmtree(folder / name, ignore_errors=True)
        base = toy.make_toy_base(folder / "base")
        adapter = toy.make_toy_adapter(folder / "adapter", base)
        export(ExportSettings(base, adapter, bundle, engines=["torch"], threads=1))
    return bundle
