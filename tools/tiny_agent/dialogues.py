"""Composes whole dialogues. An assistant message carries `_probe`, what a held-back evaluation expects at that point."""

import json
import random
import zlib

import phrasing
import smalltalk
from families import BY_KEY, FAMILIES
from toolbox import (Tool, clashes, draw, fill, invented_family, make_answer, make_ask, make_result, random_style, random_toolset,
                     slots_of)
from values import Values

SYSTEMS = ["You are a helpful assistant.", "You are a helpful assistant with tool access.", "Answer briefly.", "You are an agent. Use the tools.",
           "You are a helpful assistant. Use a tool only when it is needed.", "Be concise and polite.", "You are a careful agent.",
           "Think about which function fits, then call it.", "You help people with everyday tasks."]
PREFIXES = ["Hi! ", "Hello, ", "Please: ", "Hey. ", "OK. ", "Next: ", "One more thing. ", "Quick question: ", "I have a question. ", "Now: "]
PREFIXES += ["Hello! ", "Hey, ", "Well, ", "So, ", "Also: ", "Next question: ", "Now something else. ", "Thanks. ", "Great. ", "Alright. "]
PREFIXES_HELD = ["Good day. ", "Another question: ", "Listen: ", "Right then. "]
SUFFIXES = [" Thanks!", " Thank you.", " Please.", " Thanks in advance."]
SUFFIXES += [" It is important.", " I am in a hurry.", " Be quick.", " Thanks a lot!"]
SUFFIXES_HELD = [" Much appreciated.", " It is urgent."]
JOINERS = [" Then ", " After that, ", " Also ", " And then ", " And ", " Next, ", " Also, ", " When done, ", " Afterwards ", " "]
ERRORS = ["not found", "permission denied", "timeout", "service unavailable", "unknown value", "no such entry", "invalid input"]
HELD_TOOLSETS = 8  # one tool combination in eight is held back


def cap(text):
    return text[0].upper() + text[1:]


def toolset_is_held(tools):
    return zlib.crc32(" ".join(sorted(t.name for t in tools)).encode()) % HELD_TOOLSETS == 0


