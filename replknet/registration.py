"""Registers the family with timm when timm is imported, so that `import replknet` alone does not wait for it."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_TIMM = "timm.models"
_OURS = "replknet.timm_models"


class _AfterTimm(MetaPathFinder):
    """Finds timm's models as Python would, and adds ours after they have run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _TIMM:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_add(module: ModuleType) -> None:
            run(module)
            importlib.import_module(_OURS)

        spec.loader.exec_module = run_and_add  # type: ignore[method-assign]
        return spec


def register_with_timm() -> None:
    """Now where timm is imported already, else as soon as it is."""
    if _TIMM in sys.modules:
        importlib.import_module(_OURS)
    else:
        sys.meta_path.insert(0, _AfterTimm())
