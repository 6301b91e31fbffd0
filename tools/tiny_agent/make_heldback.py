"""Writes the held-back set as OpenAI chat requests with what is expected: one JSON object per line.

    python3 make_heldback.py --out models/tiny-agent/eval/heldback.jsonl [--count 320] [--seed held]

Values and tool combinations of the held-back dialogues do not occur in training text; every second dialogue also uses wordings
(`"wording": "unseen"`) that training never shows.
"""

import argparse
import json
import os
import sys

from chat_render import DEFAULT_DATE
from dialogues import make_dialogue, probes

SHARES = {"call": 0.42, "second_call": 0.13, "follow_up": 0.05, "answer": 0.18, "lacking": 0.09, "talk": 0.1, "ask_back": 0.03}
MAX_CHARS = 9000  # of one request, so that the file stays small and every prompt fits the context


def entries(count, seed):
    """About `count` entries, kinds in the proportion of SHARES; deterministic."""
    left = {k: round(count * s) for k, s in SHARES.items()}
    number = 0
    while any(left.values()):
        number += 1
        unseen = number % 2 == 0
        dialogue = make_dialogue(f"{seed}/{number}", held=True, unseen=unseen)
        if dialogue["date"] != DEFAULT_DATE:
            continue
        taken = 0
        for messages, probe in probes(dialogue):
            request = {"messages": messages, "temperature": 0, "max_tokens": 200}
            if dialogue["tools"]:
                request["tools"] = dialogue["tools"]
            if left.get(probe["kind"], 0) <= 0 or taken >= 2 or len(json.dumps(request)) > MAX_CHARS:
                continue
            left[probe["kind"]] -= 1
            taken += 1
            if "name" in probe:
                expect = {"tool_call": {"name": probe["name"], "arguments": probe["arguments"]}}
            else:
                expect = {"contains": probe["contains"]}
            yield {"id": f"{seed}-{number}-{taken}", "kind": probe["kind"], "wording": "unseen" if unseen else "seen", "request": request, "expect": expect}


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--out", help="file to write")
    args.add_argument("--check", help="compare with this file instead; exit 1 if it differs")
    args.add_argument("--count", type=int, default=320)
    args.add_argument("--seed", default="held")
    args = args.parse_args()
    lines = [json.dumps(e, ensure_ascii=False, separators=(",", ":")) for e in entries(args.count, args.seed)]
    if args.check:
        with open(args.check, encoding="utf-8") as f:
            old = f.read().splitlines()
        if old != lines:
            first = next((i for i, (a, b) in enumerate(zip(old, lines)) if a != b), min(len(old), len(lines)))
            sys.exit(f"{args.check} differs from what this script writes, first in line {first + 1}: "
                     "write it again with --out, measure again and mend models/tiny-agent/README.md")
    if args.out:
        os.makedirs(os.path.dirname(args.out) or ".", exist_ok=True)
        with open(args.out, "w", encoding="utf-8") as f:
            f.write("".join(line + "\n" for line in lines))


if __name__ == "__main__":
    main()
