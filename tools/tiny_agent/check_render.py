"""Compares chat_render with the reference jinja chat template: python3 check_render.py TEMPLATE [count]"""

import json
import sys

import jinja2

from chat_render import render_chat
from dialogues import make_dialogue


def main():
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
    template = environment.from_string(open(sys.argv[1], encoding="utf-8").read())
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 300
    for i in range(count):
        d = make_dialogue(f"render/{i}")
        messages = json.loads(json.dumps(d["messages"]))
        for m in messages:
            m.pop("_probe", None)
            for call in m.get("tool_calls", []):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        extra = {"tools": d["tools"]} if d["tools"] else {}
        want = template.render(messages=messages, date_string=d["date"], bos_token="<|begin_of_text|>", add_generation_prompt=False, **extra)
        got = render_chat(d["messages"], d["tools"], d["date"])
        if want != got:
            sys.exit(f"dialogue {i} differs:\n--- template\n{want}\n--- chat_render\n{got}")
    print(f"{count} dialogues render alike")


if __name__ == "__main__":
    main()
