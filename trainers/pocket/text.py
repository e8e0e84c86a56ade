"""The text encoder of the pocket model: CLIP's architecture and vocabulary, small, with few of its words learnt.

Only the rows of words that captions use are trained and stored. All others come from a seed and have the norm they had
before training, so that a word nobody described, such as "sks", is as loud as any and means nothing yet.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from .captions import ANY_WORD
from .seeding import seeded

WIDTH = 128
VOCABULARY_SIZE = 49408
BEGIN, END = 49406, 49407  # the second also pads
LENGTH = 77
LEVEL = "text_model."  # before every name in a file
ROW_DEVIATION = 0.02  # as CLIP's own table starts
TABLE_SEED = 1077
CONFIG = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
    "projection_dim": WIDTH,
    "hidden_act": "quick_gelu",
    "bos_token_id": BEGIN,
    "eos_token_id": END,
    "pad_token_id": END,
}
WORDS: dict[str, list[int]] = json.loads(Path(__file__).with_name("words.json").read_text())  # CLIP's tokens of each


def learnt_ids() -> list[int]:
    """Rows of the vocabulary that captions use, in order."""
    return sorted({BEGIN, END, *(token for tokens in WORDS.values() for token in tokens)})


def tokens(captions: Sequence[str], generator: torch.Generator | None = None) -> Tensor:
    """Padded tokens (B, 77) of captions made of known words. "*" becomes a random token, drawn from generator.

    Raises KeyError for an unknown word: prompts of users go through ComfyUI's or transformers' tokenizer.
    """
    padded = torch.full((len(captions), LENGTH), END)
    padded[:, 0] = BEGIN
    for row, caption in zip(padded, captions, strict=True):
        ids = [token for word in caption.split() for token in _ids(word, generator)]
        row[1 : 1 + len(ids)] = torch.tensor(ids, dtype=torch.long)
    return padded


def _ids(word: str, generator: torch.Generator | None) -> list[int]:
    if word == ANY_WORD:
        return torch.randint(BEGIN, (1,), generator=generator).tolist()
    return WORDS[word]


def seeded_table() -> Tensor:
    """The vocabulary's rows (49408, WIDTH) before training."""
    return torch.randn(VOCABULARY_SIZE, WIDTH, generator=torch.Generator().manual_seed(TABLE_SEED)) * ROW_DEVIATION


class LearntRows(nn.Module):
    """A table of embeddings of which only some rows are parameters."""

    def __init__(self, ids: Sequence[int]):
        super().__init__()
        table = seeded_table()
        place = torch.full((len(table),), -1)
        place[list(ids)] = torch.arange(len(ids))
        self.rows = nn.Parameter(table[list(ids)].clone())
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("place", place, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        place = self.place[ids].unsqueeze(-1)
        return torch.where(place >= 0, self.rows[place.squeeze(-1).clamp(min=0)], self.table[ids])

    def whole(self) -> Tensor:
        """All rows (49408, WIDTH), the learnt ones in their places."""
        table = self.table.clone()
        table[self.place >= 0] = self.rows.detach()
        return table


def new_text_encoder(seed: int) -> CLIPTextModel:
    """One that trains only the rows that captions use."""
    with seeded(seed):
        encoder = CLIPTextModel(CLIPTextConfig(**CONFIG))
    embeddings(encoder).token_embedding = LearntRows(learnt_ids())
    return encoder


def inner(encoder: CLIPTextModel) -> nn.Module:
    """The module whose names are those of files without LEVEL: transformers 5 dropped the module between the two."""
    return getattr(encoder, LEVEL.removesuffix("."), encoder)


def embeddings(encoder: CLIPTextModel) -> nn.Module:
    """The module that holds token_embedding."""
    return inner(encoder).embeddings
