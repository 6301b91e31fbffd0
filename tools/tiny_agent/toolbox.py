"""Makes concrete tools out of families, calls with arguments, and results. Uses only the given random source."""

import json

import phrasing
from families import FAMILIES, BY_KEY, Family, Param

ROOMS = "kitchen bedroom bathroom office hallway garage cellar attic garden nursery library lobby workshop balcony studio".split()
CONDITIONS = ["sunny", "cloudy", "rainy", "windy", "snowy", "foggy", "clear", "stormy", "overcast", "partly cloudy", "hazy"]
STATES = ["shipped", "delivered", "pending", "processing", "delayed", "returned", "cancelled", "packed", "on its way", "lost"]
DO_VERBS = """polish inspect calibrate paint lock unlock start stop reset restart measure rotate scan archive assign approve rename
ping tune empty fill repair mount count sort label rate mark block schedule cancel validate export merge split clone deploy""".split()


def expression(v):
    r = v.rng
    op = lambda: r.choice(["+", "-", "*", "/"])
    x = r.random()
    n = v.number
    if x < 0.7:
        return f"{n()} {op()} {n()}"
    if x < 0.8:
        return f"{n()}{op()}{n()}"
    if x < 0.92:
        return f"{n()} {op()} {n()} {op()} {n()}"
    return f"({n()} {op()} {n()}) {op()} {n()}"


OP_WORDS = {"+": ["plus"], "-": ["minus"], "*": ["times", "multiplied by", "x"], "/": ["divided by", "over"]}


def spoken(v, expr):
    """"3 * 4" as a person says it: "3 times 4"; anything else stays as written."""
    parts = expr.split(" ")
    if len(parts) in (3, 5) and "(" not in expr and v.rng.random() < 0.5:
        return " ".join(v.rng.choice(OP_WORDS[p]) if p in OP_WORDS else p for p in parts)
    return expr


def when(v):
    r = v.rng
    t = v.time()
    return t if r.random() < 0.7 else f"{t} {r.choice(['tomorrow', 'today', 'on Monday', 'on Friday', 'tonight', 'on Sunday'])}"


def draw(v, kind):
    """A random value of a parameter or fact kind."""
    r = v.rng
    special = {
        "expression": lambda: expression(v), "when": lambda: when(v), "room": lambda: v.pick(ROOMS) if r.random() < 0.7 else v.word(),
        "ticker": lambda: "".join(r.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(r.randint(2, 5))),
        "temp": lambda: r.randint(-30, 45), "condition": lambda: r.choice(CONDITIONS) if r.random() < 0.9 else v.word(),
        "clock": v.time, "files": lambda: [v.filename() for _ in range(r.randint(1, 5))], "status": lambda: r.choice(["ok", "sent", "done", "success"]),
        "order_status": lambda: r.choice(STATES) if r.random() < 0.85 else v.word(), "id": v.order_id,
        "price": lambda: round(r.uniform(1, 2000), 2), "phone": lambda: r.choice(["+{}{}", "{}-{}", "0{} {}"]).format(r.randint(10, 999), r.randint(10000, 9999999)),
        "phrase": v.phrase,
    }
    return (special.get(kind) or getattr(v, kind))()


