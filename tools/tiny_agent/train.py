"""Trains models/tiny-agent on one GPU for a given number of seconds.

    python3 train.py --tokenizer DIR --text SHAKESPEARE --out DIR --seconds 480

Every dialogue is generated once, while training runs. The learning rate follows the clock, so a run always ends annealed.
"""

import argparse
import json
import os
import time

import torch
from safetensors.torch import load_file
from torch.nn.attention.flex_attention import create_block_mask

import model as tiny
from config import CONFIG
from feed import ANSWER, CONTEXT, ROW, Feed
from optim import Muon

SAVE_EVERY_S = 120


def multiplier(step, share):
    """Warm-up over 100 steps, flat, then linear to 2 % over the last 60 % of the time."""
    return min(1.0, (step + 1) / 100) * (1.0 if share < 0.4 else 1.0 - 0.98 * (share - 0.4) / 0.6)


def block_mask(documents, make):
    def same_document(b, h, q, k):
        return (q >= k) & (documents[b, q] == documents[b, k])
    return make(same_document, documents.shape[0], None, ROW, ROW, device="cuda")


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--tokenizer", required=True)
    args.add_argument("--text", required=True)
    args.add_argument("--out", required=True)
    args.add_argument("--seconds", type=float, required=True)
    args.add_argument("--init", help="model.safetensors to continue from")
    args.add_argument("--rows", type=int, default=8)
    args.add_argument("--workers", type=int, default=14)
    args.add_argument("--seed", default="1")
    args.add_argument("--muon-lr", type=float, default=0.02)
    args.add_argument("--adam-lr", type=float, default=0.003)
    args = args.parse_args()
    feed = Feed(args.workers, args.seed, os.path.join(args.tokenizer, "tokenizer.json"), args.text)
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    net = tiny.TinyLlama(CONFIG).cuda()
    if args.init:
        net.load_state_dict({n: t.float() for n, t in load_file(args.init).items()})
    matrices = [p for n, p in net.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in net.named_parameters() if p.dim() < 2 or "embed" in n]
    optimizers = [Muon(matrices, lr=args.muon_lr),
                  torch.optim.AdamW(others, lr=args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]
    rates = [[g["lr"] for g in o.param_groups] for o in optimizers]
    print(f"{sum(p.numel() for p in net.parameters())} parameters", flush=True)
    run = torch.compile(net)
    make_mask = torch.compile(create_block_mask)
    started, first, saved, step, log = time.time(), None, time.time(), 0, []
    while True:
        share = 0.0 if first is None else (time.time() - first) / (args.seconds - (first - started))
        if share >= 1:
            break
        waited = time.time()
        batch = torch.from_numpy(feed.batch(args.rows)).pin_memory().cuda(non_blocking=True).int()
        waited = time.time() - waited
        tokens, positions, targets, kinds, documents = (t.contiguous() for t in batch.unbind(1))
        context = 0.3 if share < 0.25 and not args.init else 0.05
        weights = (kinds == ANSWER).float() + context * (kinds == CONTEXT).float()
        with torch.autocast("cuda", torch.bfloat16):
            loss, answer_loss = run(tokens.long(), positions, targets.long(), weights, block_mask(documents, make_mask))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for o, base in zip(optimizers, rates):
            for g, lr in zip(o.param_groups, base):
                g["lr"] = lr * multiplier(step, share)
            o.step()
        net.zero_grad(set_to_none=True)
        step += 1
        if step == 5:
            torch.cuda.synchronize()
            first = time.time()
            print(f"compiled after {first - started:.1f} s", flush=True)
        if step % 100 == 0 or step == 1:
            value = answer_loss.item()
            rate = 0 if first is None else (step - 5) * args.rows * ROW / (time.time() - first)
            log.append({"step": step, "seconds": round(time.time() - started, 1), "answer_loss": round(value, 5), "tokens_per_s": int(rate)})
            print(f"step {step} t {time.time() - started:.0f} s answer loss {value:.4f} {rate / 1e6:.2f} M tokens/s "
                  f"last wait {waited * 1e3:.0f} ms weighted {loss.item():.4f}", flush=True)
        if time.time() - saved > SAVE_EVERY_S:
            saved = time.time()
            tiny.export(net, args.out)
    tiny.export(net, args.out)
    feed.stop()
    summary = {"steps": step, "tokens": step * args.rows * ROW, "seconds": round(time.time() - started, 1), "seed": args.seed, "log": log[-200:]}
    with open(os.path.join(args.out, "training.json"), "w", encoding="utf-8") as f:
        f.write(json.dumps(summary) + "\n")
    print(f"done: {step} steps, {step * args.rows * ROW / 1e6:.0f} M tokens", flush=True)


if __name__ == "__main__":
    main()
