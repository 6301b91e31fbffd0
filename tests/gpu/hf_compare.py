#!/usr/bin/env python3
"""Compares the GPU executor with Hugging Face transformers on the same random weights.

Writes a model folder (save_pretrained), lets agentserve-gpu-check generate greedily from random prompts in chunks beside
decodes, and runs the generated sequences through transformers (bf16, uncompiled), position by position. Both are held
against transformers in fp32: ours may be at most 1.2 times as far from it as transformers' own bf16.

Needs a Hopper GPU, torch and transformers. Exit code 0: within bounds; 1: not; 77: no GPU.

  hf_compare.py --binary build/bin/agentserve-gpu-check --shape 1b --prompts 1,17,1000 --steps 64
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

SHAPES = {
    "1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, head_dim=64),
    "3b": dict(hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24, head_dim=128),
    "tiny": dict(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=8, head_dim=64,
                 num_key_value_heads=2, vocab_size=512),
}


# Standard deviation of a matrix, in 1 / sqrt(fan-in).
GAINS = {"embed": 3.0, "q_proj": 2.0, "o_proj": 0.8, "down_proj": 0.48}
PER_LAYERS = ("o_proj", "down_proj")  # what is added to the residual stream: divided by the root of the number of layers
KL_NOISE = 1e-5  # below this the KL divergence of two nearly equal distributions says nothing


def config_of(args):
    from transformers import LlamaConfig
    shape = dict(num_key_value_heads=8, vocab_size=128256)
    shape.update(SHAPES[args.shape])
    if args.layers:
        shape["num_hidden_layers"] = args.layers
    if args.vocab:
        shape["vocab_size"] = args.vocab
    return LlamaConfig(
        max_position_embeddings=131072, rms_norm_eps=1e-5, tie_word_embeddings=True, rope_theta=500000.0,
        rope_scaling=dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=8192),
        bos_token_id=1, eos_token_id=2, attention_bias=False, mlp_bias=False, hidden_act="silu", **shape)


def make_model(args):
    """A bf16 model with logits of standard deviation 3 or so, attention that prefers some positions, and layers that add
    about as much to the residual stream as the embedding holds, so that roundings are not amplified from layer to layer
    (plain random weights are chaotic: there transformers' bf16 is 24 % off its own fp32)."""
    import torch
    from transformers import LlamaForCausalLM
    torch.manual_seed(args.seed)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config_of(args))
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.uniform_(0.5, 1.5)
            else:
                gain = next((g for part, g in GAINS.items() if part in name), 1.0)
                if any(part in name for part in PER_LAYERS):
                    gain /= model.config.num_hidden_layers ** 0.5
                p.normal_(0.0, gain / p.shape[1] ** 0.5)
    return model


def read_dump(path):
    raw = np.fromfile(path, dtype=np.int32, count=3)
    count, vocab, steps = (int(x) for x in raw)
    sequences = []
    with open(path, "rb") as f:
        f.seek(12)
        for _ in range(count):
            prompt = int(np.frombuffer(f.read(4), dtype=np.int32)[0])
            tokens = np.frombuffer(f.read(4 * (prompt + steps)), dtype=np.int32)
            sequences.append((prompt, tokens))
        logits = np.fromfile(f, dtype=np.uint16).reshape(count, steps, vocab)
    return sequences, logits


def logits_of(model, tokens, first):
    """Logits (float) of positions first.. of one sequence."""
    import torch
    with torch.no_grad():
        ids = torch.from_numpy(tokens[:-1].astype(np.int64)).cuda()[None]
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[0, first:]
        return model.lm_head(hidden).float()


def bf16_ulp(x):
    import torch
    return torch.exp2(torch.floor(torch.log2(x.abs().clamp_min(1e-30))) - 7)


class Score:
    """Distances between logits, summed over positions."""

    def __init__(self, name):
        self.name, self.error, self.norm, self.kl, self.n, self.worst = name, 0.0, 0.0, 0.0, 0, 0.0

    def add(self, x, reference):
        d = x - reference
        self.error += float(d.pow(2).sum())
        self.norm += float(reference.pow(2).sum())
        self.worst = max(self.worst, float(d.abs().max()))
        p = reference.log_softmax(-1)
        self.kl += float((p.exp() * (p - x.log_softmax(-1))).sum())
        self.n += x.shape[0]

    def relative(self):
        return (self.error / self.norm) ** 0.5

    def __str__(self):
        return (f"{self.name:24s} ||err||/||ref|| {self.relative():.3e}  KL {self.kl / self.n:.3e}  "
                f"max |err| {self.worst:.4f}")