class Dialogue:
    """Builds one conversation; `run_*` methods append turns."""

    def __init__(self, seed, held=False, unseen=False):
        self.rng = random.Random(seed)
        self.v = Values(self.rng, held, unseen)
        self.held = held
        self.unseen = unseen
        self.messages = []
        self.tools = []
        self.persona = None
        self.calls = 0

    # ---- messages
    def user(self, text, wrap=True):
        r = self.rng
        if wrap and r.random() < 0.3:
            text = r.choice(PREFIXES_HELD if self.unseen else PREFIXES) + text
        elif wrap and not self.held and r.random() < 0.15:
            text = phrasing.filler(self.v) + text
        if wrap and text[-1] in "?." and r.random() < 0.15:
            text += r.choice(SUFFIXES_HELD if self.unseen else SUFFIXES)
        self.messages.append({"role": "user", "content": text})

    def say(self, text, kind, contains=None):
        self.messages.append({"role": "assistant", "content": text, "_probe": {"kind": kind, "contains": contains or []}})

    def call(self, tool, arguments, kind):
        self.calls += 1
        function = {"name": tool.name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        self.messages.append({"role": "assistant", "content": None, "tool_calls": [
            {"id": f"call_{self.calls}", "type": "function", "function": function}],
            "_probe": {"kind": kind, "name": tool.name, "arguments": arguments}})

    def result(self, content):
        self.messages.append({"role": "tool", "tool_call_id": f"call_{self.calls}", "content": content})

    # ---- turns with tools
    def call_and_result(self, tool, values, arguments, kind):
        """Returns (answer text, strings the answer must contain, facts); facts is None after an error."""
        self.call(tool, arguments, kind)
        if self.rng.random() < 0.04:
            reason = self.rng.choice(ERRORS)
            self.result(self.rng.choice([f"error: {reason}", f'{{"error": "{reason}"}}', f"Error: {reason}"]))
            return f"That did not work: {reason}.", [reason], None
        content, facts = make_result(tool, values, self.v)
        self.result(content)
        answer = make_answer(tool, values, facts, content, self.v)
        shown = {k: (", ".join(x) if isinstance(x, list) else str(x)) for k, x in facts.items()}
        return answer, [s for f, s in shown.items() if "{" + f + "}" in tool.family.answers[0]], facts

    def run_tool(self, tool):
        asked = make_ask(tool, self.v)
        if asked is None:
            return
        text, values, arguments = asked
        self.user(text)
        answer, contains, _ = self.call_and_result(tool, values, arguments, "call")
        self.say(answer, "answer", contains)
        if len(tool.family.params) == 1 and self.rng.random() < 0.2:
            self.run_follow_up(tool)

    def run_follow_up(self, tool):
        _, values, arguments = fill(tool, self.v, "{" + tool.params[0][0].slot + "}")
        value = str(next(iter(values.values())))
        self.user(self.rng.choice(["And {}?", "What about {}?", "And now {}", "Now the same for {}.", "{}?"]).format(value), wrap=False)
        answer, contains, _ = self.call_and_result(tool, values, arguments, "follow_up")
        self.say(answer, "answer", contains)

    def run_two(self, first, second):
        a, b = make_ask(first, self.v), make_ask(second, self.v)
        if a is None or b is None or a[0][-1] not in "?.":
            return
        self.user(a[0] + self.rng.choice(JOINERS) + b[0][0].lower() + b[0][1:])
        one, has_one, facts = self.call_and_result(first, a[1], a[2], "call")
        if facts is None:
            return self.say(one, "answer", has_one)
        two, has_two, _ = self.call_and_result(second, b[1], b[2], "second_call")
        self.say(f"{one} {two}", "answer", has_one + has_two)

    def run_same_twice(self, tool):
        """One tool for two places."""
        x, y = self.v.city(), self.v.city()
        slot, name = next((p.slot, n) for p, n in tool.params if p.slot == "city")
        what = "weather" if tool.family.key == "weather" else "time"
        both = self.rng.choice(["the {w} in {x} and in {y}", "the {w} in {x} and {y}", "the {w} for {x} and for {y}", "the {w} of {x} and {y}",
                                "the {w} in both {x} and {y}"]).format(w=what, x=x, y=y)
        frames = phrasing.NP_HELD if self.unseen else phrasing.NP_FRAMES + ["Compare {n}."] * 3
        self.user(phrasing.framed(self.rng.choice(frames), both))
        one, has_one, facts = self.call_and_result(tool, {slot: x}, {name: x}, "call")
        if facts is None:
            return self.say(one, "answer", has_one)
        two, has_two, _ = self.call_and_result(tool, {slot: y}, {name: y}, "second_call")
        self.say(f"{one} {two}", "answer", has_one + has_two)

    def run_ask_back(self, tool):
        """The user forgets the one argument; the assistant asks for it."""
        questions = {"weather": ("What is the weather?", "For which city?"), "time": ("What time is it?", "In which city?"),
                     "order": ("Where is my order?", "What is the order id?"), "read": ("Read a file for me.", "Which file should I read?"),
                     "timer": ("Start a timer.", "For how many minutes?"), "list": ("List my files.", "Which folder should I list?")}
        ask, back = questions[tool.family.key]
        self.user(ask)
        self.say(back, "ask_back", [back])
        _, values, arguments = fill(tool, self.v, "{" + tool.params[0][0].slot + "}")
        value = str(next(iter(values.values())))
        self.user(self.rng.choice(["{}", "{}.", "{} please"]).format(value) if tool.family.key not in ("read", "list") else value, wrap=False)
        answer, contains, _ = self.call_and_result(tool, values, arguments, "call")
        self.say(answer, "answer", contains)

    def run_chain(self, kind, by_key):
        """The second call needs the result of the first."""
        v, r = self.v, self.rng
        name = lambda tool, slot: next(n for p, n in tool.params if p.slot == slot)
        one = by_key[kind[0]]
        two = by_key[kind[1]]
        if kind in (("add", "multiply"), ("multiply", "add"), ("subtract", "multiply"), ("add", "subtract")):
            a, b, c = v.integer(), v.integer(), v.integer()
            first = {"add": f"Add {a} and {b}", "multiply": f"Multiply {a} by {b}", "subtract": f"Subtract {b} from {a}"}[kind[0]]
            then = {"add": r.choice([f"add {c}", f"add {c} to it", f"add {c} to the result"]), "multiply": r.choice([f"multiply the result by {c}", f"multiply it by {c}", f"multiply that by {c}"]), "subtract": r.choice([f"subtract {c}", f"subtract {c} from it", f"subtract {c} from the result"])}[kind[1]]
            low = first[0].lower() + first[1:]
            wording = [f"{first}, then {then}.", f"{first} and then {then}.", f"{first}. Then {then}.", f"{first} and {then}.", f"First {low}, then {then}.",
                       f"{first}; {then}", f"Please {low} and {then}.", f"Can you {low} and then {then}?", f"I want you to {low} and {then}.",
                       f"{first}. {cap(then)}.", f"{first}, {then}.", f"{first}. Afterwards {then}."]
            self.user(r.choice([f"{first} and after that {then}.", f"{first}, and when you have it {then}."] if self.unseen else wording))
            _, has, facts = self.call_and_result(one, {"a": a, "b": b}, {name(one, "a"): a, name(one, "b"): b}, "call")
            step = lambda f: ({"a": f["result"], "b": c}, {name(two, "a"): f["result"], name(two, "b"): c})
        elif kind[1] == "weather":
            key = v.order_id() if kind[0] == "order" else v.integer()
            thing = "order" if kind[0] == "order" else r.choice(["user", "customer"])
            asks = ["the weather where {t} {k} is", "the weather in the city of {t} {k}", "the weather at {t} {k}", "the weather at the place of {t} {k}",
                    "the temperature in the city where {t} {k} is", "the weather for the city of {t} {k}"]
            whole = ["Find {t} {k} and tell me the weather there.", "Look up {t} {k}, then check the weather in that city.",
                     "Look up {t} {k} and the weather in its city.", "Get {t} {k}. What is the weather there?"]
            text = r.choice(whole) if not self.unseen and r.random() < 0.5 else phrasing.framed(
                r.choice(phrasing.NP_HELD if self.unseen else phrasing.NP_FRAMES), r.choice(asks))
            self.user(text.format(t=thing, k=key))
            _, has, facts = self.call_and_result(one, {"id": key}, {name(one, "id"): key}, "call")
            step = lambda f: ({"city": f["city"]}, {name(two, "city"): f["city"]})
        else:
            to, path, query = v.name(), v.path(), v.phrase(1, 3)
            if kind[0] == "read":
                self.chain_request([f"read {path} and send its content to {to}", f"send the content of {path} to {to}", f"send {to} the text of {path}",
                                    f"open {path} and send what it says to {to}", f"read the file {path} and message it to {to}",
                                    f"send the text in {path} to {to}"])
                _, has, facts = self.call_and_result(one, {"path": path}, {name(one, "path"): path}, "call")
                text = "content"
            else:
                self.chain_request([f"search the docs for {query} and send the title of the best match to {to}",
                                    f'search for "{query}" and send the title to {to}', f"find {query} in the docs and send the best title to {to}",
                                    f'look up "{query}" in the docs and message the first title to {to}'])
                _, has, facts = self.call_and_result(one, {"query": query}, {name(one, "query"): query}, "call")
                text = "title"
            step = lambda f: ({"to": to, "text": f[text]}, {name(two, "to"): to, name(two, "text"): f[text]})
        if facts is None:
            return self.say(_, "answer", has)
        values, arguments = step(facts)
        answer, contains, _ = self.call_and_result(two, values, arguments, "second_call")
        self.say(answer, "answer", contains)

    def chain_request(self, imperatives):
        frames = phrasing.IMP_HELD if self.unseen else phrasing.IMP_FRAMES
        self.user(phrasing.framed(self.rng.choice(frames), self.rng.choice(imperatives)))

    def run_lacking(self):
        """Nothing offered fits: say so and call nothing."""
        have = {t.family.key for t in self.tools}
        family = invented_family(self.v) if self.rng.random() < 0.3 else self.rng.choice(FAMILIES)
        if clashes(family.key, have):
            return
        asked = make_ask(Tool(family, self.v), self.v)
        if asked:
            self.user(asked[0])
            self.say(f"I do not have a tool to {family.lacking}, so I cannot do that.", "lacking", ["do not have a tool"])

    # ---- turns without tools
    def run_talk(self):
        v, x = self.v, self.rng.random()
        if x < 0.1:
            for ask, answer in smalltalk.make_remember(v):
                self.user(ask, wrap=False)
                self.say(answer, "talk", [answer])
            return
        if x < 0.13 and self.tools:
            return
        make = (smalltalk.make_fact if x < 0.35 else smalltalk.make_count if x < 0.45 else smalltalk.make_repeat if x < 0.6 else
                smalltalk.make_list if x < 0.66 else smalltalk.make_story if x < 0.74 else None)
        ask, answer = make(v) if make else smalltalk.make_talk(v, self.persona)
        self.user(ask, wrap=False)
        self.say(answer, "story" if make is smalltalk.make_story else "talk", [] if make is smalltalk.make_story else [answer])

    def run_date(self):
        self.user(self.rng.choice(["What is today's date?", "What date is it today?", "Which day is it?", "What is the date?"]), wrap=False)
        self.say(f"Today is {self.date}.", "talk", [self.date])


CHAINS = [("add", "multiply"), ("multiply", "add"), ("subtract", "multiply"), ("add", "subtract"), ("order", "weather"),
          ("user", "weather"), ("read", "message"), ("search", "message")]
ASK_BACK = {"weather", "time", "order", "read", "timer", "list"}


def opening(d):
    r = d.rng
    d.date = "26 Jul 2024" if r.random() < 0.6 else d.v.date()
    x = r.random()
    if x < 0.45:
        d.messages.append({"role": "system", "content": r.choice(SYSTEMS)})
    elif x < 0.5:
        d.persona = d.v.name()
        d.messages.append({"role": "system", "content": f"You are {d.persona}, a helpful assistant."})


def tool_turn(d, by_key):
    r = d.rng
    x = r.random()
    tool = r.choice(d.tools)
    chains = [c for c in CHAINS if c[0] in by_key and c[1] in by_key]
    if chains and x < 0.3:
        d.run_chain(r.choice(chains), by_key)
    elif x < 0.42 and len(d.tools) > 1:
        d.run_two(*r.sample(d.tools, 2))
    elif x < 0.5:
        d.run_lacking()
    elif x < 0.6:
        d.run_talk()
    elif tool.family.key in ("weather", "time") and x < 0.7:
        d.run_same_twice(tool)
    elif tool.family.key in ASK_BACK and x < 0.64:
        d.run_ask_back(tool)
    elif x < 0.61:
        d.run_date()
    else:
        d.run_tool(tool)


def make_dialogue(seed, held=False, unseen=False, turns=None, tool_count=None):
    """One dialogue: {"messages", "tools", "date"}; deterministic in its arguments.

    held: held-back values and tool combinations; unseen: held-back wordings as well.
    """
    d = Dialogue(seed, held, unseen)
    r = d.rng
    opening(d)
    schemas = None
    if r.random() < 0.85:
        required = r.choice(CHAINS) if r.random() < 0.25 else ()
        count = tool_count or r.choice([1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 7])
        while True:
            d.tools = random_toolset(d.v, max(count, len(required)), required)
            if toolset_is_held(d.tools) == held:
                break
        style = random_style(r)
        schemas = [t.schema(d.v, style) for t in d.tools]
        by_key = {t.family.key: t for t in d.tools}
        start = len(d.messages)
        for _ in range(turns or r.choice([1, 1, 2, 2, 3, 4, 5])):
            tool_turn(d, by_key)
        if len(d.messages) == start:
            d.run_talk()
            if len(d.messages) == start:
                d.run_date()
    else:
        for _ in range(turns or r.choice([1, 2, 3, 4])):
            if r.random() < 0.12:
                d.run_lacking()
            elif r.random() < 0.05:
                d.run_date()
            else:
                d.run_talk()
        if not d.messages or d.messages[-1]["role"] == "system":
            d.run_date()
    return {"messages": d.messages, "tools": schemas, "date": d.date}


def probes(dialogue):
    """Every (prompt messages, expectation) pair of a dialogue."""
    for i, message in enumerate(dialogue["messages"]):
        if "_probe" in message:
            prompt = [{k: x for k, x in m.items() if k != "_probe"} for m in dialogue["messages"][:i]]
            yield prompt, message["_probe"]
