#!/usr/bin/env python3
"""Compares the text of the same requests served aggregated and disaggregated on GPUs, in the batch-invariant mode.

Usage: disaggregation_equality.py --model DIR [--bin build/bin] [--wirings 0P1D,1P1D,1P1D:stream] [--requests 32] [--default-mode]

Every wiring gets the same prompts (token ids, lengths 3..3000, half greedy and half sampled with a seed), many at once, so that batches and
chunks differ from run to run. In the batch-invariant mode all texts must be equal; --default-mode reports how many are without it.
Exit code 1 if any differs in the batch-invariant mode. DIR's tokenizer must give each id a text of its own.
"""
import argparse
import concurrent.futures
import json
import os
import random
import sys
import urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tools/bench"))
from cluster_bench import Cluster, parse_wiring  # noqa: E402


def requests(count, vocab):
    rng = random.Random(5)
    out = []
    for i in range(count):
        length = rng.choice([3, 17, 100, 511, 512, 513, 1000, 1500, 3000])
        out.append(dict(prompt=[rng.randrange(300, vocab) for _ in range(length)], max_tokens=48, ignore_eos=True, seed=1000 + i,
                        temperature=0 if i % 2 == 0 else 0.9, top_p=0.95))
    return out


def ask(url, body):
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]["text"]


def run(options, wiring, bodies):
    name, prefill, decode, extra = wiring
    mode = [] if options.default_mode else ["--batch-invariant"]
    cluster = Cluster(options.bin, prefill, decode, ("--device", options.device, "--model", options.model, *mode, *extra))
    try:
        with urllib.request.urlopen(f"{cluster.state()['url']}/v1/models", timeout=30) as answer:
            model = json.load(answer)["data"][0]["id"]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            return name, list(pool.map(lambda b: ask(cluster.state()["url"], dict(b, model=model)), bodies))
    finally:
        cluster.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", default="build/bin")
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--wirings", default="0P1D,1P1D,1P1D:stream")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=4000)
    parser.add_argument("--default-mode", action="store_true")
    options = parser.parse_args()
    bodies = requests(options.requests, options.vocab)
    first_name, first = run(options, parse_wiring(options.wirings.split(",")[0]), bodies)
    differing = 0
    for wiring in options.wirings.split(",")[1:]:
        name, texts = run(options, parse_wiring(wiring), bodies)
        equal = sum(a == b for a, b in zip(first, texts))
        differing += len(bodies) - equal
        print(f"{name}: {equal} of {len(bodies)} texts equal those of {first_name}"
              f"{' (default mode)' if options.default_mode else ' (batch-invariant)'}", flush=True)
    return 1 if differing and not options.default_mode else 0


if __name__ == "__main__":
    sys.exit(main())
