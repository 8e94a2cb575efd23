"""The deployment form: the reference TinyViT, rewritten for export without changing a logit.

`deployment_form` maps a trained `TinyVitForImageClassification` to a control-flow-free module of
static shapes. Each step is exact in real arithmetic:

1. BatchNorm is folded into the convolution before it, in float64.
2. LayerNorm's scale and shift are folded into the Linear layers that consume it, so every target
   quantizes the same tensor there.
3. q, k and v are three Linear layers (no Split), and the attention scale is folded into q.
4. Attention biases are constants, in the storage that a target's runtime is best served by.
5. Windows are cut and joined with tensors of rank 4 at most. Tokens are rows (B * L, C) between
   convolutions: a Linear layer takes rows without a reshape, and after a convolution ExecuTorch
   takes every tensor of rank 4 for an image, and turns its layout back and forth.
6. Attention is two 3-D batched products and a softmax (no fused attention, no expand), of some
   heads at a time where all their scores would not stay in a cache (`tinyvit_edge.attention`).

What a target wants to be different is a field of `FormOptions`, not another copy of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyvit_edge.attention import Attention, HalfBiases
from tinyvit_edge.errors import InputError
from tinyvit_edge.folding import copy_linear, fold_batch_norm, fold_layer_norm
from tinyvit_edge.softmax import SoftmaxKind

if TYPE_CHECKING:
    from tinyvit_edge.modeling import TinyVitForImageClassification

__all__ = ["DeploymentForm", "FormOptions", "deployment_form"]

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class FormOptions:
    """How one target wants the one form."""

    layer_norm: Literal["native", "linear"] = "native"
    """``linear``: mean and variance as products with a constant row, which XNNPACK delegates;
    its own LayerNorm stays outside the delegate."""
    attention_bias: Literal["expanded", "gathered"] = "expanded"
    """``gathered``: the file holds a bias for every offset, and an index; for runtimes that
    expand constants when they load a file. No mobile delegate takes a gather."""
    softmax: SoftmaxKind = "native"
    """``bounded``: a row's largest score is not subtracted where the weights prove that float32
    needs no such thing; for runtimes that compute in float32 and nothing else."""
    half_biases: HalfBiases = "float16"
    """How ``fp16`` stores attention biases; int8 rounds less than float16 arithmetic does."""
    dynamic_range: Literal["token", "tensor"] = "token"
    """What one run-time activation range covers in this target's dynamic kernels."""
    requantize_weights: bool = False
    """The converter folds quantize(float constant) itself and takes no int8 constant."""
    linear_outputs: Literal["int8", "float"] = "int8"
    """What the kernels of static int8 Linear layers give; int8 is rounded once more."""
    float_conv_cost: float = 1.0
    """Time that a convolution's multiply-accumulate loses when it stays in float, with that of a
    Linear layer's as the unit."""


