"""Receptive fields, shape bias, predictions and features of vision networks: of any `torch.nn.Module`.

The names of this package are listed in `__init__.pyi`, each with the module that is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
CODE_VERSION = 2
"""Of the modules that the package wraps other libraries' networks in; see `analysis.runs.identity.hash_code`."""
