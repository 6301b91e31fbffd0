#!/usr/bin/env python3
"""Times Hugging Face's Llama (random weights of the 1B or 3B shape, bf16) on the GPU, as the reference beside our own figures.

Usage: hf_reference.py [--shape 1b|3b] [--batch 1,64] [--context 1024] [--prefill 1024,8192] [--no-compile] [--json FILE]

Decode: StaticCache, one token a step, torch.compile(mode="reduce-overhead") (CUDA graphs) unless --no-compile; median and p95 in ms.
Prefill: eager, SDPA; median in ms. Needs torch and transformers with CUDA.
"""
import argparse
import json
import statistics
import time

SHAPES = {
    "1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, head_dim=64),
    "3b": dict(hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24, head_dim=128),
}


def make_model(torch, shape):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256, num_key_value_heads=8, max_position_embeddings=131072, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
                             original_max_position_embeddings=8192),
        **SHAPES[shape])
    torch.manual_seed(0)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config).eval()
    return model, config


def quantile(values, q):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def time_calls(torch, call, warm_up, repeats):
    for _ in range(warm_up):
        call()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return dict(ms_median=statistics.median(times), ms_p95=quantile(times, 0.95), n=repeats)


def time_decode(torch, model, config, batch, context, compiled):
    from transformers import StaticCache

    cache = StaticCache(config=config, max_cache_len=context + 256)
    ids = torch.randint(0, config.vocab_size, (batch, context), device="cuda")
    with torch.inference_mode():
        for row in range(0, context, 1024):  # fills the cache chunk by chunk
            chunk = ids[:, row:row + 1024]
            position = torch.arange(row, row + chunk.shape[1], device="cuda")
            model(chunk, past_key_values=cache, cache_position=position, position_ids=position[None].expand(batch, -1), use_cache=True,
                  logits_to_keep=1)
        token = torch.randint(0, config.vocab_size, (batch, 1), device="cuda")
        position = torch.tensor([context], device="cuda")

        def step(token, position):
            return model(token, past_key_values=cache, cache_position=position, position_ids=position[None].expand(batch, -1),
                         use_cache=True).logits.argmax(-1)

        run = torch.compile(step, mode="reduce-overhead", fullgraph=False) if compiled else step
        return time_calls(torch, lambda: run(token, position), 8, 50)


def time_prefill(torch, model, config, tokens):
    ids = torch.randint(0, config.vocab_size, (1, tokens), device="cuda")
    with torch.inference_mode():
        return time_calls(torch, lambda: model(ids, use_cache=True, logits_to_keep=1), 2, 8)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--batch", default="1,64")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--prefill", default="1024,8192")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--json")
    args = parser.parse_args()
    import torch

    started = time.time()
    model, config = make_model(torch, args.shape)
    rows = []
    for tokens in [int(t) for t in args.prefill.split(",") if t]:
        rows.append(dict(what="prefill, eager, SDPA", shape=args.shape, tokens=tokens, **time_prefill(torch, model, config, tokens)))
        print(rows[-1], flush=True)
    for batch in [int(b) for b in args.batch.split(",") if b]:
        what = "decode, static cache" + ("" if args.no_compile else ", torch.compile")
        try:
            timed = time_decode(torch, model, config, batch, args.context, not args.no_compile)
        except Exception as error:  # a figure that could not be taken is reported, not left out
            timed = dict(error=f"{type(error).__name__}: {error}"[:300])
        rows.append(dict(what=what, shape=args.shape, batch=batch, context=args.context, **timed))
        print(rows[-1], flush=True)
    print(f"took {time.time() - started:.1f} s, torch {torch.__version__}, {torch.cuda.get_device_name()}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as out:
            json.dump(rows, out, indent=1)


if __name__ == "__main__":
    main()
