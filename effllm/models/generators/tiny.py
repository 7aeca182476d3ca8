"""Whole pipelines of SD3 and Wan, small enough for a CPU: autoencoders and transformers have learned strokes alone."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel
from transformers.models.t5.tokenization_t5 import T5Tokenizer
from transformers.models.umt5.configuration_umt5 import UMT5Config
from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

from effllm.models.generators.family import Family, load_texts

_CHARACTERS = [chr(code) for code in range(33, 127)]
_WIDTH = 32
_TEXT_LENGTH = 48
_CHANNELS = 4
# Of the autoencoder: steps, images or clips a step, their side. Clips have the fewest frames after an image.
_STEPS, _IMAGES, _CLIPS, _SIDE = 200, 16, 4, 16
_FRAMES = 5
# Of the transformer: steps, samples a step, tokens of a caption, and how times are shifted.
_FLOW_STEPS, _SAMPLES, _TOKENS, _SHIFT = 200, 8, 40, 3.0
# Wan's outputs are cut off at 1, where nothing is learned.
_CONTRAST = 0.8


def write_tiny_sd3(directory: Path, seed: int) -> None:
    """Stable Diffusion 3: latents of a quarter of the pixels' side."""
    torch.manual_seed(seed)
    coder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=_CHANNELS,
        sample_size=_SIDE,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    _learn_strokes(coder, seed, frames=1)
    mean, deviation = _latent_statistics(coder, seed, frames=1)
    coder.register_to_config(shift_factor=float(mean.mean()), scaling_factor=float(1 / deviation.mean()))
    transformer = SD3Transformer2DModel(
        sample_size=_SIDE // 2,
        patch_size=2,
        in_channels=_CHANNELS,
        out_channels=_CHANNELS,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=2 * _WIDTH,
        caption_projection_dim=64,
        pooled_projection_dim=2 * _WIDTH,
        pos_embed_max_size=24,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    clip = _clip_tokenizer()
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=coder,
        text_encoder=_clip(len(clip)),
        tokenizer=clip,
        text_encoder_2=_clip(len(clip)),
        tokenizer_2=_clip_tokenizer(),
        text_encoder_3=T5EncoderModel(T5Config(**_t5(), d_model=2 * _WIDTH)),
        tokenizer_3=_t5_tokenizer(),
    )
    _save(pipeline, directory)


def write_tiny_wan(directory: Path, seed: int) -> None:
    """Wan: latents of a quarter of the pixels' side and of half the frames after the first."""
    torch.manual_seed(seed)
    coder = AutoencoderKLWan(
        base_dim=8,
        z_dim=_CHANNELS,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.0] * _CHANNELS,
        latents_std=[1.0] * _CHANNELS,
        scale_factor_temporal=2,
        scale_factor_spatial=2,
    )
    _learn_strokes(coder, seed, _FRAMES)
    mean, deviation = _latent_statistics(coder, seed, _FRAMES)
    coder.register_to_config(latents_mean=mean.tolist(), latents_std=deviation.tolist())
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=_CHANNELS,
        out_channels=_CHANNELS,
        text_dim=_WIDTH,
        freq_dim=64,
        ffn_dim=128,
        num_layers=3,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    )
    pipeline = WanPipeline(
        tokenizer=_t5_tokenizer(),
        text_encoder=UMT5EncoderModel(UMT5Config(**_t5(), d_model=_WIDTH)),
        vae=coder,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer,
    )
    _save(pipeline, directory)


def _save(pipeline: Any, directory: Path) -> None:
    pipeline.save_pretrained(directory, safe_serialization=True)
    (directory / "README.md").unlink(missing_ok=True)


def _clip_tokenizer() -> CLIPTokenizer:
    """Characters, and characters that end a word, as CLIP's smallest pieces are."""
    pieces = [*_CHARACTERS, *(f"{character}</w>" for character in _CHARACTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)}, merges=[], model_max_length=_TEXT_LENGTH
    )


