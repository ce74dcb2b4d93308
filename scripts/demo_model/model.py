"""A compact Qwen3-MoE for training on a CPU: bf16 matrix products, fp32 residual stream and routing.

Weights are stored as [in, out] and per-layer expert stacks; export.py gives them their published
names and orientation.
"""
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    vocab: int = 2048
    hidden: int = 192
    layers: int = 6
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 32
    experts: int = 32
    top_k: int = 4
    intermediate: int = 96
    rope_theta: float = 10000.0
    eps: float = 1e-6

    def to_dict(self):
        return asdict(self)


TILE = 32  # expert row counts are padded to this, so that oneDNN sees few distinct shapes
HEAD_ROWS = 512  # rows of logits in flight: they stay in cache


class GroupedLinear(torch.autograd.Function):
    """rows[start_e:end_e] @ weight[e] for every expert e; rows are sorted by expert."""

    @staticmethod
    def forward(ctx, rows, weight, counts):
        ctx.save_for_backward(rows, weight)
        ctx.counts = counts
        out = rows.new_empty(rows.shape[0], weight.shape[2])
        for e, (x, y) in enumerate(zip(rows.split(counts), out.split(counts))):
            torch.mm(x, weight[e], out=y)
        return out

    @staticmethod
    def backward(ctx, grad):
        rows, weight = ctx.saved_tensors
        grad_rows, grad_weight = torch.empty_like(rows), torch.empty_like(weight)
        parts = zip(rows.split(ctx.counts), grad.split(ctx.counts), grad_rows.split(ctx.counts))
        for e, (x, g, gx) in enumerate(parts):
            torch.mm(g, weight[e].T, out=gx)
            torch.mm(x.T, g, out=grad_weight[e])
        return grad_rows, grad_weight, None


class Dispatch(torch.autograd.Function):
    """x[source]; row n of x went to the slots[n * k : (n + 1) * k]."""

    @staticmethod
    def forward(ctx, x, source, slots):
        ctx.save_for_backward(slots)
        ctx.shape = x.shape
        return x[source]

    @staticmethod
    def backward(ctx, grad):
        (slots,) = ctx.saved_tensors
        return grad[slots].view(ctx.shape[0], -1, ctx.shape[1]).sum(1), None, None


class Collect(torch.autograd.Function):
    """rows[slots], every slot taken at most once."""

    @staticmethod
    def forward(ctx, rows, slots):
        ctx.save_for_backward(slots)
        ctx.shape = rows.shape
        return rows[slots]

    @staticmethod
    def backward(ctx, grad):
        (slots,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).index_copy_(0, slots, grad), None


class HeadLoss(torch.autograd.Function):
    """sum(weight * cross entropy) of hidden @ embed.T, a few rows at a time, gradients made on the way."""

    @staticmethod
    def forward(ctx, hidden, embed, targets, weights):
        h, e = hidden.bfloat16(), embed.bfloat16()
        grad_h, grad_e = torch.empty_like(h), torch.zeros_like(embed)
        total = 0.0
        for at in range(0, h.shape[0], HEAD_ROWS):
            part = slice(at, at + HEAD_ROWS)
            logits = (h[part] @ e.T).float()
            true = logits.gather(1, targets[part, None])
            lse = logits.logsumexp(1, keepdim=True)
            total += ((lse - true)[:, 0] * weights[part]).sum()
            grad = logits.sub_(lse).exp_().scatter_add_(1, targets[part, None], -torch.ones_like(true))
            grad = grad.mul_(weights[part, None]).bfloat16()
            torch.mm(grad, e, out=grad_h[part])
            grad_e += grad.T @ h[part]
        ctx.save_for_backward(grad_h, grad_e)
        return total

    @staticmethod
    def backward(ctx, grad):
        grad_h, grad_e = ctx.saved_tensors
        return grad_h.float() * grad, grad_e * grad, None, None


def matmul(x, weight):
    return x.bfloat16() @ weight.bfloat16()


def norm_rotate(x, weight, cos, sin, eps):
    """Per-head RMS norm and rotary embedding of [batch, length, heads, head_dim], in bf16."""
    x = x.float()
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).bfloat16()


def swiglu(x):
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


fused = {f.__name__: torch.compile(f, dynamic=d) for f, d in ((norm_rotate, False), (swiglu, True), (rms_norm, False))}
plain = {f.__name__: f for f in (norm_rotate, swiglu, rms_norm)}


