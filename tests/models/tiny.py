"""Tiny random pipelines of each kind of text-to-image model, in the layout of the Hub, for tests."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

_SHIFTED = dict(scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False)
RESOLUTION = 16  # pixels; the VAE makes 8x8 latents of 4 channels
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
POOLED = 12  # numbers of the pooled embedding of SDXL's second text encoder
TOKENS = 40  # that the text encoder reads: a character is a token


def make_tiny_stable_diffusion(
    folder: Path, prediction_type: str = "epsilon", seed: int = 0, variant: str | None = None
) -> Path:
    """Save it as stable-diffusion-v1-5 is saved, PNDM scheduler included; prompts are spelt in bytes.

    Args:
        variant: "fp16" saves half-precision weights alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = dict(vae=_vae(), text_encoder=_text_encoder(CLIPTextModel, 16), unet=_unet())
    options = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    options |= dict(tokenizer=_tokenizer(), scheduler=_scheduler(prediction_type))
    return _save(StableDiffusionPipeline, folder, variant, parts, options)


def make_tiny_stable_diffusion_xl(
    folder: Path, prediction_type: str = "epsilon", seed: int = 0, variant: str | None = None
) -> Path:
    """The same as stable-diffusion-xl-base-1.0 is saved, with its Euler scheduler."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = dict(
            vae=_vae(scaling_factor=0.13025, force_upcast=True),
            text_encoder=_text_encoder(CLIPTextModel, 16),
            text_encoder_2=_text_encoder(CLIPTextModelWithProjection, 24),
            unet=_unet_xl(),
        )
    betas = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler = EulerDiscreteScheduler(
        **betas, prediction_type=prediction_type, timestep_spacing="leading", steps_offset=1
    )
    options = dict(tokenizer=_tokenizer(), tokenizer_2=_tokenizer(), scheduler=scheduler)
    return _save(StableDiffusionXLPipeline, folder, variant, parts, options)


def make_tiny_stable_diffusion_3(folder: Path, t5: bool = True, seed: int = 0, **scheduler) -> Path:
    """The same as stable-diffusion-3-medium-diffusers is saved, with or without T5."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = dict(
            vae=_vae(**_SHIFTED),
            text_encoder=_text_encoder(CLIPTextModelWithProjection, 16),
            text_encoder_2=_text_encoder(CLIPTextModelWithProjection, 12),
            text_encoder_3=_t5(32),
            transformer=SD3Transformer2DModel(
                sample_size=RESOLUTION // 2,
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                caption_projection_dim=16,
                joint_attention_dim=32,
                pooled_projection_dim=2 * POOLED,
                pos_embed_max_size=8,
                dual_attention_layers=(0,),
                qk_norm="rms_norm",  # as 3.5
            ),
        )
    options = dict(tokenizer=_tokenizer(), tokenizer_2=_tokenizer(), tokenizer_3=_t5_tokenizer())
    options |= dict(scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | scheduler))
    if not t5:
        del parts["text_encoder_3"]
        options |= dict(text_encoder_3=None, tokenizer_3=None)
    return _save(StableDiffusion3Pipeline, folder, None, parts, options)


def make_tiny_flux(folder: Path, guidance_embeds: bool = True, seed: int = 0, **scheduler) -> Path:
    """The same as FLUX.1-dev is saved; without `guidance_embeds`, as FLUX.1-schnell."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = dict(
            vae=_vae(**_SHIFTED),
            text_encoder=_text_encoder(CLIPTextModel, 16),
            text_encoder_2=_t5(32),
            transformer=FluxTransformer2DModel(
                in_channels=16,  # 2x2 latents of 4 channels
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=32,
                pooled_projection_dim=16,
                guidance_embeds=guidance_embeds,
                axes_dims_rope=(2, 2, 4),
            ),
        )
    options = dict(tokenizer=_tokenizer(), tokenizer_2=_t5_tokenizer())
    settings = dict(shift=3.0, use_dynamic_shifting=True) if guidance_embeds else dict(shift=1.0)
    options |= dict(scheduler=FlowMatchEulerDiscreteScheduler(**settings | scheduler))
    return _save(FluxPipeline, folder, None, parts, options)


def _save(kind: type[DiffusionPipeline], folder: Path, variant: str | None, parts: dict, options: dict) -> Path:
    dtype = torch.float16 if variant == "fp16" else torch.float32
    pipeline = kind(**{name: part.to(dtype) for name, part in parts.items()}, **options)
    pipeline.save_pretrained(folder, variant=variant)
    for tokenizer in Path(folder).glob("tokenizer*"):
        if type(options[tokenizer.name]) is CLIPTokenizer:
            _write_tokenizer(tokenizer)
    return Path(folder)


def _unet_xl() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=RESOLUTION // 2,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16 + 24,  # of both text encoders
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + POOLED,
    )


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=RESOLUTION // 2,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,  # Trap: this is the number of heads
        norm_num_groups=8,
    )


def _vae(**options) -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=RESOLUTION,
        **options,
    )


def _text_encoder(kind: type, width: int) -> CLIPTextModel | CLIPTextModelWithProjection:
    size = len(_vocabulary()[0])
    return kind(
        CLIPTextConfig(
            vocab_size=size,
            hidden_size=width,
            intermediate_size=32,
            projection_dim=POOLED,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            # Trap: the defaults lie outside a small vocabulary.
            bos_token_id=size - 2,
            eos_token_id=size - 1,
            pad_token_id=size - 1,
        )
    )


def _t5(width: int) -> T5EncoderModel:
    size = dict(d_model=width, d_kv=8, d_ff=16, num_layers=2, num_heads=2, vocab_size=len(_t5_tokenizer()))
    return T5EncoderModel(T5Config(**size, feed_forward_proj="gated-gelu"))


def _t5_tokenizer() -> T5Tokenizer:
    """Reads characters."""
    specials = [(name, 0.0) for name in ("<pad>", "</s>", "<unk>")]
    return T5Tokenizer([*specials, ("\u2581", -2.0), *((chr(code), -3.0) for code in range(33, 127))], extra_ids=1)


def _scheduler(prediction_type: str) -> PNDMScheduler:
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    scheduler.register_to_config(clip_sample=False)  # as in stable-diffusion-v1-5's file, though PNDM has none
    return scheduler


def _vocabulary() -> tuple[dict[str, int], list[str]]:
    characters = list(bytes_to_unicode().values())
    words = [*characters, *(f"{each}</w>" for each in characters), BEGIN, END]
    return {word: number for number, word in enumerate(words)}, []


def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer(*_vocabulary(), model_max_length=TOKENS)


def _write_tokenizer(folder: Path):
    """The files of the Hub's tokenizer, which transformers 4 and 5 read, instead of a tokenizer.json of version 5."""
    for file in folder.iterdir():
        file.unlink()
    specials = dict(bos_token=BEGIN, eos_token=END, unk_token=END, pad_token=END)
    (folder / "vocab.json").write_text(json.dumps(_vocabulary()[0]), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(specials))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "do_lower_case": True} | specials)
    )
