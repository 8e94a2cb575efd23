"""TinyViT (arXiv 2207.10666) with Hugging Face's conventions: the reference of every comparison.

A stem of two strided convolutions, one stage of MBConv blocks, then stages of window attention,
a depthwise convolution and an MLP; between stages a strided convolution halves the resolution.
Numerically the model of microsoft/Cream (folder TinyViT); module names follow the unmerged port
in huggingface/transformers#28254. Importing this module registers the classes with `AutoConfig`,
`AutoModel`, `AutoModelForImageClassification`, `AutoBackbone` and `AutoImageProcessor`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tinyvit_edge.compat import open_backbone_folders, tolerate_torchvision
from tinyvit_edge.configuration import TinyVitConfig
from tinyvit_edge.image_processing import TinyVitImageProcessor
from tinyvit_edge.layers import (
    Attention,
    MBConv,
    PatchEmbedding,
    PatchMerging,
    TinyVitBlock,
    ZeroGainBatchNorm2d,
    attention_bias_indices,
)

tolerate_torchvision()

from transformers import (  # noqa: E402
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedModel,
)
from transformers import initialization as init  # noqa: E402
from transformers.backbone_utils import BackboneMixin  # noqa: E402
from transformers.modeling_outputs import BackboneOutput  # noqa: E402
from transformers.utils import ModelOutput  # noqa: E402
from transformers.utils.generic import can_return_tuple  # noqa: E402

__all__ = [
    "TinyVitBackbone",
    "TinyVitForImageClassification",
    "TinyVitImageClassifierOutput",
    "TinyVitModel",
    "TinyVitModelOutput",
    "TinyVitPreTrainedModel",
    "register",
]


@dataclass
class TinyVitModelOutput(ModelOutput):  # type: ignore[misc]
    """What `TinyVitModel` returns; L = H * W tokens, windows of w x w tokens.

    Args:
        last_hidden_state: (B, L, C) of the last stage.
        pooler_output: (B, C), the mean over the tokens, before the final LayerNorm.
        hidden_states: the stem's and each stage's tokens (B, L_i, C_i), a stage's taken after its
            blocks and before its downsampling; with `output_hidden_states`.
        attentions: probabilities of the last block of each attention stage,
            (B * windows, heads, w*w, w*w); with `output_attentions`.
        reshaped_hidden_states: `hidden_states` as maps (B, C_i, H_i, W_i).
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    reshaped_hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class TinyVitImageClassifierOutput(ModelOutput):  # type: ignore[misc]
    """`logits` (B, classes), `loss` () if labels were given, the rest as `TinyVitModelOutput`."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    reshaped_hidden_states: tuple[Tensor, ...] | None = None


class TinyVitStage(nn.Module):
    """Blocks at one resolution, then, except in the last stage, the downsampling to the next."""

    def __init__(self, config: TinyVitConfig, index: int, drop_paths: list[float]) -> None:
        super().__init__()
        channels = config.hidden_sizes[index]
        heads, window = config.num_heads[index], config.window_sizes[index]
        self.layers = nn.ModuleList(
            MBConv(config, channels, rate)
            if index == 0
            else TinyVitBlock(config, channels, heads, window, rate)
            for rate in drop_paths
        )
        last = index == config.num_stages - 1
        self.downsample = (
            None if last else PatchMerging(config, channels, config.hidden_sizes[index + 1])
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(B, C, H, W) -> the blocks' output, the next stage's input, the last probabilities."""
        probabilities = None
        for layer in self.layers:
            x, probabilities = layer(x)  # (B, C, H, W)
        return x, x if self.downsample is None else self.downsample(x), probabilities


class TinyVitEncoder(nn.Module):
    """The stages, one after the other."""

    def __init__(self, config: TinyVitConfig) -> None:
        super().__init__()
        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").tolist()
        self.stages = nn.ModuleList()
        for index, depth in enumerate(config.depths):
            start = sum(config.depths[:index])
            self.stages.append(TinyVitStage(config, index, rates[start : start + depth]))

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(B, C, H, W) -> each stage's map, and each attention stage's probabilities."""
        maps: list[Tensor] = []
        attentions: list[Tensor] = []
        for stage in self.stages:
            blocks_output, x, probabilities = stage(x)  # (B, C_i, H_i, W_i), the next input
            maps.append(blocks_output)
            if probabilities is not None:
                attentions.append(probabilities)
        return tuple(maps), tuple(attentions)


class TinyVitPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """Initialisation, loading and saving for all TinyViT models."""

    config_class = TinyVitConfig
    base_model_prefix = "tinyvit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ("MBConv", "TinyVitBlock")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The original's initialisation.

        Called only for modules that have parameters or buffers of their own.
        """
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        elif isinstance(module, Attention):
            init.zeros_(module.attention_biases)
            # Not in the state dict, and lost where the model was made on the meta device.
            init.copy_(module.attention_bias_idxs, attention_bias_indices(module.window_size))
        else:
            super()._init_weights(module)
            if isinstance(module, ZeroGainBatchNorm2d):
                init.zeros_(module.weight)


