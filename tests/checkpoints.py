"""Full-size checkpoints with random weights: what memory, speed and key names are measured on where no real ones are.

    python tests/checkpoints.py KIND PATH    KIND: sd15 2.1 GB, sd21 2.6 GB, ssd1b 4.5 GB, sdxl 6.9 GB, standin 0.3 GB

Names, shapes and precision are those of the published float16 files, so the stock Load Checkpoint takes them for what
they stand for.
"""

import argparse
from pathlib import Path

import standin
import torch

SD1_UNET = standin.UNET | {
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "context_dim": 768,
    "adm_in_channels": None,
    "use_linear_in_transformer": False,
}
SD2_UNET = SD1_UNET | {"context_dim": 1024, "use_linear_in_transformer": True}
SDXL_UNET = standin.UNET | {
    "channel_mult": [1, 2, 4],
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "context_dim": 2048,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "use_linear_in_transformer": True,
}
SSD1B_UNET = SDXL_UNET | {
    "transformer_depth": [0, 0, 2, 2, 4, 4],
    "transformer_depth_middle": -1,
    "transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4],
}
FULL_SIZE = {
    "sd15": ("SD15", SD1_UNET),
    "sd21": ("SD20", SD2_UNET),
    "sdxl": ("SDXL", SDXL_UNET),
    "ssd1b": ("SSD1B", SSD1B_UNET),
}
CACHE = Path(__file__).resolve().parents[1] / ".checkpoints"
KINDS = ("standin", *FULL_SIZE)

VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}

# ComfyUI takes an SD 2.x file for a v-prediction model when this bias is spread by more than 0.09.
V_PREDICTION_MARK = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


def make_checkpoint(kind: str, path: Path) -> Path:
    """Write the checkpoint, unless it is there. ComfyUI has to be importable."""
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "standin":
        standin.make_standin(path)
    else:
        standin.write_random(path, full_size_layout(kind))
    return path


def cached_checkpoint(kind: str) -> Path:
    """The checkpoint of that kind, made once and kept in the checkout, ignored by git. ComfyUI has to be importable."""
    return make_checkpoint(kind, CACHE / f"{kind}.safetensors")


def full_size_layout(kind: str) -> dict[str, torch.Tensor]:
    """Names in the file and tensors without values, of U-Net, text encoders and VAE. sd21 is the 768-v one."""
    from comfy import supported_models
    from comfy.ldm.models.autoencoder import AutoencoderKL

    name, unet = FULL_SIZE[kind]
    with torch.device("meta"):
        vae = AutoencoderKL(ddconfig=VAE, embed_dim=4)
    layout = standin.checkpoint_layout(getattr(supported_models, name)(unet), vae)
    if kind == "sd21":
        layout[V_PREDICTION_MARK] = torch.linspace(-0.3, 0.3, layout[V_PREDICTION_MARK].numel(), dtype=torch.float16)
    return layout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("path", type=Path)
    arguments = parser.parse_args()
    from comfyui import put_on_path

    put_on_path()
    make_checkpoint(arguments.kind, arguments.path)
    print(f"{arguments.path}: {arguments.path.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
