"""Train with FSDP2 within a budget of optimizer state, save a distributed checkpoint, and go on from it.

torchrun --nproc-per-node 2 examples/fsdp2.py folder
torchrun --nproc-per-node 3 examples/fsdp2.py folder    # goes on from what 2 processes saved
"""

import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import baoc_compile

FOLDER = sys.argv[1] if len(sys.argv) > 1 else "fsdp2_checkpoint"


def main() -> None:
    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 16))
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    baoc_compile.prepare(optimizer, model=model, memory_budget="20%", warmup_steps=12, sample_steps=6)

    steps = {"done": torch.tensor(0)}

    def state() -> dict:
        model_state, optimizer_state = get_state_dict(model, optimizer)
        return {"model": model_state, "optimizer": optimizer_state, "steps": steps}

    if Path(FOLDER, ".metadata").exists():
        loaded = state()
        checkpoint.load(loaded, checkpoint_id=FOLDER)
        set_state_dict(model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
    first = int(steps["done"])
    for step in range(first, first + 10):
        inputs = torch.randn(32, 128, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), inputs[:, :16].sin())
        loss.backward()
        optimizer.step()
    steps["done"].fill_(first + 10)
    checkpoint.save(state(), checkpoint_id=FOLDER)
    size = baoc_compile.state_bytes(optimizer)
    print(
        f"rank {distributed.get_rank()}: steps {first} to {first + 10}, loss {loss.item():.4f}, {size} bytes of state"
    )
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
