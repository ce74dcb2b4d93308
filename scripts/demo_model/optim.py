"""Muon (momentum orthogonalized by Newton-Schulz, batched over experts and layers) for the matrices."""
import torch


def orthogonalize(g, steps=5):
    """Nearest semi-orthogonal matrices, roughly, of a stack [n, rows, cols] (Jordan et al., 2024)."""
    flip = g.shape[1] > g.shape[2]
    x = (g.mT if flip else g).bfloat16()
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).bfloat16()
    for _ in range(steps):
        a = x @ x.mT
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return x.mT if flip else x


class Muon(torch.optim.Optimizer):
    """params: (parameter, column widths): the last axis is split so that each part is orthogonalized alone."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        params = list(params)
        self.widths = {p: w for p, w in params}
        super().__init__([p for p, _ in params], {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        stacks = {}
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                m = state["momentum"]
                m.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(m, group["momentum"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                parts = zip(update.split(self.widths[p], -1), p.split(self.widths[p], -1))
                for u, target in parts:
                    u, target = (t.unsqueeze(0) if t.dim() == 2 else t for t in (u, target))
                    stacks.setdefault(u.shape[1:], []).append((u, target, group["lr"]))
        for shape, entries in stacks.items():
            scale = max(1.0, shape[1] / shape[0]) ** 0.5
            updates = orthogonalize(torch.cat([u for u, _, _ in entries]))
            for update, (u, target, lr) in zip(updates.split([u.shape[0] for u, _, _ in entries]), entries):
                target.add_(update, alpha=-lr * scale)
