"""CLIPs that understand `embedding:NAME` with no file of that name: the vectors are in memory.

ComfyUI's tokenizers look embeddings up by SDTokenizer._try_get_embedding; a copy of them finds ours in memory, and all
parsing is theirs. Tried against ComfyUI 0.30.
"""

import copy
from collections.abc import Mapping
from functools import partial

import torch
from comfy.sd import CLIP
from comfy.sd1_clip import SDTokenizer
from torch import Tensor, nn

from ..trainers.token_prompts import check_token_name
from .host import SUPPORTED

ENCODERS = ("clip_l", "clip_h", "clip_g")  # in the order in which SDXL joins them; pooled text is of the last


def with_token(clip: CLIP, name: str, vectors: Mapping[str, Tensor]) -> CLIP:
    """A clone of the CLIP that understands embedding:name, (n, w) by text encoder; no file is needed.

    Raises ValueError for a name that prompts cannot hold, and for vectors that do not fit the CLIP.
    """
    needed = {key: embedding_table(clip.cond_stage_model, key).embedding_dim for key in encoder_names(clip)}
    got = {key: vector.shape[-1] for key, vector in vectors.items()}
    if got != needed:
        raise ValueError(
            f"embedding: its vectors have widths {got}, the clip needs {needed}; connect the CLIP it was made with"
        )
    copies = {key: vector.detach().to("cpu", torch.float32, copy=True) for key, vector in vectors.items()}
    return with_lookup(clip, name, copies)


def with_lookup(clip: CLIP, name: str, vectors: Mapping[str, Tensor]) -> CLIP:
    """A clone that finds in `vectors`, whenever it tokenizes, what they are at that time."""
    clone = clip.clone()
    clone.tokenizer = copy.copy(clip.tokenizer)  # the clone shares it with the original
    for attribute, part in vars(clip.tokenizer).items():
        if isinstance(part, SDTokenizer):
            part = copy.copy(part)
            part.embedding_directory = part.embedding_directory or []  # None would turn embeddings off
            part._try_get_embedding = partial(_look_up, copy.copy(part), check_token_name(name), vectors)
            setattr(clone.tokenizer, attribute, part)
    return clone


def _look_up(stock: SDTokenizer, name: str, vectors: Mapping[str, Tensor], text: str) -> tuple:
    """SDTokenizer._try_get_embedding: the vectors (n, w) at the start of the text, their name, and the text after it.

    Older ComfyUIs leave the name out. A token in memory comes before a file of the same name.
    """
    parser = copy.copy(stock)
    parser.embedding_directory = []
    _, *named, leftover = type(parser)._try_get_embedding(parser, text)
    (found,) = named or text.split()[:1]
    if found.strip(",") == name:
        return vectors[stock.embedding_key], *named, leftover
    return stock._try_get_embedding(text)


def encoder_names(clip: CLIP) -> list[str]:
    """Names of its text encoders, as embedding files have them. Raises ValueError for CLIPs of another family."""
    present = {name for name, part in vars(clip.tokenizer).items() if isinstance(part, SDTokenizer)}
    names = [name for name in ENCODERS if name in present]
    if not names or present - set(names):
        raise ValueError(f"clip: got a {type(clip.cond_stage_model).__name__}, needs to be the CLIP of {SUPPORTED}")
    return names


def embedding_table(module: nn.Module, key: str) -> nn.Embedding:
    """The token vectors of one of a CLIP's text encoders."""
    return getattr(module, key).transformer.get_input_embeddings()
