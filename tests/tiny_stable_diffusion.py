"A Stable Diffusion of random weights, small enough for tests, in the layout of the real one."
from pathlib import Path
from typing import Any

import torch
from torch import nn

ENDS = ("<|startoftext|>", "<|endoftext|>")


def tokenizer() -> Any:
    "Bytes as tokens, and no merges."
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *ENDS]
    return CLIPTokenizer({word: n for n, word in enumerate(words)}, [], model_max_length=77)


def lively(network: nn.Module) -> nn.Module:
    "Random numbers where zeros were."
    with torch.no_grad():
        for weight in network.parameters():
            if not weight.any():
                nn.init.normal_(weight, std=0.1)
    return network


def control_net(**changes) -> nn.Module:
    "A ControlNetModel of diffusers, on two levels unless told otherwise."
    from diffusers import ControlNetModel

    torch.manual_seed(1)
    options = {
        "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
        "cross_attention_dim": 8, "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "conditioning_embedding_out_channels": (4, 8),
    }
    return lively(ControlNetModel(**(options | changes))).eval()


def pipeline() -> Any:
    "diffusers' pipeline over parts of random weights."
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionControlNetPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    unet = UNet2DConditionModel(
        sample_size=16, cross_attention_dim=8, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **blocks,
    )
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        **blocks,
    )
    text = CLIPTextConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=514, bos_token_id=512, eos_token_id=513,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )
    made = StableDiffusionControlNetPipeline(
        unet=unet, vae=autoencoder, text_encoder=CLIPTextModel(text), tokenizer=tokenizer(),
        scheduler=scheduler, controlnet=control_net(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def write(folder: Path) -> Path:
    "The folders unet, vae, text_encoder, tokenizer, scheduler and controlnet."
    pipeline().save_pretrained(folder)
    return folder
