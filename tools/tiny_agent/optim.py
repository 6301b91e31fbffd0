"""Muon for the weight matrices (orthogonalised momentum, K. Jordan 2024), batched over matrices of one shape."""

import collections

import torch


def orthogonalize(g, steps=5):
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrices; g: [n, rows, cols]."""
    x = g.bfloat16()
    flip = x.shape[1] > x.shape[2]
    if flip:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if flip else x


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr=0.02, momentum=0.95, weight_decay=0.01):
        groups = collections.defaultdict(list)
        for p in params:
            groups[p.shape].append(p)
        super().__init__([{"params": g} for g in groups.values()], dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params = group["params"]
            grads = torch.stack([p.grad for p in params])
            state = self.state[params[0]]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(grads)
            buffer = state["momentum"]
            buffer.lerp_(grads, 1 - group["momentum"])
            update = orthogonalize(grads.lerp(buffer, group["momentum"]))
            scale = group["lr"] * max(1.0, grads.shape[1] / grads.shape[2]) ** 0.5
            for p, u in zip(params, update):
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u.to(p.dtype), alpha=-scale)
