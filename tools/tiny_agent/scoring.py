"""Compares answers with what the held-back set expects."""

import collections
import json


def parse_call(text):
    """(name, arguments) of an assistant text, or None."""
    try:
        value = json.loads(text)
        return value["name"], value["parameters"]
    except (ValueError, KeyError, TypeError):
        return None


def right(expect, call, text):
    """Calls must equal in name and all arguments; other answers call nothing and contain every expected string."""
    if "tool_call" in expect:
        return call == (expect["tool_call"]["name"], expect["tool_call"]["arguments"])
    return call is None and not text.lstrip().startswith("{") and all(c in text for c in expect["contains"])


def report(entries, answers, show_wrong, out=None):
    """Prints shares by kind and wording; answers: [(call or None, text)]. `out` gets the same figures as JSON."""
    tally = collections.defaultdict(lambda: [0, 0])

    def count(name, ok):
        tally[name][0] += ok
        tally[name][1] += 1

    for e, (call, text) in zip(entries, answers):
        ok = right(e["expect"], call, text)
        for wording in (e["wording"], "all"):
            count(f"{wording} wording: {e['kind']}", ok)
            if "tool_call" in e["expect"]:
                count(f"{wording} wording: tool calls exact", ok)
            elif e["kind"] != "answer":
                count(f"{wording} wording: no call where none fits", call is None)
        if not ok and show_wrong > 0:
            show_wrong -= 1
            print(f"WRONG {e['id']} {e['kind']} ({e['wording']}): user {e['request']['messages'][-1]['content']!r}\n"
                  f"  want {json.dumps(e['expect'], ensure_ascii=False)}\n  got  {call or text!r}")
    figures = {k: {"right": a, "of": n, "share": round(a / n, 4)} for k, (a, n) in sorted(tally.items())}
    for k, f in figures.items():
        print(f"{k:48s} {f['right']:5d} / {f['of']:5d} = {100 * f['share']:.2f} %")
    if out:
        with open(out, "w", encoding="utf-8") as f:
            f.write(json.dumps(figures, indent=1) + "\n")
    return figures
