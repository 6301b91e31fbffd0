#!/usr/bin/env python3
"""RMSNorm with residual: torch eager, with the operations of LlamaRMSNorm, beside rmsnorm_bench on the same GPU.

Usage: rmsnorm_reference.py BENCH   (BENCH = build/bench/rmsnorm_bench). Compares bits, then times torch and a driver
copy at the sizes of the bench. Exits with 1 if more than 1 in 10,000 values differ: the two sum squares in different
orders, so a value next to the middle of two bf16 may fall to either side; more than one step apart is never right.
"""
import subprocess
import sys
import tempfile

import torch


def eager(x, delta, weight, eps=1e-5):
    total = x + delta
    h = total.to(torch.float32)
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return total, weight * h.to(torch.bfloat16)


def median_us(run, repeats=9):
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return sorted(times)[repeats // 2]


def inputs(rows, n):
    torch.manual_seed(rows + n)
    make = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
    return make(rows, n), make(rows, n), make(n)


def compare(bench, rows, n):
    x, delta, weight = inputs(rows, n)
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/in", "wb") as file:
            for t in (x, delta, weight):
                file.write(t.cpu().view(torch.uint16).numpy().tobytes())
        subprocess.run([bench, "--apply", str(rows), str(n), f"{folder}/in", f"{folder}/out"], check=True)
        with open(f"{folder}/out", "rb") as file:
            got = torch.frombuffer(bytearray(file.read()), dtype=torch.int16).view(2, rows, n).to(torch.int32)
    total, y = (t.cpu().view(torch.int16).to(torch.int32) for t in eager(x, delta, weight))
    different = int((got[1] != y).sum())
    apart = int((got[1] - y).abs().max())
    ok = bool((got[0] == total).all()) and different <= rows * n // 10000 and apart <= 2
    print(f"{rows:7} x {n}: {different} of {rows * n} values differ, at most by {apart} steps: {'ok' if ok else 'WRONG'}")
    return ok


def main():
    bench = sys.argv[1]
    good = all([compare(bench, rows, n) for n in (2048, 3072) for rows in (1, 200, 4096)])
    for n in (2048, 3072):
        for rows in (32768, 65536):
            x, delta, weight = inputs(rows, n)
            us = median_us(lambda: eager(x, delta, weight))
            fused = median_us(lambda: torch.nn.functional.rms_norm(x, (n,), weight, 1e-5))
            source = torch.randn(rows * 2, n, device="cuda", dtype=torch.bfloat16)
            target = torch.empty_like(source)
            copy = median_us(lambda: target.copy_(source))
            size = 8 * rows * n
            print(f"{rows:7} x {n}: torch eager {us:9.1f} us {size / us * 1e-6:6.3f} TB/s; torch's rms_norm without "
                  f"the residual {fused:9.1f} us {size / 2 / fused * 1e-6:6.3f} TB/s; driver copy of as many bytes as "
                  f"eager {copy:9.1f} us {size / copy * 1e-6:6.3f} TB/s", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
