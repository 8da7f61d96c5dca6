"""The workloads, one file each, by name."""

from __future__ import annotations

from evidence.workload import Workload
from evidence.workloads import convnet, diffusion, finetune, gpt, lion, llama, lora, vit

WORKLOADS: dict[str, Workload] = {
    module.WORKLOAD.name: module.WORKLOAD for module in (gpt, llama, vit, diffusion, finetune, lora, convnet, lion)
}
