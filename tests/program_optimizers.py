"""Optimizers whose programs have what those of stock ones lack: old values, counters in tensors, reductions."""

from __future__ import annotations

import torch


class ReadsOld(torch.optim.Optimizer):
    """One slot's new value goes into another slot, its old one into the parameter."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["trend"], state["power"] = torch.zeros_like(p), torch.zeros_like(p)
                old = state["trend"].clone()
                state["trend"].mul_(0.9).add_(p.grad, alpha=0.1)
                state["power"].mul_(0.99).addcmul_(state["trend"], state["trend"], value=0.01)
                p.sub_(group["lr"] * old / (state["power"].sqrt() + 1e-3))


class Counts(torch.optim.Optimizer):
    """Momentum that is corrected by a step count in a tensor, on the parameter's device."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["count"], state["trend"] = torch.zeros(()), torch.zeros_like(p)
                state["count"] += 1
                state["trend"].mul_(0.9).add_(p.grad, alpha=0.1)
                p.sub_(group["lr"] * state["trend"] / (1 - 0.9 ** state["count"]))


class Reduces(torch.optim.Optimizer):
    """Updates are scaled by norms and maxima of the whole tensor and of each row, and then by means of what that gives."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["trend"], state["power"] = torch.zeros_like(p), torch.zeros_like(p)
                state["trend"].mul_(0.9).add_(p.grad, alpha=0.1)
                state["power"].mul_(0.99).addcmul_(p.grad, p.grad, value=0.01)
                update = state["trend"] / (state["power"].sqrt() + 1e-3)
                update = update * (p.norm() / (update.norm() + 1e-3)) / (1 + p.grad.abs().max())
                rows = tuple(range(1, p.ndim))
                update = update / (1 + update.abs().amax(rows, keepdim=True) + p.grad.abs().mean(rows, keepdim=True))
                update = update * (1 + p.grad.abs().mean() + update.norm(dim=rows, keepdim=True))
                update = update / (1 + update.square().mean(0, keepdim=True) + p.grad.abs().amax(0, keepdim=True))
                p.sub_(update / update.square().mean().sqrt().clamp(min=1.0), alpha=group["lr"])


class KeepsLines(torch.optim.Optimizer):
    """Keeps an average of each row and of each column, and reads the average of all rows' as well."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["trend"] = torch.zeros_like(p)
                    state["row"], state["column"] = torch.zeros(len(p)), torch.zeros(1, *p.shape[1:])
                row, column, square = state["row"], state["column"], p.grad.square() + 1e-6
                row.lerp_(square.mean(dim=-1), 0.1)
                column.mul_(0.9).add_(square.mean(0, keepdim=True), alpha=0.1)
                update = p.grad * (row / row.mean()).rsqrt().unsqueeze(-1) * column.rsqrt()
                state["trend"].mul_(0.9).add_(update / update.square().mean().sqrt().clamp(min=1.0))
                p.sub_(state["trend"], alpha=group["lr"])