def compare(args, model, dump):
    import torch
    sequences, ours_all = read_dump(dump)
    scores = [Score("ours vs HF bf16"), Score("HF bf16 vs fp32"), Score("ours vs fp32")]
    equal = ties = noise = 0
    wrong = []
    reference = None if args.no_fp32 else make_model(args).float()
    if reference is not None:
        reference.config._attn_implementation = "sdpa"
    for index, (prompt, tokens) in enumerate(sequences):
        ours = torch.from_numpy(ours_all[index].view(np.int16)).cuda().view(torch.bfloat16).float()
        theirs = logits_of(model, tokens, prompt - 1)
        scores[0].add(ours, theirs)
        if reference is not None:
            exact = logits_of(reference, tokens, prompt - 1)
            scores[1].add(theirs, exact)
            scores[2].add(ours, exact)
        chosen = torch.from_numpy(tokens[prompt:].astype(np.int64)).cuda()
        best = theirs.max(-1)
        behind = (best.values - theirs.gather(1, chosen[:, None])[:, 0]) / bf16_ulp(best.values)
        if not bool((ours.argmax(-1) == chosen).all()):
            wrong.append(f"sequence {index}: a chosen token is not the argmax of its own logits")
        equal += int((best.indices == chosen).sum())
        tie = (best.indices != chosen) & (behind <= 3)
        ties += int(tie.sum())
        # Otherwise the gap must be within what bf16 costs transformers itself at that position: twice its largest
        # distance from fp32 (two logits move).
        gap = best.values - theirs.gather(1, chosen[:, None])[:, 0]
        within = torch.zeros_like(tie)
        if reference is not None:
            within = (best.indices != chosen) & ~tie & (gap <= 2 * (theirs - exact).abs().max(-1).values)
        noise += int(within.sum())
        for i in torch.nonzero((behind > 3) & ~within).flatten().tolist()[:3]:
            wrong.append(f"sequence {index} (prompt {prompt}) step {i}: {behind[i]:.1f} ulp behind")
    total = sum(len(t) - p for p, t in sequences)
    for s in scores:
        if s.n:
            print(s)
    beyond = total - equal - ties - noise
    print(f"greedy: {equal} of {total} equal, {ties} near ties (<= 3 ulp), {noise} within bf16's own error, {beyond} beyond")
    for line in wrong[:8]:
        print("   ", line)
    ok = ours_ok = np.isfinite(scores[0].relative())
    if reference is not None:
        ours_ok = scores[2].relative() <= 1.2 * scores[1].relative() and scores[2].kl <= 1.2 * scores[1].kl + KL_NOISE * total
    ok = ok and ours_ok and beyond == 0
    print("PASS" if ok else "FAIL")
    return ok


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--binary", required=True)
    p.add_argument("--shape", choices=sorted(SHAPES), default="1b")
    p.add_argument("--layers", type=int, default=0)
    p.add_argument("--vocab", type=int, default=0)
    p.add_argument("--prompts", default="1,17,100,1000")
    p.add_argument("--steps", type=int, default=64)
    p.add_argument("--chunk", type=int, default=256)
    p.add_argument("--attention", choices=["eager", "sdpa"], default="eager")
    p.add_argument("--no-fp32", action="store_true")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--arg", action="append", default=[], help="passed to the binary, e.g. --arg=--no-pdl")
    args = p.parse_args()
    try:
        import torch
    except ImportError:
        print("SKIPPED: no torch")
        return 77
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        print("SKIPPED: no Hopper GPU")
        return 77
    began = time.time()
    folder = tempfile.mkdtemp(prefix="agentserve-hf-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    try:
        model = make_model(args)
        model.config._attn_implementation = args.attention
        model.save_pretrained(folder)
        print(f"model written after {time.time() - began:.1f} s")
        dump = os.path.join(folder, "dump.bin")
        command = [args.binary, "--model", folder, "--mode", "forced", "--prompts", args.prompts, "--steps",
                   str(args.steps), "--chunk", str(args.chunk), "--dump", dump] + args.arg
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(done.stdout.strip())
        if done.returncode != 0:
            print(f"FAIL: the binary ended with {done.returncode}")
            return 1
        ok = compare(args, model.eval(), dump)
        print(f"{args.shape} layers {args.layers or 'all'} prompts {args.prompts}: {time.time() - began:.1f} s")
        return 0 if ok else 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
