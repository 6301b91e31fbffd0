"""Renders a chat to the text that Llama 3.2 Instruct models read.

The layout is an interface (roles, headers, the fixed tool preamble); this renderer produces it byte for byte and is compared
with the reference jinja template by `check_render.py`. Tool calls are kept one per assistant message.
"""

import json

BEGIN = "<|begin_of_text|>"
EOT = "<|eot_id|>"
DEFAULT_DATE = "26 Jul 2024"
TOOL_PREAMBLE = (
    "Given the following functions, please respond with a JSON for a function call "
    "with its proper arguments that best answers the given prompt.\n\n"
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    "Do not use variables.\n\n"
)


def header(role):
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def tojson(value, indent=None):
    return json.dumps(value, ensure_ascii=False, indent=indent)


def call_text(name, arguments):
    """The assistant text of one tool call."""
    return '{"name": "' + name + '", "parameters": ' + tojson(arguments) + "}"


def render_message(message):
    role = message["role"]
    if "tool_calls" in message:
        function = message["tool_calls"][0]["function"]
        arguments = function["arguments"]
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        return header("assistant") + call_text(function["name"], arguments) + EOT
    if role in ("tool", "ipython"):
        return header("ipython") + tojson(message["content"]) + EOT
    return header(role) + message["content"].strip() + EOT


def render_chat(messages, tools=None, date=DEFAULT_DATE, add_generation_prompt=False):
    system = ""
    if messages and messages[0]["role"] == "system":
        system = messages[0]["content"].strip()
        messages = messages[1:]
    out = [BEGIN, header("system")]
    if tools:
        out.append("Environment: ipython\n")
    out.append(f"Cutting Knowledge Date: December 2023\nToday Date: {date}\n\n{system}{EOT}")
    if tools:
        out.append(header("user") + TOOL_PREAMBLE)
        out.extend(tojson(tool, 4) + "\n\n" for tool in tools)
        out.append(messages[0]["content"].strip() + EOT)
        messages = messages[1:]
    out.extend(render_message(m) for m in messages)
    if add_generation_prompt:
        out.append(header("assistant"))
    return "".join(out)
