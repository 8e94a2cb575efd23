"""The deployment form with channels first throughout, as Apple's Neural Engine likes tensors.

`channels_first` takes the layers of a `DeploymentForm` over, weight for weight, and changes what
flows between them, by "Deploying Transformers on the Apple Neural Engine" (Apple Machine Learning
Research, 2022):

1. Tokens are the last axis, (1, C, 1, S), so that a map becomes tokens by a reshape alone.
2. Linear layers are 1x1 convolutions.
3. LayerNorm standardises the channel axis; coremltools makes one operator of its parts.
4. Attention multiplies keys by queries, (N, d) by (d, N): heads split off the channel axis, and
   no product needs a transpose.

Each step is exact in real arithmetic. The only transposes left cut a map into windows and join it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyvit_edge.attention import Attention
from tinyvit_edge.deployment import DeploymentForm, Mlp
from tinyvit_edge.folding import Standardise

__all__ = ["ChannelsFirst", "channels_first"]


def channels_first(form: DeploymentForm) -> ChannelsFirst:
    """Rewrite a form whose layers are in floating point; its convolutions are shared.

    Raises:
        TypeError: a LayerNorm is in another target's form, or conditioned for quantization.

    Returns:
        A module in eval mode for one image: (1, channels, H, W) float32 to (1, classes) float32.
    """
    with torch.no_grad():
        return ChannelsFirst(form).eval().requires_grad_(False)


class ChannelsFirst(nn.Module):
    """Stem, stages and head."""

    def __init__(self, form: DeploymentForm) -> None:
        super().__init__()
        self.stem = form.stem
        self.stages = nn.ModuleList(
            stage if stage.convolutional else _Stage(stage) for stage in form.stages
        )
        self.norm, self.classifier = form.norm, form.classifier

    def forward(self, image: Tensor) -> Tensor:
        """Map an image (1, channels, H, W) to logits (1, classes)."""
        x = self.stem(image)  # (1, C, H/4, W/4)
        for stage in self.stages:
            x = stage(x)  # (1, C', H', W')
        x = x.mean((2, 3), keepdim=True).flatten(1)  # (1, C)
        logits: Tensor = self.classifier(self.norm(x))  # (1, classes)
        return logits


class _Stage(nn.Module):
    def __init__(self, stage: Any) -> None:
        super().__init__()
        self.resolution = stage.resolution
        self.blocks = nn.Sequential(*(_Block(block) for block in stage.blocks))
        self.downsample = stage.downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map (1, C, H, W) to (1, C', H', W')."""
        channels = x.shape[1]
        x = self.blocks(x.reshape(1, channels, 1, -1))  # (1, C, 1, S)
        out: Tensor = self.downsample(x.reshape(1, channels, *self.resolution))
        return out


class _Block(nn.Module):
    def __init__(self, block: Any) -> None:
        super().__init__()
        self.resolution, self.window = block.resolution, block.window
        self.attention = _Attention(block.attention)
        self.local_conv = block.local_conv
        self.mlp = _Mlp(block.mlp)

    def forward(self, x: Tensor) -> Tensor:
        """Map (1, C, 1, S) to the same shape."""
        x = x + self._attend(x)
        image = self.local_conv(x.reshape(1, -1, *self.resolution))  # (1, C, H, W)
        x = image.reshape(x.shape)
        out: Tensor = x + self.mlp(x)
        return out

    def _attend(self, x: Tensor) -> Tensor:
        (height, width), w, channels = self.resolution, self.window, x.shape[1]
        if (height, width) == (w, w):
            whole: Tensor = self.attention(x)
            return whole
        rows, columns = -(-height // w), -(-width // w)
        padded = (rows * w, columns * w) != (height, width)
        if padded:
            x = x.reshape(1, channels, height, width)
            x = F.pad(x, (0, columns * w - width, 0, rows * w - height))
        x = x.reshape(channels, rows, w, columns, w).permute(1, 3, 0, 2, 4)
        x = self.attention(x.reshape(rows * columns, channels, 1, w * w))  # (windows, C, 1, N)
        x = x.reshape(rows, columns, channels, w, w).permute(2, 0, 3, 1, 4)
        if padded:
            x = x.reshape(1, channels, rows * w, columns * w)[:, :, :height, :width]
        return x.reshape(1, channels, 1, height * width)


class _Attention(nn.Module):
    bias: Tensor

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads, self.head_dim = attention.heads, attention.head_dim
        self.norm = _Standardise(attention.norm)
        self.q, self.k, self.v = map(_pointwise, (attention.q, attention.k, attention.v))
        self.proj = _pointwise(attention.proj)
        # scores are (keys, queries) here
        self.register_buffer("bias", attention.biases().transpose(1, 2).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Map windows (W, C, 1, N) to the same shape."""
        x = self.norm(x)
        windows, tokens = x.shape[0], x.shape[3]
        q, k, v = (
            layer(x).reshape(windows, self.heads, self.head_dim, tokens)
            for layer in (self.q, self.k, self.v)
        )  # (W, h, d, N)
        scores = k.transpose(2, 3) @ q + self.bias  # (W, h, keys, queries)
        heads = v @ scores.softmax(2)  # (W, h, d, N)
        out: Tensor = self.proj(heads.reshape(windows, -1, 1, tokens))
        return out


class _Mlp(nn.Module):
    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.norm, self.act = _Standardise(mlp.norm), mlp.act
        self.fc1, self.fc2 = _pointwise(mlp.fc1), _pointwise(mlp.fc2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (1, C, 1, S) to the same shape."""
        out: Tensor = self.fc2(self.act(self.fc1(self.norm(x))))
        return out


class _Standardise(nn.Module):
    """LayerNorm over the channel axis, without scale and shift."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        if not isinstance(norm, Standardise) or norm.factor is not None:
            raise TypeError("channels first takes a native LayerNorm that nothing has conditioned")
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, 1, S) to mean 0 and variance 1 over C."""
        centred = x - x.mean(1, keepdim=True)
        variance = (centred * centred).mean(1, keepdim=True)  # (B, 1, 1, S)
        return centred * torch.rsqrt(variance + self.eps)


def _pointwise(linear: nn.Linear) -> nn.Conv2d:
    """A Linear layer as a 1x1 convolution."""
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1)
    conv.weight.copy_(linear.weight[:, :, None, None])
    assert conv.bias is not None
    conv.bias.copy_(linear.bias)
    return conv
