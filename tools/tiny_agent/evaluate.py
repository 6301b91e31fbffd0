"""Measures a model folder on the held-back set with Hugging Face transformers, greedily.

    python3 evaluate.py --model models/tiny-agent [--file models/tiny-agent/eval/heldback.jsonl | --generate 2000]
"""

import argparse
import json

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import chat_render
import scoring
from make_heldback import entries


def generate(model, tokenizer, prompts, device, new_tokens=200):
    """Greedy continuations up to the end-of-turn token; batches of similar length."""
    ids = [tokenizer.encode(p, add_special_tokens=False) for p in prompts]
    out = [None] * len(ids)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    pad = tokenizer.convert_tokens_to_ids("<|finetune_right_pad_id|>")
    for start in range(0, len(order), 128):
        chosen = order[start:start + 128]
        longest = max(len(ids[i]) for i in chosen)
        tokens = torch.tensor([[pad] * (longest - len(ids[i])) + ids[i] for i in chosen], device=device)
        mask = torch.tensor([[0] * (longest - len(ids[i])) + [1] * len(ids[i]) for i in chosen], device=device)
        with torch.inference_mode():
            result = model.generate(input_ids=tokens, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, temperature=None,
                                    top_p=None)
        for i, row in zip(chosen, result[:, longest:]):
            out[i] = tokenizer.decode(row, skip_special_tokens=True)
    return out


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--model", required=True)
    args.add_argument("--file")
    args.add_argument("--generate", type=int, default=0)
    args.add_argument("--seed", default="held-more")
    args.add_argument("--wrong", type=int, default=20, help="how many wrong answers to print")
    args.add_argument("--out", help="write the figures as JSON")
    args = args.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).to(device).eval()
    todo = [json.loads(line) for line in open(args.file, encoding="utf-8")] if args.file else []
    todo += list(entries(args.generate, args.seed)) if args.generate else []
    prompts = [chat_render.render_chat(e["request"]["messages"], e["request"].get("tools"), add_generation_prompt=True) for e in todo]
    texts = generate(model, tokenizer, prompts, device)
    scoring.report(todo, [(scoring.parse_call(t), t) for t in texts], args.wrong, args.out)


if __name__ == "__main__":
    main()
