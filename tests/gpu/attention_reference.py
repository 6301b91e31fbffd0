#!/usr/bin/env python3
"""Times PyTorch's causal attention (cuDNN and flash backends) on the shapes of prefill_attention_bench.

Prints a table and one JSON line per row. Keys and values are dense and already repeated over the query heads of a group
only where the backend needs it; inputs rotate between two sets.
"""
import argparse
import json
import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def time_us(function, sets, runs):
    for i in range(4):
        function(*sets[i % len(sets)])
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
    marks[0].record()
    for i in range(runs):
        function(*sets[i % len(sets)])
        marks[i + 1].record()
    torch.cuda.synchronize()
    return statistics.median(marks[i].elapsed_time(marks[i + 1]) * 1000 for i in range(runs))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="*", default=[512, 1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--backends", nargs="*", default=["CUDNN_ATTENTION", "FLASH_ATTENTION"])
    args = parser.parse_args()
    attention = torch.nn.functional.scaled_dot_product_attention
    lines = []
    for name, heads, kv_heads, dim in (("1B", 32, 8, 64), ("3B", 24, 8, 128)):
        for length in args.lengths:
            sets = [
                [torch.randn(1, h, length, dim, device="cuda", dtype=torch.bfloat16) for h in (heads, kv_heads, kv_heads)]
                for _ in range(2)
            ]
            flops = 4 * heads * dim * length * (length + 1) / 2
            for backend in [getattr(SDPBackend, b) for b in args.backends]:
                try:
                    with sdpa_kernel(backend):
                        us = time_us(lambda q, k, v: attention(q, k, v, is_causal=True, enable_gqa=True), sets, args.runs)
                except RuntimeError as error:
                    print(f"{name} {length} {backend.name}: {error}")
                    continue
                tflops = flops / us * 1e-6
                print(f"{name} causal {length:6d} {backend.name:16s} {us:9.1f} us {tflops:6.1f} TFLOP/s", flush=True)
                lines.append({"bench": "attention_reference", "name": f"{name} causal {length}", "backend": backend.name,
                              "median_us": round(us, 2), "tflops": round(tflops, 1), "torch": torch.__version__})
    for line in lines:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