class TinyVitModel(TinyVitPreTrainedModel):
    """Features without a head. `layernorm` is for heads to apply to `pooler_output`."""

    def __init__(self, config: TinyVitConfig) -> None:
        super().__init__(config)
        self.embeddings = PatchEmbedding(config)
        self.encoder = TinyVitEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_sizes[-1], eps=config.layer_norm_eps)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> TinyVitModelOutput:
        """`pixel_values` float (B, channels, H, W), any H and W; see `TinyVitModelOutput`."""
        stem = self.embeddings(pixel_values)  # (B, C_0, H/4, W/4)
        maps, attentions = self.encoder(stem)
        tokens = maps[-1].flatten(2).transpose(1, 2)  # (B, L, C)
        features = (stem, *maps) if _asked(self, "hidden_states", output_hidden_states) else None
        return TinyVitModelOutput(
            last_hidden_state=tokens,
            pooler_output=tokens.mean(dim=1),
            hidden_states=features and tuple(m.flatten(2).transpose(1, 2) for m in features),
            attentions=attentions if _asked(self, "attentions", output_attentions) else None,
            reshaped_hidden_states=features,
        )


class TinyVitForImageClassification(TinyVitPreTrainedModel):
    """TinyViT with a linear classifier on the normalised mean of the tokens."""

    def __init__(self, config: TinyVitConfig) -> None:
        super().__init__(config)
        self.tinyvit = TinyVitModel(config)
        self.classifier = (
            nn.Linear(config.hidden_sizes[-1], config.num_labels)
            if config.num_labels
            else nn.Identity()
        )
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> TinyVitImageClassifierOutput:
        """`pixel_values` float (B, channels, H, W); `labels` int64 (B,) give a cross-entropy."""
        outputs = self.tinyvit(
            pixel_values,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = self.classifier(self.tinyvit.layernorm(outputs.pooler_output))  # (B, classes)
        return TinyVitImageClassifierOutput(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            reshaped_hidden_states=outputs.reshaped_hidden_states,
        )


class TinyVitBackbone(BackboneMixin, TinyVitPreTrainedModel):  # type: ignore[misc]
    """Feature maps of the stages named in `config.out_features`, for detectors and the like.

    A saved folder is loaded by this class's `from_pretrained`, or by `AutoBackbone`'s, which
    `tinyvit_edge.compat.open_backbone_folders` lets take one.
    """

    def __init__(self, config: TinyVitConfig) -> None:
        super().__init__(config)
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        self.tinyvit = TinyVitModel(config)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput:
        """`feature_maps`: (B, C_i, H_i, W_i) per name in `out_features`, in that order."""
        outputs = self.tinyvit(
            pixel_values,
            output_hidden_states=True,
            output_attentions=output_attentions,
            return_dict=True,
        )
        maps = dict(zip(self.stage_names, outputs.reshaped_hidden_states, strict=True))
        wanted = _asked(self, "hidden_states", output_hidden_states)
        return BackboneOutput(
            feature_maps=tuple(maps[name] for name in self.out_features),
            hidden_states=outputs.reshaped_hidden_states if wanted else None,
            attentions=outputs.attentions,
        )


def _asked(model: TinyVitPreTrainedModel, what: str, given: bool | None) -> bool:
    """Whether to return the optional output `what`: as given, else as the config says."""
    return bool(getattr(model.config, f"output_{what}") if given is None else given)


def register() -> None:
    """Teach Hugging Face's Auto classes `model_type` "tinyvit"; calling it twice is harmless."""
    AutoConfig.register(TinyVitConfig.model_type, TinyVitConfig, exist_ok=True)
    AutoModel.register(TinyVitConfig, TinyVitModel, exist_ok=True)
    AutoModelForImageClassification.register(
        TinyVitConfig, TinyVitForImageClassification, exist_ok=True
    )
    AutoBackbone.register(TinyVitConfig, TinyVitBackbone, exist_ok=True)
    open_backbone_folders()
    AutoImageProcessor.register(
        TinyVitConfig, image_processor_classes={"pil": TinyVitImageProcessor}, exist_ok=True
    )


register()
