"""Inputs that cannot work, and what each has to be answered: node, what is wrong, words of the message."""

import math
from pathlib import Path

from pack.nodes.dtap_preview import DTAPPreview
from pack.nodes.train_embedding import ZOTextualInversion
from pack.nodes.train_hollow import HollowedNetTrainer
from pack.nodes.train_selective import SelectiveTrainer
from PIL import Image

NAN, INF = math.nan, math.inf
OUT = "sub-folder of ComfyUI's input folder"

# setting -> values that are refused by its name, of each trainer
NUMBERS = {
    SelectiveTrainer: {
        "steps": (0, -1), "rank": (0,), "learning_rate": (0.0, -1.0, NAN, INF), "zo_learning_rate": (0.0, NAN, INF),
        "zo_epsilon": (0.0, NAN, INF), "zo_perturbations": (0,), "low_res_ratio": (0.0, 1.5, NAN), "k": (NAN, INF),
        "t_mid": (-1,), "strategy": ("magic", ""), "seed": (-1, 2**64), "alpha": (-1.0, NAN),
        "target_modules": ("everything",), "batch_size": (0,), "weight_decay": (-1.0, NAN), "max_grad_norm": (NAN,),
        "min_snr_gamma": (-1.0, INF), "quantization": ("int2",), "resume": ("../../etc", "selective_x/step_000001"),
    },
    HollowedNetTrainer: {
        "hollow_fraction": (0.0, 1.0, NAN), "cache_samples": (0,), "mode": ("magic",), "sampling": ("magic",),
        "cache_dtype": ("int8",), "steps": (0,), "learning_rate": (NAN,),
    },
    ZOTextualInversion: {
        "steps": (0,), "learning_rate": (0.0, NAN), "zo_epsilon": (0.0, INF), "zo_perturbations": (0,),
        "t_low": (-1, 900), "subspace_size": (1,), "subspace_nu": (0.0, 1.0), "subspace_outside": (2.0, NAN),
        "eval_every": (-1,), "eval_samples": (0,), "patience": (-1,), "method": ("magic",), "num_vectors": (0,),
        "quantization": ("int2",), "token": ("", "my dog", "a,b", "a:b", "../x", "/etc/x", "a\\b", "con", "1.2",
        "x" * 300),
    },
    DTAPPreview: {
        "steps": (0,), "t_max": (0,), "t_mid": (-1, 2000), "k": (NAN, INF), "strategy": ("magic",),
        "low_res_ratio": (0.0, NAN), "zo_perturbations": (0,),
    },
}  # fmt: skip

NAMES = ("", "/etc/x", "../x", "a/../../x", "a:b", "con", "aux.safetensors", "x.", "x ", "a\x00b", "a?b", "x" * 300)

FOLDERS = {
    "..": OUT, "../..": OUT, "/etc": OUT, "": OUT, "nowhere": "there is no folder 'nowhere'", "a\x00b": OUT,
    "x" * 5000: "", "link_out": OUT, "robot2 [pocket]": "the pack has no subject", "empty": "no photos in",
}  # fmt: skip


def make_folders(root: Path) -> dict[str, str]:
    """Folders of photos that cannot be used, in the input folder; words of the message by name."""
    outside = root.parent / "outside"
    outside.mkdir()
    Image.new("RGB", (64, 64)).save(outside / "secret.png")
    (root / "link_out").symlink_to(outside)
    (root / "empty").mkdir()
    good = Image.new("RGB", (80, 64), "red")

    def folder(name: str) -> Path:
        path = root / name
        path.mkdir()
        good.save(path / "good.png")
        return path

    (folder("not_a_picture") / "bad.png").write_bytes(b"hello")
    (folder("no_bytes") / "bad.png").write_bytes(b"")
    whole = (root / "no_bytes" / "good.png").read_bytes()
    (folder("cut_off") / "bad.png").write_bytes(whole[: len(whole) // 2])
    (folder("linked_photo") / "bad.png").symlink_to(outside / "secret.png")
    (folder("broken_link") / "bad.png").symlink_to(root / "gone.png")
    Image.new("1", (20_000, 20_000)).save(folder("huge") / "bad.png")
    (folder("caption_bytes") / "good.txt").write_bytes(b"\xff\xfe\x00\x01")
    (folder("caption_empty") / "good.txt").write_text("")
    (folder("caption_long") / "good.txt").write_text("x" * 1_000_000)
    return {
        "not_a_picture": "bad.png: not a picture", "no_bytes": "bad.png: .*the file is empty",
        "cut_off": "bad.png: .*(damaged|not a picture)", "linked_photo": "bad.png: a link to .* outside",
        "broken_link": "bad.png: a link to .*(outside|not there)", "huge": "bad.png: too many pixels",
        "caption_bytes": "UTF-8", "caption_empty": "empty", "caption_long": "too many for a caption",
    }  # fmt: skip


SUBJECT = {"resolution": (0, 63, 65, 4096), "captions": ("magic",), "crop": ("magic",), "instance_prompt": ("", "  ")}
