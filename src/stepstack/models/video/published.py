"""Wan and LTX of diffusers in this project's terms: velocities, latents, encoded prompts, adapters as files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    WanPipeline,
    WanTransformer3DModel,
)
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer, UMT5Config, UMT5EncoderModel

from stepstack.config import ConfigError
from stepstack.models.video.prompt_encoders import CutPrompts, Encoded
from stepstack.models.video.vae import LtxCodec, VideoCodec, WanCodec
from stepstack.models.whole import load_whole, reading

Kind = Literal["wan", "ltx"]
PIPELINES = {"wan": WanPipeline, "ltx": LTXPipeline}
CPU = torch.device("cpu")
TIMESTEPS = 1000  # timesteps of both models' schedulers: a timestep is 1000 sigma
PROMPTS_AT_ONCE = 8


class WanVelocity(nn.Module):
    """WanTransformer3DModel by the convention of ``diffusion.flow``: time 0 is noise, the velocity is data - noise."""

    def __init__(self, transformer: Any):
        super().__init__()
        self.transformer = transformer
        self.dtype: torch.dtype = transformer.patch_embedding.weight.dtype

    def forward(self, latents_BFCYX: Tensor, time_B: Tensor, text_BLC: Tensor, **unused: Tensor) -> Tensor:
        """Velocity [B, F, C, Y, X]. ``unused``: conditions of Step-Video's DiT, which this model does not know."""
        [predicted] = self.transformer(
            hidden_states=latents_BFCYX.transpose(1, 2).to(self.dtype),
            timestep=TIMESTEPS * (1 - time_B),
            encoder_hidden_states=text_BLC.to(self.dtype),
            return_dict=False,
        )
        return -predicted.transpose(1, 2)


class LtxVelocity(nn.Module):
    """LTXVideoTransformer3DModel by the convention of ``diffusion.flow``. It takes the latents as tokens.

    ``rope_scale``: seconds of a latent frame, rows and columns of pixels of a latent, by which positions are counted.
    """

    def __init__(self, transformer: Any, rope_scale: tuple[float, float, float]):
        super().__init__()
        self.transformer, self.rope_scale = transformer, rope_scale
        self.dtype: torch.dtype = transformer.proj_in.weight.dtype

    def forward(
        self, latents_BFCYX: Tensor, time_B: Tensor, text_BLC: Tensor, text_mask_BL: Tensor, **unused: Tensor
    ) -> Tensor:
        """Velocity [B, F, C, Y, X]. ``unused``: conditions of Step-Video's DiT, which this model does not know."""
        frames, _, height, width = latents_BFCYX.shape[1:]
        [predicted] = self.transformer(
            hidden_states=latents_BFCYX.permute(0, 1, 3, 4, 2).flatten(1, 3).to(self.dtype),
            timestep=TIMESTEPS * (1 - time_B),
            encoder_hidden_states=text_BLC.to(self.dtype),
            encoder_attention_mask=text_mask_BL,
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=self.rope_scale,
            return_dict=False,
        )
        return -predicted.unflatten(1, (frames, height, width)).permute(0, 1, 4, 2, 3)


class PipelinePrompts:
    """Prompt encoder behind a pipeline's own ``encode_prompt``: one text model, so that CLIP's sequence is empty.

    Wan attends to the zeros behind a prompt too, LTX to the prompt alone.
    """

    def __init__(self, pipe: Any, length: int):
        self.pipe, self.lengths = pipe, (length, 0)
        self.widths: tuple[int, int] = (pipe.text_encoder.config.d_model, 0)

    def cut(self, prompts: Sequence[str]) -> CutPrompts:
        """Number of prompts that are longer than the text model takes."""
        ids = self.pipe.tokenizer(list(prompts))["input_ids"] if prompts else []
        return CutPrompts(sum(len(row) > self.lengths[0] for row in ids))

    def encode(self, prompts: Sequence[str]) -> Encoded:
        """Encoded prompts on the CPU. ValueError for an empty list."""
        if not prompts:
            raise ValueError("no prompts to encode: give at least one")
        starts = range(0, len(prompts), PROMPTS_AT_ONCE)
        parts = [self._encode(list(prompts[start : start + PROMPTS_AT_ONCE])) for start in starts]
        text_BLC, mask_BL = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
        return Encoded(text_BLC, mask_BL, text_BLC.new_zeros(len(prompts), 0, 0))

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        text_BLC, *more = self.pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=self.lengths[0]
        )
        is_ltx = type(self.pipe) is LTXPipeline
        return text_BLC, more[0] if is_ltx else torch.ones(text_BLC.shape[:2], dtype=torch.bool)