class Tool:
    """One concrete tool offered in a dialogue."""

    def __init__(self, family, v):
        r = v.rng
        self.family = family
        self.name = r.choice(family.names)
        if r.random() < 0.08:
            head, _, tail = self.name.partition("_")
            self.name = head + tail.title().replace("_", "")
        self.params = []
        used = set()
        for p in family.params:
            if not p.required and r.random() < 0.3:
                continue
            name = r.choice([n for n in p.names if n not in used])
            used.add(name)
            self.params.append((p, name))
        self.desc = r.choice(family.descs) + r.choice(["", "", ".", "."])

    def schema(self, v, style):
        """OpenAI tool JSON; `style` fixes what one client does for all its tools."""
        r = v.rng
        props = {}
        for p, name in self.params:
            prop = {"type": p.type}
            if style["descriptions"] or r.random() < 0.3:
                prop["description"] = r.choice(p.descs)
            if p.enum:
                prop["enum"] = list(p.enum)
            props[name] = prop
        parameters = {"type": "object", "properties": props, "required": [n for p, n in self.params if p.required]}
        if style["closed"]:
            parameters["additionalProperties"] = False
        function = {"name": self.name, "description": self.desc, "parameters": parameters}
        if style["strict"]:
            function["strict"] = True
        tool = {"type": "function", "function": function}
        return json.loads(json.dumps(tool, sort_keys=True)) if style["sorted"] else tool


def random_style(r):
    return {"descriptions": r.random() < 0.6, "closed": r.random() < 0.15, "strict": r.random() < 0.1, "sorted": r.random() < 0.2}


def invented_family(v):
    """A tool nobody has seen: "polish_lamp", asked for in the words of its description."""
    r = v.rng
    verb = v.pick(DO_VERBS) if r.random() < 0.8 else v.nonsense(2)
    noun = v.noun()
    kinds = [("id", "order_id", "string"), ("name", "name", "string"), ("level", "small", "integer"), ("city", "city", "string"),
             ("value", "number", "number"), ("label", "word", "string"), ("code", "ticker", "string"), ("path", "path", "string"),
             (v.word(), "word", "string"), (v.word(), "integer", "integer")]
    chosen = r.sample(kinds, r.choice([0, 1, 1, 1, 2, 2, 2, 3]))
    if len({c[0] for c in chosen}) < len(chosen):
        chosen = chosen[:1]
    params = [Param(n, [n], gen, typ, [f"The {n}", f"The {n} of the {noun}"]) for n, gen, typ in chosen]
    detail = r.choice([
        "with " + " and ".join(f"{n} {{{n}}}" for n, _, _ in chosen), "with " + ", ".join(f"{n} {{{n}}}" for n, _, _ in chosen),
        "where " + " and ".join(f"{n} is {{{n}}}" for n, _, _ in chosen), "that has " + " and ".join(f"{n} {{{n}}}" for n, _, _ in chosen),
        "using " + " and ".join(f"{n} {{{n}}}" for n, _, _ in chosen), "for " + " and ".join(f"{n} {{{n}}}" for n, _, _ in chosen)])
    detail = " " + detail if chosen else ""
    article = r.choice(["the", "the", "a", "this", "my"])
    imps = [f"{verb} {article} {noun}{detail}"]
    asks = [f"{verb} {noun}{detail}", f"{verb.capitalize()} the {noun}{detail}."]
    phrases = (imps, [f"{verb} our {noun}{detail}"], [], [])
    fact = v.word()
    answers = [f"The {fact} is {{{fact}_}}."]
    kind = r.choice(["integer", "word", "phrase", "order_id", "number"])
    return Family(f"do {verb} {noun}", [f"{verb}_{noun}"], [f"{verb.capitalize()} a {noun}", f"{verb.capitalize()} the {noun}"], params,
                  asks, [], {f"{fact}_": (kind, [fact])}, answers, f"{verb} a {noun}", phrases)


def slots_of(template):
    return {part.split("}")[0] for part in template.split("{")[1:]}


def make_ask(tool, v):
    """A request that this tool answers: (user text, slot values, arguments) or None when no wording fits the tool."""
    r = v.rng
    have = {p.slot for p, _ in tool.params}
    needed = {p.slot for p, _ in tool.params if p.required}
    phrases = tool.family.phrases or [phrasing.split(x) for x in phrasing.PHRASES[tool.family.key]]
    for _ in range(8):  # optional parameters that a tool lacks make some wordings unfit
        template = r.choice(tool.family.asks + tool.family.held) if not v.unseen and r.random() < 0.35 else phrasing.wordings(phrases, v.unseen, r)
        if needed <= slots_of(template) <= have:
            if not v.held and r.random() < 0.15:
                template = phrasing.disturb(template, v)
            return fill(tool, v, template)
    return None


