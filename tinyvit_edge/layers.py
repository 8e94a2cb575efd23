"""The blocks that TinyViT (arXiv 2207.10666) is made of; every map is (B, C, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from tinyvit_edge.compat import tolerate_torchvision
from tinyvit_edge.configuration import TinyVitConfig

tolerate_torchvision()

from transformers.modeling_layers import GradientCheckpointingLayer  # noqa: E402

__all__ = [
    "Attention",
    "ConvNorm",
    "DropPath",
    "MBConv",
    "Mlp",
    "PatchEmbedding",
    "PatchMerging",
    "TinyVitBlock",
    "ZeroGainBatchNorm2d",
    "attention_bias_indices",
]


def attention_bias_indices(window: int) -> Tensor:
    """Column of the bias table for each pair of tokens in a window x window patch.

    The table has one entry per (|dy|, |dx|), so the index is |dy| * window + |dx|: int64,
    (window**2, window**2).
    """
    y, x = torch.arange(window).repeat_interleave(window), torch.arange(window).repeat(window)
    dy, dx = (y[:, None] - y[None, :]).abs(), (x[:, None] - x[None, :]).abs()
    return dy * window + dx


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training drops the branch of a whole sample."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class ZeroGainBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose gain starts at zero, so that the branch it ends adds nothing at first."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.weight)


class ConvNorm(nn.Module):
    """Convolution without bias, then BatchNorm; (B, C, H, W) -> (B, C', H', W')."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        zero_gain: bool = False,
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        norm = ZeroGainBatchNorm2d if zero_gain else nn.BatchNorm2d
        self.batch_norm = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.batch_norm(self.convolution(x))
        return y


class PatchEmbedding(nn.Module):
    """Stem: two convolutions of stride 2, (B, channels, H, W) -> (B, C, H/4, W/4)."""

    def __init__(self, config: TinyVitConfig) -> None:
        super().__init__()
        channels = config.hidden_sizes[0]
        self.seq = nn.Sequential(
            ConvNorm(config.num_channels, channels // 2, kernel=3, stride=2),
            ACT2FN[config.hidden_act],
            ConvNorm(channels // 2, channels, kernel=3, stride=2),
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        x: Tensor = self.seq(pixel_values)
        return x


class MBConv(GradientCheckpointingLayer):  # type: ignore[misc]
    """Inverted bottleneck with a residual; (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, config: TinyVitConfig, channels: int, drop_path: float) -> None:
        super().__init__()
        inner = int(channels * config.mbconv_expand_ratio)
        self.conv1 = ConvNorm(channels, inner)
        self.conv2 = ConvNorm(inner, inner, kernel=3, groups=inner)
        self.conv3 = ConvNorm(inner, channels, zero_gain=True)
        self.act = ACT2FN[config.hidden_act]
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The map, and None where `TinyVitBlock` has its attention probabilities."""
        y = self.act(self.conv1(x))  # (B, inner, H, W)
        y = self.act(self.conv2(y))  # (B, inner, H, W)
        y = self.drop_path(self.conv3(y))  # (B, C, H, W)
        return self.act(x + y), None


class PatchMerging(nn.Module):
    """Halves the resolution: (B, C, H, W) -> (B, C', ceil(H/2), ceil(W/2))."""

    def __init__(self, config: TinyVitConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels)
        self.conv2 = ConvNorm(out_channels, out_channels, kernel=3, stride=2, groups=out_channels)
        self.conv3 = ConvNorm(out_channels, out_channels)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv1(x))  # (B, C', H, W)
        x = self.act(self.conv2(x))  # (B, C', ceil(H/2), ceil(W/2))
        y: Tensor = self.conv3(x)  # (B, C', ceil(H/2), ceil(W/2))
        return y


class Attention(nn.Module):
    """Multi-head attention inside one window, with a learnt bias per |dy|, |dx| and head.

    The rows of `qkv` are grouped by head, and within a head q, k, v follow each other.
    """

    attention_bias_idxs: Tensor

    def __init__(self, config: TinyVitConfig, channels: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = channels // num_heads
        self.scale = self.head_dim**-0.5
        self.window_size = window
        self.norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window**2))
        self.register_buffer(
            "attention_bias_idxs", attention_bias_indices(window), persistent=False
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B*windows, N, C) -> the same shape, and probabilities (B*windows, heads, N, N)."""
        batch, tokens, channels = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, tokens, self.num_heads, 3 * self.head_dim)
        q, k, v = qkv.transpose(1, 2).chunk(3, dim=-1)  # (B*windows, heads, N, head_dim)
        bias = self.attention_biases[:, self.attention_bias_idxs]  # (heads, N, N)
        scores = (q * self.scale) @ k.transpose(-2, -1) + bias  # (B*windows, heads, N, N)
        probabilities = scores.softmax(dim=-1)  # (B*windows, heads, N, N)
        y = (probabilities @ v).transpose(1, 2)  # (B*windows, N, heads, head_dim)
        return self.proj(y.reshape(batch, tokens, channels)), probabilities


class Mlp(nn.Module):
    """LayerNorm and two linear layers; (B, L, C) -> (B, L, C)."""

    def __init__(self, config: TinyVitConfig, channels: int) -> None:
        super().__init__()
        inner = int(channels * config.mlp_ratio)
        self.norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(channels, inner)
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(inner, channels)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.act(self.fc1(self.norm(x))))  # (B, L, inner)
        y: Tensor = self.dropout(self.fc2(x))  # (B, L, C)
        return y


class TinyVitBlock(GradientCheckpointingLayer):  # type: ignore[misc]
    """Window attention, depthwise convolution, MLP; (B, C, H, W) -> (B, C, H, W)."""

    def __init__(
        self, config: TinyVitConfig, channels: int, num_heads: int, window: int, drop_path: float
    ) -> None:
        super().__init__()
        self.window_size = window
        self.attn = Attention(config, channels, num_heads, window)
        self.local_conv = ConvNorm(
            channels, channels, kernel=config.local_conv_size, groups=channels
        )
        self.mlp = Mlp(config, channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The map, and the attention probabilities (B * windows, heads, w*w, w*w)."""
        batch, channels, height, width = x.shape
        y, probabilities = self._window_attention(x.permute(0, 2, 3, 1))  # (B, H, W, C)
        x = self.local_conv(x + self.drop_path(y.permute(0, 3, 1, 2)))  # (B, C, H, W)
        x = x.flatten(2).transpose(1, 2)  # (B, L, C)
        x = x + self.drop_path(self.mlp(x))  # (B, L, C)
        return x.transpose(1, 2).reshape(batch, channels, height, width), probabilities

    def _window_attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, height, width, channels = x.shape
        w = self.window_size
        # Zeros go in ahead of the LayerNorm inside attention, and take part as tokens: the
        # original does so, and its weights expect it.
        x = F.pad(x, (0, 0, 0, -width % w, 0, -height % w))  # (B, rows*w, cols*w, C)
        rows, cols = x.shape[1] // w, x.shape[2] // w
        x = x.reshape(batch, rows, w, cols, w, channels).transpose(2, 3)  # (B, rows, cols, w, w, C)
        x, probabilities = self.attn(x.reshape(-1, w * w, channels))  # (B*windows, w*w, C)
        x = x.view(batch, rows, cols, w, w, channels).transpose(2, 3)  # (B, rows, w, cols, w, C)
        x = x.reshape(batch, rows * w, cols * w, channels)  # (B, rows*w, cols*w, C)
        return x[:, :height, :width], probabilities  # (B, H, W, C)