class Layer(nn.Module):
    op = plain

    def __init__(self, c: Config):
        super().__init__()
        self.c = c

        def matrix(*shape, gain=1.0):
            return nn.Parameter(torch.randn(*shape) * gain * shape[-2] ** -0.5)

        self.attention_norm = nn.Parameter(torch.ones(c.hidden))
        self.qkv = matrix(c.hidden, (c.heads + 2 * c.kv_heads) * c.head_dim)
        self.q_norm = nn.Parameter(torch.ones(c.head_dim))
        self.k_norm = nn.Parameter(torch.ones(c.head_dim))
        self.o = matrix(c.heads * c.head_dim, c.hidden, gain=0.2)
        self.moe_norm = nn.Parameter(torch.ones(c.hidden))
        self.router = matrix(c.hidden, c.experts, gain=0.5)
        self.gate_up = matrix(c.experts, c.hidden, 2 * c.intermediate)
        self.down = matrix(c.experts, c.intermediate, c.hidden, gain=0.2)

    def attend(self, x, mask, cos, sin):
        c, (batch, length, _) = self.c, x.shape
        q, k, v = matmul(x, self.qkv).split([c.heads * c.head_dim] + [c.kv_heads * c.head_dim] * 2, -1)
        q = self.op["norm_rotate"](q.view(batch, length, c.heads, -1), self.q_norm, cos, sin, c.eps)
        k = self.op["norm_rotate"](k.view(batch, length, c.kv_heads, -1), self.k_norm, cos, sin, c.eps)
        v = v.view(batch, length, c.kv_heads, -1)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        k, v = (t.repeat_interleave(c.heads // c.kv_heads, 1) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return matmul(out.transpose(1, 2).reshape(batch, length, -1), self.o).float()

    def route(self, x):
        """Weights and expert ids of the top-k, and the load-balancing loss (Switch Transformer, eq. 4)."""
        probs = (x @ self.router).softmax(-1)
        weight, chosen = probs.topk(self.c.top_k, -1)
        load = torch.bincount(chosen.flatten(), minlength=self.c.experts)
        balance = self.c.experts * (load / load.sum() * probs.mean(0)).sum()
        return weight / weight.sum(-1, keepdim=True), chosen, load, balance

    def experts(self, x):
        weight, chosen, load, balance = self.route(x)
        self.load = load
        padded = (load + TILE - 1) // TILE * TILE
        order = chosen.flatten().argsort(stable=True)
        shift = (padded.cumsum(0) - padded) - (load.cumsum(0) - load)
        slots = torch.empty_like(order)
        slots[order] = torch.arange(order.numel()) + shift.repeat_interleave(load)
        source = torch.zeros(int(padded.sum()), dtype=torch.long)
        source[slots] = torch.arange(order.numel()) // self.c.top_k
        counts = padded.tolist()
        rows = Dispatch.apply(x.bfloat16(), source, slots)
        rows = self.op["swiglu"](GroupedLinear.apply(rows, self.gate_up.bfloat16(), counts))
        out = GroupedLinear.apply(rows, self.down.bfloat16(), counts)
        out = Collect.apply(out, slots).view(-1, self.c.top_k, x.shape[-1])
        return torch.bmm(weight.bfloat16().unsqueeze(1), out).squeeze(1).float(), balance

    def forward(self, x, mask, cos, sin):
        x = x + self.attend(self.op["rms_norm"](x, self.attention_norm, self.c.eps), mask, cos, sin)
        y = self.op["rms_norm"](x, self.moe_norm, self.c.eps)
        y, balance = self.experts(y.view(-1, self.c.hidden))
        return x + y.view_as(x), balance


class Model(nn.Module):
    compiled = True  # fuse the elementwise parts in training mode

    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.embed = nn.Parameter(torch.randn(c.vocab, c.hidden) * 0.05)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = nn.Parameter(torch.ones(c.hidden))

    def forward(self, ids, documents=None):
        """Hidden states [batch, length, hidden] before the head, and the mean balance loss.

        documents: [batch, length] ids; a token attends within its own document only.
        """
        length = ids.shape[1]
        angles = torch.outer(torch.arange(length, dtype=torch.float32),
                             self.c.rope_theta ** (-torch.arange(0, self.c.head_dim, 2) / self.c.head_dim))
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        mask = None
        if documents is not None:
            mask = (documents[:, None, :, None] == documents[:, None, None, :]).tril()
            mask = torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill_(~mask, float("-inf"))
        x, balance = F.embedding(ids, self.embed), 0.0
        Layer.op = fused if self.training and self.compiled else plain
        for layer in self.layers:
            x, b = layer(x, mask, cos, sin)
            balance = balance + b / self.c.layers
        return rms_norm(x, self.norm, self.c.eps), balance

    def logits(self, hidden):
        return matmul(hidden, self.embed.T).float()