def deployment_form(
    model: TinyVitForImageClassification,
    *,
    options: FormOptions | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> DeploymentForm:
    """Rewrite a reference model for export.

    Args:
        model: the reference; its weights are copied, it is not changed.
        options: what the target wants.
        image_size: S, or (height, width), in pixels; the config's size when left out. The form
            is static: it takes images of this size only.

    Raises:
        InputError: the model has no classifier.

    Returns:
        A module in eval mode: (B, num_channels, height, width) float32 to (B, classes) float32.
    """
    if not isinstance(model.classifier, nn.Linear):
        raise InputError("this TinyViT has no classifier (0 classes): give it one before export")
    size = image_size or model.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    with torch.no_grad():
        form = DeploymentForm(model, (height, width), options or FormOptions())
    return form.eval().requires_grad_(False)


class DeploymentForm(nn.Module):
    """Stem, stages and head of a TinyViT in deployment form."""

    def __init__(
        self,
        model: TinyVitForImageClassification,
        image_size: tuple[int, int],
        options: FormOptions,
    ) -> None:
        super().__init__()
        from transformers.activations import ACT2FN

        body = model.tinyvit
        act: Activation = ACT2FN[model.config.hidden_act]
        seq = body.embeddings.seq
        self.stem = ConvChain((seq[0], seq[2]), act)
        resolution = _halve(_halve(image_size))
        self.stages = nn.ModuleList()
        for index, stage in enumerate(body.encoder.stages):
            self.stages.append(Stage(stage, index, resolution, act, options))
            if stage.downsample is not None:
                resolution = _halve(resolution)
        classifier = copy_linear(model.classifier)  # type: ignore[arg-type]
        self.norm, (self.classifier,) = fold_layer_norm(body.layernorm, (classifier,), options)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, num_channels, H, W) to logits (B, classes)."""
        x = self.stem(image)  # (B, C, H/4, W/4)
        for stage in self.stages:
            x = stage(x)  # (B, C', H', W')
        # keepdim over (2, 3) of a rank-4 tensor is the one mean that XNNPACK delegates
        x = x.mean((2, 3), keepdim=True).flatten(1)  # (B, C)
        logits: Tensor = self.classifier(self.norm(x))  # (B, classes)
        return logits


class Stage(nn.Module):
    """The blocks of one stage, then its downsampling."""

    def __init__(
        self,
        stage: Any,
        index: int,
        resolution: tuple[int, int],
        act: Activation,
        options: FormOptions,
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.convolutional = index == 0
        if self.convolutional:
            blocks: list[nn.Module] = [MBConv(block, act) for block in stage.layers]
        else:
            blocks = [Block(block, resolution, act, options) for block in stage.layers]
        self.blocks = nn.Sequential(*blocks)
        merge = stage.downsample
        self.downsample = (
            nn.Identity()
            if merge is None
            else ConvChain((merge.conv1, merge.conv2, merge.conv3), act)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        if self.convolutional:
            x = self.blocks(x)  # (B, C, H, W)
        else:
            x = to_map(self.blocks(to_rows(x)), self.resolution)  # (B, C, H, W)
        out: Tensor = self.downsample(x)  # (B, C', H', W')
        return out


class ConvChain(nn.Module):
    """Folded convolutions with the activation between them and none after the last."""

    def __init__(self, conv_norms: tuple[Any, ...], act: Activation) -> None:
        super().__init__()
        self.convs = nn.ModuleList(fold_batch_norm(conv_norm) for conv_norm in conv_norms)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        for index, conv in enumerate(self.convs):
            x = conv(x if index == 0 else self.act(x))
        return x


class MBConv(nn.Module):
    """Inverted bottleneck: expand, depthwise, project, add, activate."""

    def __init__(self, block: Any, act: Activation) -> None:
        super().__init__()
        self.body = ConvChain((block.conv1, block.conv2, block.conv3), act)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        out: Tensor = self.act(self.body(x) + x)
        return out


class Block(nn.Module):
    """Window attention, depthwise local convolution and MLP."""

    def __init__(
        self, block: Any, resolution: tuple[int, int], act: Activation, options: FormOptions
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.window = block.window_size
        self.attention = Attention(block.attn, options)
        self.local_conv = fold_batch_norm(block.local_conv)
        self.mlp = Mlp(block.mlp, act, options)

    def forward(self, x: Tensor) -> Tensor:
        """Map rows (B * H * W, C) to the same shape."""
        x = x + self._attend(x)  # (B * H * W, C)
        x = to_rows(self.local_conv(to_map(x, self.resolution)))  # (B * H * W, C)
        out: Tensor = x + self.mlp(x)  # (B * H * W, C)
        return out

    def _attend(self, x: Tensor) -> Tensor:
        (height, width), w, channels = self.resolution, self.window, x.shape[1]
        if (height, width) == (w, w):
            whole: Tensor = self.attention(x)
            return whole
        rows, columns = -(-height // w), -(-width // w)
        padded_height, padded_width = rows * w, columns * w
        padded = (padded_height, padded_width) != (height, width)
        if padded:
            x = x.reshape(-1, height, width, channels)
            x = F.pad(x, (0, 0, 0, padded_width - width, 0, padded_height - height))
        x = x.reshape(-1, w, columns, w * channels).transpose(1, 2)  # (B*rows, columns, w, w*C)
        x = self.attention(x.reshape(-1, channels))  # (windows * N, C)
        x = x.reshape(-1, columns, w, w * channels).transpose(1, 2)  # (B*rows, w, columns, w*C)
        if padded:
            x = x.reshape(-1, padded_height, padded_width, channels)[:, :height, :width]
        return x.reshape(-1, channels)


class Mlp(nn.Module):
    """LayerNorm, Linear, activation, Linear."""

    def __init__(self, mlp: Any, act: Activation, options: FormOptions) -> None:
        super().__init__()
        self.norm, (self.fc1,) = fold_layer_norm(mlp.norm, (copy_linear(mlp.fc1),), options)
        self.fc2 = copy_linear(mlp.fc2)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        out: Tensor = self.fc2(self.act(self.fc1(self.norm(x))))
        return out


def to_rows(x: Tensor) -> Tensor:
    """Map (B, C, H, W) to (B * H * W, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def to_map(x: Tensor, resolution: tuple[int, int]) -> Tensor:
    """Map (B * H * W, C) to (B, C, H, W)."""
    return x.reshape(-1, *resolution, x.shape[1]).permute(0, 3, 1, 2)


def _halve(size: tuple[int, int]) -> tuple[int, int]:
    """Output size of a 3x3 convolution with stride 2 and padding 1."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2