@dataclass(frozen=True, slots=True)
class Published:
    """A text-to-video pipeline in a folder or on the hub. ``dtype``: type of the transformer's and the text model's
    weights. ``text_tokens``: tokens that a prompt is cut or filled to. ``frame_rate``: frames per second by which LTX
    counts its positions."""

    kind: Kind
    path: str
    dtype: torch.dtype
    text_tokens: int
    frame_rate: float = 25.0

    def check(self) -> None:
        """ConfigError where the folder holds another pipeline, or one whose training would be another."""
        with reading(self.path):
            index = DiffusionPipeline.load_config(self.path)
        wanted = PIPELINES[self.kind].__name__
        if index["_class_name"] != wanted:
            raise ConfigError(
                f"{self.path} holds a {index['_class_name']}: model.type={self.kind} takes a {wanted}, text to video"
            )
        if index.get("boundary_ratio") is not None or index.get("expand_timesteps"):
            raise ConfigError(
                f"{self.path} is of Wan 2.2, with two transformers or a timestep for each token, which is not trained "
                "here: give a pipeline of Wan 2.1"
            )

    def velocity(self) -> nn.Module:
        """The transformer, wrapped. ConfigError for weights that are not whole."""
        if self.kind == "wan":
            return WanVelocity(self._part(WanTransformer3DModel, "transformer", self.dtype))
        transformer = self._part(LTXVideoTransformer3DModel, "transformer", self.dtype)
        if (transformer.config.patch_size, transformer.config.patch_size_t) != (1, 1):
            raise ConfigError(f"{self.path}: LTX with patches of more than one latent is not trained here")
        frames, rows, columns = self.codec().stride
        return LtxVelocity(transformer, (frames / self.frame_rate, rows, columns))

    def codec(self, device: torch.device = CPU) -> VideoCodec:
        """The VAE on a device, in float32."""
        return WanCodec(self._vae(device)) if self.kind == "wan" else LtxCodec(self._vae(device))

    def _vae(self, device: torch.device) -> Any:
        cls = AutoencoderKLWan if self.kind == "wan" else AutoencoderKLLTXVideo
        return self._part(cls, "vae", torch.float32).eval().to(device)

    def prompts(self, device: torch.device) -> PipelinePrompts:
        """The text model alone, on a device."""
        cls = UMT5EncoderModel if self.kind == "wan" else T5EncoderModel
        # T5 may have been saved with its decoder
        encoder = load_whole(cls, self.path, part=True, subfolder="text_encoder", dtype=self.dtype).eval().to(device)
        with reading(self.path):
            pipe = PIPELINES[self.kind].from_pretrained(self.path, text_encoder=encoder, transformer=None, vae=None)
        return PipelinePrompts(pipe, self.text_tokens)

    def _part(self, cls: Any, subfolder: str, dtype: torch.dtype) -> Any:
        return load_whole(cls, self.path, subfolder=subfolder, dtype=dtype)

    def save_lora(self, folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        """Write adapters, atomically, for the pipeline's ``load_lora_weights``. ``weights``: under peft's names, from
        the transformer on; ``config``: peft's, whose scale and targets the file's header keeps."""
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        PIPELINES[self.kind].save_lora_weights(
            partial, transformer_lora_layers=dict(weights), transformer_lora_adapter_metadata=dict(config)
        )
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)

    def generate(
        self, prompts: Sequence[str], lora: Path | None, device: torch.device, **how: Any
    ) -> list[NDArray[np.uint8]]:
        """Clips [F, Y, X, RGB] by the pipeline itself, a prompt after the other, each with a seed of its place;
        ``lora``: folder of adapters. ``how``: what the pipeline's call takes."""
        with reading(self.path):
            vae = self._vae(device)
            pipe = PIPELINES[self.kind].from_pretrained(self.path, vae=vae, dtype=self.dtype).to(device)
        if lora is not None:
            pipe.load_lora_weights(lora)
        pipe.set_progress_bar_config(disable=True)
        if self.kind == "ltx":
            how["frame_rate"] = self.frame_rate
        clips = []
        for place, prompt in enumerate(prompts):
            generator = torch.Generator().manual_seed(place)
            [clip] = pipe(
                prompt, generator=generator, max_sequence_length=self.text_tokens, output_type="np", **how
            ).frames
            clips.append((clip * 255).round().astype(np.uint8))
        return clips


def tiny_pipeline(kind: Kind, alphabet: str) -> Any:
    """Text-to-video pipeline of random weights in the smallest shapes, whose text model reads letters of ``alphabet``.
    Wan's VAE has strides of 4 frames and 8 x 8 pixels, LTX's of 4 and 4 x 4."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -1.0) for letter in f"▁{alphabet}")]
    text: dict[str, Any] = {
        "vocab_size": len(vocabulary),
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 1,
        "num_heads": 4,
    }
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0)
    if kind == "wan":
        return WanPipeline(
            tokenizer=tokenizer,
            text_encoder=UMT5EncoderModel(UMT5Config(**text)),
            vae=AutoencoderKLWan(
                base_dim=4,
                z_dim=4,
                dim_mult=[1, 1, 1, 1],
                num_res_blocks=1,
                latents_mean=[0.0, 0.1, -0.1, 0.2],
                latents_std=[0.5, 0.6, 0.7, 0.8],
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            transformer=WanTransformer3DModel(
                in_channels=4,
                out_channels=4,
                num_attention_heads=2,
                attention_head_dim=32,
                text_dim=32,
                freq_dim=64,
                ffn_dim=128,
                num_layers=2,
            ),
        )
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=32,
        cross_attention_dim=64,
        caption_channels=32,
        num_layers=2,
    )
    text_encoder, scheduler = T5EncoderModel(T5Config(**text)), FlowMatchEulerDiscreteScheduler()
    return LTXPipeline(scheduler, vae, text_encoder, tokenizer, transformer)