def fill(tool, v, template):
    used = slots_of(template)
    values = {}
    for p, _ in tool.params:
        if p.slot in used:
            values[p.slot] = v.rng.choice(p.enum) if p.enum else draw(v, p.gen)
    text = template
    for slot, value in values.items():
        text = text.replace("{" + slot + "}", spoken(v, value) if slot == "expression" else str(value))
    arguments = {name: values[p.slot] for p, name in tool.params if p.slot in used}
    return text, values, arguments


def make_result(tool, values, v):
    """What the tool returns: (content string, facts)."""
    r = v.rng
    facts = {fact: draw(v, kind) for fact, (kind, _) in tool.family.facts.items()}
    if tool.family.key in ("add", "multiply", "subtract"):
        a, b = values["a"], values["b"]
        value = a + b if tool.family.key == "add" else a * b if tool.family.key == "multiply" else a - b
        facts["result"] = round(value, 4) if isinstance(value, float) else value
    named = {r.choice(tool.family.facts[f][1]): x for f, x in facts.items()}
    x = r.random()
    single = list(named.values())[0]
    if not v.held and len(named) == 1 and not isinstance(single, list) and r.random() < 0.1:
        content = json.dumps({"ok": True, **named, v.word(): draw(v, r.choice(["integer", "word"]))}, ensure_ascii=False)
    elif x < 0.5:
        if r.random() < 0.25:
            named = {**{n: values[p.slot] for p, n in tool.params if p.slot in values}, **named}
        content = json.dumps(named, ensure_ascii=False, separators=r.choice([(", ", ": "), (", ", ": "), (",", ":")]))
    elif len(named) == 1 and isinstance(single, list):
        content = r.choice([", ", "\n", "\n", " "]).join(single) if x < 0.85 else json.dumps(single)
    elif len(named) == 1:
        content = str(single) if x < 0.9 else f"{list(named)[0]}: {single}"
    else:
        content = r.choice([", ", "; ", "\n"]).join(f"{n}: {y}" for n, y in named.items())
        if x > 0.85:
            content = ", ".join(str(y) for y in named.values())
    return content, facts


def make_answer(tool, values, facts, content, v):
    if tool.family.phrases and next(iter(tool.family.facts.values()))[1][0] not in content:
        return f"The result is {next(iter(facts.values()))}."  # an invented tool that returned a bare value
    shown = {k: (", ".join(x) if isinstance(x, list) else str(x)) for k, x in {**facts, **values}.items()}
    for fact in facts:  # a fact wins over an argument of the same name
        shown[fact] = ", ".join(facts[fact]) if isinstance(facts[fact], list) else str(facts[fact])
    text = tool.family.answers[0] if v.rng.random() < 0.8 else v.rng.choice(tool.family.answers)
    for slot, value in shown.items():
        text = text.replace("{" + slot + "}", value)
    return text


ARITHMETIC = {"add", "multiply", "subtract", "divide"}


def clashes(key, keys):
    """A general calculator and single operations would both fit the same request."""
    return key in keys or (key == "calc" and ARITHMETIC & keys) or (key in ARITHMETIC and "calc" in keys)


def random_toolset(v, count, required=()):
    """`count` different tools, the families in `required` among them, in random order."""
    r = v.rng
    families = [BY_KEY[k] for k in required]
    while len(families) < count:
        f = invented_family(v) if r.random() < 0.22 else r.choice(FAMILIES)
        if not clashes(f.key, {g.key for g in families}):
            families.append(f)
    r.shuffle(families)
    tools, names = [], set()
    for f in families:
        t = Tool(f, v)
        if t.name not in names:
            names.add(t.name)
            tools.append(t)
    return tools
