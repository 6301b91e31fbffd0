"""The Llama forward used in training. Weight names and maths are those of Hugging Face's LlamaForCausalLM."""

import math
import os

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.nn.attention.flex_attention import flex_attention

import config


def rope_frequencies(c):
    """Llama 3's scaled inverse frequencies, shape [head_dim / 2]."""
    d, s = c["head_dim"], c["rope_scaling"]
    out = []
    for i in range(0, d, 2):
        f = c["rope_theta"] ** (-i / d)
        wavelength = 2 * math.pi / f
        low = s["original_max_position_embeddings"] / s["low_freq_factor"]
        high = s["original_max_position_embeddings"] / s["high_freq_factor"]
        if wavelength > low:
            f /= s["factor"]
        elif wavelength >= high:
            t = (s["original_max_position_embeddings"] / wavelength - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])
            f = (1 - t) * f / s["factor"] + t * f
        out.append(f)
    return torch.tensor(out, dtype=torch.float32)


class RMSNorm(nn.Module):
    def __init__(self, n, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.eps = eps

    def forward(self, x):
        y = x.float()
        return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight.to(x.dtype)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        h, d = c["hidden_size"], c["head_dim"]
        self.heads, self.kv_heads, self.d = c["num_attention_heads"], c["num_key_value_heads"], d
        self.q_proj = nn.Linear(h, self.heads * d, bias=False)
        self.k_proj = nn.Linear(h, self.kv_heads * d, bias=False)
        self.v_proj = nn.Linear(h, self.kv_heads * d, bias=False)
        self.o_proj = nn.Linear(self.heads * d, h, bias=False)

    def forward(self, x, cos, sin, mask):
        b, s, _ = x.shape
        q = self.q_proj(x).view(b, s, self.heads, self.d).transpose(1, 2)
        k = self.k_proj(x).view(b, s, self.kv_heads, self.d).transpose(1, 2)
        v = self.v_proj(x).view(b, s, self.kv_heads, self.d).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        y = flex_attention(q, k, v, block_mask=mask)
        return self.o_proj(y.transpose(1, 2).reshape(b, s, -1))


def rotate(x, cos, sin):
    """cos, sin: [batch, 1, tokens, head_dim / 2]; first half and second half of a head form the pairs."""
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        h, i = c["hidden_size"], c["intermediate_size"]
        self.gate_proj, self.up_proj = nn.Linear(h, i, bias=False), nn.Linear(h, i, bias=False)
        self.down_proj = nn.Linear(i, h, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.self_attn, self.mlp = Attention(c), MLP(c)
        self.input_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.post_attention_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])

    def forward(self, x, cos, sin, mask):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])


class TinyLlama(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.config = c
        self.model = Body(c)
        self.register_buffer("frequencies", rope_frequencies(c), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02 if "embed" in name else 0.6 / math.sqrt(p.shape[1]))
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(p)

    def forward(self, tokens, positions, targets, weights, mask):
        """tokens, positions, targets: [batch, tokens]; returns (weighted mean loss, mean loss where weight is 1)."""
        x = self.model.embed_tokens(tokens).to(torch.bfloat16)
        angle = positions[:, None, :, None].float() * self.frequencies
        cos, sin = angle.cos(), angle.sin()
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask)
        logits = F.linear(self.model.norm(x), self.model.embed_tokens.weight.to(torch.bfloat16)).float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(weights)
        full = (weights >= 1).float()
        return (loss * weights).sum() / weights.sum(), (loss * full).sum().detach() / full.sum()


def export(model, out):
    """Writes config.json, generation_config.json and model.safetensors (bf16)."""
    config.write(out)
    weights = {n: p.detach().to(torch.bfloat16).cpu().contiguous() for n, p in model.named_parameters()}
    path = os.path.join(out, "model.safetensors")
    save_file(weights, path + ".part", metadata={"format": "pt"})
    os.replace(path + ".part", path)
