"""Measures a running OpenAI-compatible server on the held-back set. Needs Python's standard library only.

    python3 evaluate_server.py --url http://127.0.0.1:8000 --file models/tiny-agent/eval/heldback.jsonl [--least 0.95]
"""

import argparse
import json
import sys
import urllib.request

import scoring


def ask(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def answer_of(reply):
    """(call or None, text) of a chat completion."""
    message = reply["choices"][0]["message"]
    if message.get("tool_calls"):
        function = message["tool_calls"][0]["function"]
        return (function["name"], json.loads(function["arguments"])), message.get("content") or ""
    return None, message.get("content") or ""


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--url", default="http://127.0.0.1:8000")
    args.add_argument("--file", required=True)
    args.add_argument("--model", default="", help="none: the first that the server offers")
    args.add_argument("--least", type=float, default=0.0, help="exit 1 if a smaller share of tool calls is exact")
    args.add_argument("--wrong", type=int, default=20, help="how many wrong answers to print")
    args.add_argument("--out", help="write the figures as JSON")
    args = args.parse_args()
    model = args.model or ask(args.url + "/v1/models", None)["data"][0]["id"]
    entries = [json.loads(line) for line in open(args.file, encoding="utf-8")]
    answers = [answer_of(ask(args.url + "/v1/chat/completions", {"model": model, **e["request"]})) for e in entries]
    figures = scoring.report(entries, answers, args.wrong, args.out)
    sys.exit(figures["all wording: tool calls exact"]["share"] < args.least)


if __name__ == "__main__":
    main()
