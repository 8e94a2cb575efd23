"""The preprocessing contract as a `transformers` image processor.

``preprocessor_config.json`` holds the fields of `Preprocessing` under their own names, so that the
numbers exist once; the pixels come from the functions of `tinyvit_edge.preprocessing`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from tinyvit_edge.compat import tolerate_torchvision
from tinyvit_edge.errors import InputError
from tinyvit_edge.preprocessing import Preprocessing, decode, preprocess, to_rgb

tolerate_torchvision()

from transformers.image_processing_utils import BaseImageProcessor, BatchFeature  # noqa: E402

__all__ = ["TinyVitImageProcessor"]

ChannelFormat = Literal["channels_first", "channels_last"]

_CHANNEL_AXIS: dict[ChannelFormat, int] = {"channels_first": 0, "channels_last": -1}

# What `transformers` adds to a saved configuration or passes on while it loads one.
_SERVICE_KEYS = ("image_processor_type", "processor_class")


class TinyVitImageProcessor(BaseImageProcessor):  # type: ignore[misc]
    """Turns images into ``pixel_values`` of shape (B, 3, S, S), float32.

    Args:
        size: side S of the square model input.
        kwargs: any other field of `Preprocessing`.

    Raises:
        InputError: an unknown field, a value out of range, or `num_channels` other than 3 (the
            contract has three means; a grey-scale model needs a processor of its own).
    """

    model_input_names = ("pixel_values",)

    def __init__(self, size: int, **kwargs: Any) -> None:
        service = {key: kwargs.pop(key) for key in _SERVICE_KEYS if key in kwargs}
        channels = kwargs.pop("num_channels", 3)
        if channels != 3:
            raise InputError(
                f"TinyVitImageProcessor: num_channels is {channels}, and the preprocessing "
                "contract is for 3 channels; prepare the tensors of such a model yourself"
            )
        contract = Preprocessing.from_dict({"size": size, **kwargs})
        super().__init__(**service)
        for name, value in contract.to_dict().items():
            setattr(self, name, value)

    @classmethod
    def from_contract(cls, contract: Preprocessing) -> TinyVitImageProcessor:
        """Build the processor that follows `contract`."""
        fields: dict[str, Any] = contract.to_dict()
        return cls(**fields)

    @property
    def contract(self) -> Preprocessing:
        """The contract that this processor follows."""
        names = Preprocessing.__dataclass_fields__
        return Preprocessing.from_dict({name: getattr(self, name) for name in names})

    def preprocess(
        self,
        images: Any,
        return_tensors: str | None = None,
        input_data_format: ChannelFormat | None = None,
    ) -> BatchFeature:
        """Preprocess one image or several, of any sizes.

        Args:
            images: a PIL image, a uint8 array or tensor of shape (H, W), (H, W, C), (C, H, W) or
                the same behind a batch axis with C = 1, 3 or 4, a path, or a sequence of these.
            return_tensors: "pt" for torch; otherwise NumPy.
            input_data_format: where C is in arrays; without it an array is taken for channels
                last and a tensor for channels first, wherever its shape allows it.

        Returns:
            ``pixel_values``: float32 (B, 3, S, S).

        Raises:
            InputError: no images, or an array that is not uint8 or not of such a shape.
            DataError: an image that cannot be converted to RGB.
        """
        contract = self.contract
        tensors = [preprocess(image, contract) for image in _rgb_images(images, input_data_format)]
        if not tensors:
            raise InputError("TinyVitImageProcessor: the list of images is empty; give at least 1")
        return BatchFeature({"pixel_values": np.stack(tensors)}, tensor_type=return_tensors)


def _rgb_images(images: Any, layout: ChannelFormat | None) -> list[Image.Image]:
    if isinstance(images, (list, tuple)):
        return [rgb for image in images for rgb in _rgb_images(image, layout)]
    if isinstance(images, Image.Image):
        return [to_rgb(images)]
    if isinstance(images, (str, Path)):
        return [decode(images)]
    likely: ChannelFormat = "channels_last"
    if isinstance(images, torch.Tensor):
        likely, images = "channels_first", images.detach().cpu().numpy()
    if not isinstance(images, np.ndarray):
        raise InputError(
            f"TinyVitImageProcessor: cannot read an image from {type(images).__name__}; "
            "give a PIL image, a uint8 array or tensor, or a path"
        )
    stacked = images if images.ndim == 4 else images[None]
    return [_image_of_array(array, layout, likely) for array in stacked]


def _image_of_array(
    array: npt.NDArray[Any], layout: ChannelFormat | None, likely: ChannelFormat
) -> Image.Image:
    if array.dtype != np.uint8:
        # A float image may mean 0..1 or 0..255, or may be normalised already: no guess is safe.
        raise InputError(
            f"TinyVitImageProcessor: an image of dtype {array.dtype}; convert it to uint8, 0..255"
        )
    if array.ndim == 2:
        return Image.fromarray(array).convert("RGB")
    formats = (layout,) if layout else (likely, *(f for f in _CHANNEL_AXIS if f != likely))
    for name in formats:
        if array.ndim == 3 and array.size and array.shape[_CHANNEL_AXIS[name]] in (1, 3, 4):
            pixels = np.moveaxis(array, _CHANNEL_AXIS[name], -1)  # (H, W, C)
            pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
            return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    raise InputError(
        f"TinyVitImageProcessor: an image of shape {array.shape} ({layout or 'any layout'}); "
        "give (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels"
    )
