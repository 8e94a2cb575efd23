"""Configuration of a TinyViT: any number of stages >= 2, the first one convolutional.

Fields and defaults follow the family of arXiv 2207.10666 in Hugging Face's conventions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from tinyvit_edge.errors import InputError

__all__ = ["TinyVitConfig"]

_PER_STAGE = ("hidden_sizes", "depths", "num_heads", "window_sizes")
_POSITIVE_INTS = ("image_size", "num_channels", "local_conv_size")
_POSITIVE = ("mlp_ratio", "mbconv_expand_ratio", "layer_norm_eps")
_PROBABILITIES = ("hidden_dropout_prob", "drop_path_rate")


class TinyVitConfig(BackboneConfigMixin, PreTrainedConfig):  # type: ignore[misc]
    """What a TinyViT is made of; the defaults are those of the 21M model at 224 px.

    The four lists have one entry per stage. Stage 0 is made of MBConv blocks, so its entries in
    `num_heads` and `window_sizes` are placeholders; every later stage has windows of
    `window_sizes[i]` x `window_sizes[i]` tokens. Stage i works at a stride of 4 * 2**i pixels.

    Args:
        image_size: side in pixels of the square image that the weights were trained for; the
            model itself takes any height and width.
        num_channels: channels of the image.
        hidden_sizes: channels of each stage.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        window_sizes: side of the attention windows of each stage, in tokens.
        mlp_ratio: hidden width of the MLPs over `hidden_sizes[i]`.
        hidden_dropout_prob: dropout after both layers of the MLPs.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
        hidden_act: activation, a key of `transformers.activations.ACT2FN`.
        initializer_range: standard deviation of the truncated normal that Linear weights get.
        local_conv_size: side of the depthwise convolution after attention; odd.
        mbconv_expand_ratio: inner width of the MBConv blocks over `hidden_sizes[0]`.
        layer_norm_eps: epsilon of every LayerNorm.
        out_features: names of the stages that `TinyVitBackbone` returns, out of `stage_names`.
        out_indices: the same as indices; give one of the two.

    Raises:
        InputError: lists of different lengths, fewer than two stages, a number out of range,
            or a stage whose channels its heads do not divide.
    """

    model_type: ClassVar[str] = "tinyvit"

    image_size: int = 224
    num_channels: int = 3
    hidden_sizes: Sequence[int] = (96, 192, 384, 576)
    depths: Sequence[int] = (2, 2, 6, 2)
    num_heads: Sequence[int] = (3, 6, 12, 18)
    window_sizes: Sequence[int] = (7, 7, 14, 7)
    mlp_ratio: float = 4.0
    hidden_dropout_prob: float = 0.0
    drop_path_rate: float = 0.0
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    local_conv_size: int = 3
    mbconv_expand_ratio: float = 4.0
    layer_norm_eps: float = 1e-5
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_numbers()
        self._check_stages()
        self.num_stages = len(self.depths)
        self.hidden_size = self.hidden_sizes[-1]
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, self.num_stages + 1))]
        for derived in ("num_stages", "hidden_size", "stage_names"):
            kwargs.pop(derived, None)
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None),
            out_indices=kwargs.pop("out_indices", None),
        )
        super().__post_init__(**kwargs)

    def _check_numbers(self) -> None:
        for name in _POSITIVE_INTS:
            value = getattr(self, name)
            if not _is_positive_int(value):
                raise InputError(f"TinyVitConfig: {name} must be a positive integer, got {value!r}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if not _is_number(value) or value <= 0:
                raise InputError(f"TinyVitConfig: {name} must be a positive number, got {value!r}")
        for name in _PROBABILITIES:
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value < 1:
                raise InputError(f"TinyVitConfig: {name} must be in [0, 1), got {value!r}")
        if self.local_conv_size % 2 == 0:
            raise InputError(
                f"TinyVitConfig: local_conv_size must be odd to keep the resolution,"
                f" got {self.local_conv_size}"
            )

    def _check_stages(self) -> None:
        for name in _PER_STAGE:
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or not all(map(_is_positive_int, values)):
                raise InputError(
                    f"TinyVitConfig: {name} must be a list of positive integers, got {values!r}"
                )
            setattr(self, name, list(values))  # what JSON gives back, so that configs compare equal
        lengths = {name: len(getattr(self, name)) for name in _PER_STAGE}
        if len(set(lengths.values())) != 1:
            listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise InputError(f"TinyVitConfig: one entry per stage is needed, got lengths {listed}")
        if len(self.depths) < 2:
            raise InputError(f"TinyVitConfig: needs at least 2 stages, got {len(self.depths)}")
        if self.hidden_sizes[0] % 2:
            raise InputError(
                f"TinyVitConfig: hidden_sizes[0] must be even, as the stem works at half of it,"
                f" got {self.hidden_sizes[0]}"
            )
        for stage in range(1, len(self.depths)):
            size, heads = self.hidden_sizes[stage], self.num_heads[stage]
            if size % heads:
                raise InputError(
                    f"TinyVitConfig: hidden_sizes[{stage}] = {size} is not divisible by"
                    f" num_heads[{stage}] = {heads}"
                )


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
