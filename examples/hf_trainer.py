"""Hugging Face's `Trainer` with a memory budget: the class in `optimizer_cls_and_kwargs` is all that is baoc's.

python examples/hf_trainer.py
"""

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import baoc_compile


def text(length: int = 64) -> list[dict[str, list[int]]]:
    """Return pieces of a text that every machine has, as bytes."""
    source = Path(argparse.__file__).read_bytes()
    starts = range(0, len(source) - length, length)
    return [{"input_ids": list(source[i : i + length]), "labels": list(source[i : i + length])} for i in starts]


def train(folder: str, steps: int = 60, resume: bool = False) -> Trainer:
    """Train a small Llama over bytes; `resume` goes on from the last checkpoint in `folder`."""
    torch.manual_seed(0)
    size = LlamaConfig(
        vocab_size=256, hidden_size=96, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4
    )
    trainer = Trainer(
        model=LlamaForCausalLM(size),
        args=TrainingArguments(
            folder, max_steps=steps, save_steps=steps // 2, logging_steps=20, use_cpu=True, report_to="none"
        ),
        train_dataset=text(),
        optimizer_cls_and_kwargs=(baoc_compile.with_budget(torch.optim.AdamW, "15%"), {"lr": 3e-3}),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        trained = train(folder)
        print(f"{baoc_compile.state_bytes(trained.optimizer):,} bytes of state")
        print(baoc_compile.report(trained.optimizer))
