"""From a TinyViT checkpoint to verified Core ML, ExecuTorch, ONNX and TFLite artifacts.

Importing the package is cheap: a name below imports its module when it is first used. The main
job is `tinyvit_edge.deploy.deploy`; the command line is `tinyvit-edge`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tinyvit_edge._version import __version__

if TYPE_CHECKING:
    from tinyvit_edge.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from tinyvit_edge.configuration import TinyVitConfig
    from tinyvit_edge.deployment import FormOptions, deployment_form
    from tinyvit_edge.image_processing import TinyVitImageProcessor
    from tinyvit_edge.modeling import (
        TinyVitBackbone,
        TinyVitForImageClassification,
        TinyVitModel,
    )
    from tinyvit_edge.preprocessing import Preprocessing
    from tinyvit_edge.variants import VARIANTS, config_for

__all__ = [
    "VARIANTS",
    "Checkpoint",
    "FormOptions",
    "Preprocessing",
    "TinyVitBackbone",
    "TinyVitConfig",
    "TinyVitForImageClassification",
    "TinyVitImageProcessor",
    "TinyVitModel",
    "__version__",
    "config_for",
    "deployment_form",
    "load_checkpoint",
    "save_checkpoint",
]

_MODULE_OF = {
    "VARIANTS": "variants",
    "Checkpoint": "checkpoint",
    "FormOptions": "deployment",
    "Preprocessing": "preprocessing",
    "TinyVitBackbone": "modeling",
    "TinyVitConfig": "configuration",
    "TinyVitForImageClassification": "modeling",
    "TinyVitImageProcessor": "image_processing",
    "TinyVitModel": "modeling",
    "config_for": "variants",
    "deployment_form": "deployment",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
}


def __getattr__(name: str) -> Any:
    try:
        module = _MODULE_OF[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return __all__