def _t5_tokenizer() -> T5Tokenizer:
    """Characters, each as likely as any."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *_CHARACTERS]
    return T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0, model_max_length=512)


def _clip(words: int) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=_TEXT_LENGTH,
        projection_dim=_WIDTH,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=words - 1,
        # Words at the size of published ones' outputs, so that captions differ.
        initializer_factor=3.0,
    )
    return CLIPTextModelWithProjection(config)


def _t5() -> dict[str, Any]:
    return {
        "vocab_size": 4 + len(_CHARACTERS),
        "d_kv": 16,
        "d_ff": 2 * _WIDTH,
        "num_layers": 2,
        "num_heads": 2,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def _strokes(generator: torch.Generator, count: int, frames: int) -> torch.Tensor:
    """Blurred dark lines on white paper that move to the right, float32 from -1 to 1 [count, 3, frames, side, side]."""
    places = torch.arange(_SIDE, dtype=torch.float32)
    rows, columns = torch.meshgrid(places, places, indexing="ij")
    ends = torch.rand(count, 3, 2, 2, generator=generator) * _SIDE
    width = 0.7 + torch.rand(count, 3, generator=generator)
    ink = torch.zeros(count, frames, _SIDE, _SIDE)
    for frame in range(frames):
        for line in range(3):
            begin, end = (ends[:, line, side, :, None, None] for side in (0, 1))
            along = end - begin
            across = torch.stack([rows, columns])[None] - begin
            share = ((across * along).sum(1) / (along**2).sum(1).clamp(min=1e-3)).clamp(0, 1)
            distance = (across - share[:, None] * along).norm(dim=1)
            drawn = torch.exp(-((distance / width[:, line, None, None]) ** 2))
            ink[:, frame] = torch.maximum(ink[:, frame], torch.roll(drawn, frame, dims=-1))
    return (1 - 2 * ink)[:, None].expand(-1, 3, -1, -1, -1).contiguous()


def _images(generator: torch.Generator, coder: Any, count: int, frames: int) -> torch.Tensor:
    drawn = _strokes(generator, count, frames)
    return drawn if isinstance(coder, AutoencoderKLWan) else drawn[:, :, 0]


def _learn_strokes(coder: Any, seed: int, frames: int) -> None:
    """Train an autoencoder until strokes come back, with little noise in between."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(coder.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=_STEPS)
    for _ in range(_STEPS):
        images = _images(generator, coder, _IMAGES if frames == 1 else _CLIPS, frames)
        mean = coder.encode(images).latent_dist.mean
        noised = mean + 0.05 * torch.randn(mean.shape, generator=generator)
        # Latents that stay near one are what a model of flow is made for.
        loss = (coder.decode(noised).sample - _CONTRAST * images).square().mean() + 1e-3 * mean.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    coder.eval()


@torch.no_grad()
def _latent_statistics(coder: Any, seed: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel of latents."""
    images = _images(torch.Generator().manual_seed(seed + 1), coder, 64, frames)
    channels = coder.encode(images).latent_dist.mode().transpose(0, 1).flatten(1)
    return channels.mean(dim=1), channels.std(dim=1)


def learn_to_draw(family: Family, directory: Path, seed: int) -> None:
    """Train the transformer of a pipeline by rectified flow until it draws strokes, with a caption and without."""
    coder, transformer = family.load_autoencoder(directory, "cpu"), family.load_transformer(directory)
    transformer.requires_grad_(True).train()
    with torch.no_grad():
        texts = family.encode_texts(load_texts(family, directory, "cpu"), ["", "strokes"], _TOKENS)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=_FLOW_STEPS)
    for _ in range(_FLOW_STEPS):
        drawn = _strokes(generator, _SAMPLES, _FRAMES if family.is_video else 1).transpose(1, 2)
        with torch.no_grad():
            latents = family.encode(coder, ((drawn + 1) * 127.5).round().byte())
        noise = torch.randn(latents.shape, generator=generator)
        times = torch.sigmoid(torch.randn(_SAMPLES, generator=generator))
        times = _SHIFT * times / (1 + (_SHIFT - 1) * times)
        share = times.view(-1, *(1,) * (latents.ndim - 1))
        captioned = torch.randint(2, (_SAMPLES,), generator=generator)
        (output,) = transformer(
            hidden_states=(1 - share) * latents + share * noise,
            timestep=1000 * times,
            return_dict=False,
            **{name: values[captioned] for name, values in texts.items()},
        )
        loss = (output - (noise - latents)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    save: Any = transformer.eval().save_pretrained
    save(directory / "transformer")
