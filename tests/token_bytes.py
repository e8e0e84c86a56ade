"""What a step of textual inversion takes on models of the true size, by part: the trainer itself, on fake tensors."""

from contextlib import ExitStack
from typing import NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from full_size import CPU, full_size_clip, full_size_model, full_size_network
from pack.nodes import host_token
from pack.nodes.host_embeddings import embedding_table, encoder_names
from pack.trainers.config import TokenConfig
from pack.trainers.fake_tensors import faked
from pack.trainers.memory import PhaseMeter
from pack.trainers.objective import Network
from pack.trainers.quantize import quantized
from pack.trainers.token_inversion import train_token
from pack.trainers.token_table import looked_up_in_ram

NAME = "my_dog"
CAPTION = f"a photo of a embedding:{NAME}"
PIXELS_PER_LATENT = 8


class TokenMemory(NamedTuple):
    """Bytes on the training device while steps run."""

    unet: int
    text_encoder: int  # without its table
    work: int  # activations, one layer's dequantised weight, and what else a step makes
    total: int
    table: int  # of words, which waits in RAM


def token_memory(kind: str, side_px: int, config: TokenConfig, dtype: torch.dtype = torch.float16) -> TokenMemory:
    """Of one photo of that size and one caption. Takes seconds, no GPU and no memory."""
    model, clip, network = full_size_model(kind, dtype), full_size_clip(kind, dtype), full_size_network(kind, dtype)
    return counted(model, clip, network, side_px // PIXELS_PER_LATENT, config)


def counted(model: ModelPatcher, clip: CLIP, network: Network, side: int, config: TokenConfig) -> TokenMemory:
    """Of a photo of side x side latents; neither model nor clip is run."""
    module, meter = clip.cond_stage_model, PhaseMeter(CPU)
    keys = encoder_names(clip)
    initial = {key: torch.zeros(1, embedding_table(module, key).embedding_dim) for key in keys}
    with ExitStack() as stack:
        module.set_clip_options({"execution_device": CPU})
        stack.callback(module.reset_clip_options)
        encoder = host_token.TextEncoder(clip, NAME, 0)
        (example,) = host_token.token_examples(model, network, encoder, [torch.zeros(4, side, side)], [[CAPTION]])
        network = stack.enter_context(faked(network, module))
        stack.enter_context(quantized([network.unet, module], config.quantization, CPU, CPU))
        table = stack.enter_context(looked_up_in_ram([embedding_table(module, key) for key in keys], CPU))
        parts = [sum(p.nbytes for p in (*part.parameters(), *part.buffers())) for part in (network.unet, module)]
        train_token(network, module, [example], initial, config, meter, lambda step: None, lambda: 0)
    total = max(meter.peak_bytes(name) for name in ("zo", "bp", "evaluation"))
    return TokenMemory(*parts, total - sum(parts), total, table)
