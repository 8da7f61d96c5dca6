"""Fine-tuning of a pretrained sentence encoder, all of it."""

from __future__ import annotations

from evidence.minilm import LAYERS, PIECES, TOPICS, Classifier, load, random_batches
from evidence.workload import Workload

WORKLOAD = Workload(
    name="finetune",
    about=f"the first {LAYERS} layers of the pretrained all-MiniLM-L6-v2 with {PIECES:,} word pieces, "
    f"fine-tuned to tell from which of {len(TOPICS)} packages of the standard library a few lines are",
    loss="cross-entropy, nats per window",
    model=Classifier,
    load=load,
    batches=random_batches,
    lr=2e-4,
    batch_size=8,
)
