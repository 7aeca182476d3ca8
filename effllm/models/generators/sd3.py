"""Stable Diffusion 3 and 3.5 (Esser et al. 2024)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.models.generators.family import Family, Layer

if TYPE_CHECKING:
    from torch import Tensor

# Pixels of a latent's side, and tokens of the two CLIP encoders, which come before those of T5.
_DOWNSCALE, _CLIP_TOKENS = 8, 77


class Sd3(Family):
    """Images; text by two CLIP encoders and T5."""

    name: ClassVar[str] = "sd3"
    pipeline: ClassVar[str] = "StableDiffusion3Pipeline"
    transformer: ClassVar[str] = "SD3Transformer2DModel"
    autoencoder: ClassVar[str] = "AutoencoderKL"
    parts: ClassVar[Sequence[str]] = (
        "transformer",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "tokenizer",
        "tokenizer_2",
        "tokenizer_3",
        "scheduler",
    )
    joints: ClassVar[Sequence[tuple[str, str]]] = (
        ("transformer.in_channels", "vae.latent_channels"),
        ("transformer.joint_attention_dim", "text_encoder_3.d_model"),
        ("transformer.pooled_projection_dim", "text_encoder.projection_dim + text_encoder_2.projection_dim"),
    )
    is_video: ClassVar[bool] = False

    def load_autoencoder(self, directory: Path, device: str) -> Any:
        from effllm.models.autoencoder import load_autoencoder

        return load_autoencoder(directory / "vae", device)

    def encode(self, autoencoder: Any, pixels: "Tensor") -> "Tensor":
        return autoencoder.encode(pixels[:, 0])

    def decode(self, autoencoder: Any, latents: "Tensor") -> "Tensor":
        return autoencoder.decode(latents)[:, None]

    def encode_texts(self, pipeline: Any, captions: list[str], tokens: int) -> Mapping[str, "Tensor"]:
        hidden, _, pooled, _ = pipeline.encode_prompt(
            prompt=captions,
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=False,
            max_sequence_length=tokens,
        )
        return {"encoder_hidden_states": hidden, "pooled_projections": pooled}

    def size_step(self, directory: Path) -> tuple[int, int]:
        from effllm.models.checkpoint.files import CONFIG, read_object

        blocks = read_object(directory / "vae" / CONFIG, str(directory))["block_out_channels"]
        patch = read_object(directory / "transformer" / CONFIG, str(directory))["patch_size"]
        return int(2 ** (len(blocks) - 1) * patch), 1

    def largest(self, directory: Path) -> tuple[int, int]:
        from effllm.models.checkpoint.files import CONFIG, read_object

        places = read_object(directory / "transformer" / CONFIG, str(directory))["pos_embed_max_size"]
        return places * self.size_step(directory)[0], 1

    def patches(self, transformer: Any, shape: Sequence[int]) -> int:
        patch = transformer.config.patch_size
        return (shape[1] // patch) * (shape[2] // patch)

    def layers(self, config: Mapping[str, Any]) -> dict[str, Layer]:
        width = _width(config)
        embedder = "time_text_embed."
        found = {
            f"{embedder}timestep_embedder.linear_1": Layer(256, width, "one"),
            f"{embedder}timestep_embedder.linear_2": Layer(width, width, "one"),
            f"{embedder}text_embedder.linear_1": Layer(config["pooled_projection_dim"], width, "one"),
            f"{embedder}text_embedder.linear_2": Layer(width, width, "one"),
            "context_embedder": Layer(config["joint_attention_dim"], width, "texts"),
            "norm_out.linear": Layer(width, 2 * width, "one"),
            "proj_out": Layer(width, config["patch_size"] ** 2 * config["out_channels"], "patches"),
        }
        for number in range(config["num_layers"]):
            found |= {
                f"transformer_blocks.{number}.{name}": layer
                for name, layer in _block(
                    width,
                    is_dual=number in config["dual_attention_layers"],
                    is_last=number == config["num_layers"] - 1,
                ).items()
            }
        return found

    def loose_parameters(self, config: Mapping[str, Any]) -> int:
        width = _width(config)
        norms = 4 * config["num_layers"] + 2 * len(config["dual_attention_layers"]) if config["qk_norm"] else 0
        return width * (config["patch_size"] ** 2 * config["in_channels"] + 1) + norms * config["attention_head_dim"]

    def score_products(self, config: Mapping[str, Any], patches: int, texts: int) -> int:
        joint, dual = config["num_layers"], len(config["dual_attention_layers"])
        return 2 * _width(config) * (joint * (patches + texts) ** 2 + dual * patches**2)

    def rows(self, config: Mapping[str, Any], size: tuple[int, int], frames: int, text_tokens: int) -> tuple[int, int]:
        side = _DOWNSCALE * config["patch_size"]
        return (size[0] // side) * (size[1] // side), _CLIP_TOKENS + text_tokens

    def text_numbers(self, config: Mapping[str, Any], texts: int) -> int:
        return texts * config["joint_attention_dim"] + config["pooled_projection_dim"]

    def write_tiny(self, directory: Path, seed: int) -> None:
        from effllm.models.generators.tiny import learn_to_draw, write_tiny_sd3

        write_tiny_sd3(directory, seed)
        learn_to_draw(self, directory, seed)


def _width(config: Mapping[str, Any]) -> int:
    return int(config["num_attention_heads"] * config["attention_head_dim"])


def _block(width: int, is_dual: bool, is_last: bool) -> dict[str, Layer]:
    """The layers of a block by their names in it; of the last one texts go no further."""
    square, texts = Layer(width, width, "patches"), Layer(width, width, "texts")
    found = {f"attn.{name}": square for name in ("to_q", "to_k", "to_v", "to_out.0")}
    found |= {f"attn.{name}": texts for name in ("add_q_proj", "add_k_proj", "add_v_proj")}
    found |= {f"attn2.{name}": square for name in ("to_q", "to_k", "to_v", "to_out.0") if is_dual}
    found["norm1.linear"] = Layer(width, (9 if is_dual else 6) * width, "one")
    found["norm1_context.linear"] = Layer(width, (2 if is_last else 6) * width, "one")
    found["ff.net.0.proj"] = Layer(width, 4 * width, "patches")
    found["ff.net.2"] = Layer(4 * width, width, "patches")
    if not is_last:
        found["attn.to_add_out"] = texts
        found["ff_context.net.0.proj"] = Layer(width, 4 * width, "texts")
        found["ff_context.net.2"] = Layer(4 * width, width, "texts")
    return found
