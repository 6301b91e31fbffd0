#!/usr/bin/env python3
"""Renders chat requests with the real Llama 3.2 template and jinja2; needs python3-jinja2.

usage: make_template_goldens.py chat_template.jinja > chat_goldens.jsonl

One line per case: {"name", "request", "text"}. `request` is what ChatTemplate is given. Where the template raises or
misbehaves, the request is first rewritten the way text/chat_template.h says (see `rewrite`).
"""
import copy
import json
import sys

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

DATE = "26 Jul 2024"


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def load(path):
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(open(path, encoding="utf-8").read())


def rewrite(messages):
    """The decisions of text/chat_template.h, expressed as requests that the template can render."""
    out = []
    for message in copy.deepcopy(messages):
        message["role"] = {"developer": "system", "function": "tool"}.get(message["role"], message["role"])
        if message.get("content") is None:
            message["content"] = ""
        calls = message.pop("tool_calls", None) or []
        for call in calls:
            function = dict(call["function"], arguments=json.loads(call["function"]["arguments"] or "{}"))
            out.append({"role": "assistant", "content": message["content"], "tool_calls": [{"function": function}]})
        if not calls:
            out.append(message)
    return out


def render(template, request):
    messages = rewrite(request["messages"])
    variables = {"date_string": request.get("date", DATE)}
    if request.get("tools"):
        variables["tools"] = request["tools"]
    final = request.get("continue_final_message", False)
    text = template.render(bos_token="<|begin_of_text|>", messages=messages,
                           add_generation_prompt=request.get("add_generation_prompt", True) and not final, **variables)
    if final:  # as transformers does: cut behind the text of the last message
        last = messages[-1]["content"].strip()
        text = text[:text.rindex(last) + len(last)] if last else text.removesuffix("<|eot_id|>")
    return text


def msg(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, identifier="call_1"):
    return {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}


WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Current weather of a city.\nUnits: °C or \"F\" <b>&</b>",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "Stadt, 城市"},
        "unit": {"type": "string", "enum": ["C", "F"], "default": None},
        "days": {"type": "integer", "minimum": 0, "maximum": 14, "multipleOf": 1.0}},
        "required": ["city"], "additionalProperties": False}}}
ADD = {"function": {"parameters": {"properties": {"b": {"type": "number"}, "a": {"type": "number"}}, "type": "object",
                                   "required": []}, "name": "add", "strict": True}, "type": "function"}
EMPTY = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
ODD = {"numbers": [1, -0, 1.0, 1e16, 1e15, 123456789012345678901234567890, 1e-5, 0.0001, 1.5e300, 2.5, -0.0, 1e22],
       "nested": [[], {}, [[]], {"a": {}}], "t": [True, False, None], "esc": "\u0001\u001f\u007f\b\f\\/\"\t\u2028é😀"}


def cases():
    yield "plain", [msg("user", "Hello!")], {}
    yield "no_generation_prompt", [msg("user", "Hello!")], {"add_generation_prompt": False}
    yield "system", [msg("system", "You are terse."), msg("user", "Hi")], {}
    yield "developer", [msg("developer", "You are terse."), msg("user", "Hi")], {}
    yield "system_only", [msg("system", "Only a system text")], {}
    yield "assistant_first", [msg("assistant", "I begin."), msg("user", "ok")], {}
    yield "late_system", [msg("user", "a"), msg("system", "b"), msg("user", "c")], {}
    yield "multi_turn", [msg("system", "S"), msg("user", "1"), msg("assistant", "2"), msg("user", "3"),
                         msg("assistant", "4"), msg("user", "5")], {}
    yield "date", [msg("user", "What day is it?")], {"date": "01 Jan 2031"}
    yield "trim", [msg("system", " \n\t sys \r\n"), msg("user", "\n\n  padded\ttext \n ")], {}
    yield "trim_unicode", [msg("user", "\u00a0\u2003\u3000x\u0085\u2028\u001c"), msg("assistant", "\u200bkept\ufeff"),
                           msg("user", "\u180e also kept \u180e")], {}
    yield "empty_content", [msg("system", ""), msg("user", ""), msg("assistant", ""), msg("user", "   ")], {}
    yield "null_content", [msg("user", "a"), msg("assistant", None), msg("user", "b")], {}
    yield "unicode", [msg("user", "Grüße 東京 👩‍👩‍👧 שלום e\u0301")], {}
    yield "quotes", [msg("user", "say \"hi\" & <b>'x'</b> \\ {{ braces }} {% no %}")], {}
    yield "code", [msg("user", "```python\nprint(\"a\\n\")\n```"), msg("assistant", "{\"not\": \"a call\"}"),
                   msg("user", "  indented\n    more")], {}
    tools = {"tools": [WEATHER]}
    yield "tools", [msg("user", "Weather in Paris?")], tools
    yield "tools_system", [msg("system", "Be brief."), msg("user", " Weather? ")], tools
    yield "tools_several", [msg("user", "Weather?")], {"tools": [WEATHER, ADD, EMPTY], "date": "05 May 2025"}
    yield "tools_odd_values", [msg("user", "x")], {"tools": [ODD, {"function": {"name": "x"}}]}
    yield "tools_multi_turn", [msg("user", "one"), msg("assistant", "two"), msg("user", "three")], tools
    yield "tools_assistant_first", [msg("assistant", "Hello, how can I help?"), msg("user", "Weather?")], tools
    yield "tools_null_first", [msg("user", None), msg("user", "x")], tools
    paris = [msg("user", "Weather in Paris?"), msg("assistant", None, tool_calls=[call("get_weather", '{"city":"Paris"}')])]
    result = lambda content: msg("tool", content, tool_call_id="call_1")
    yield "call", paris, tools
    yield "call_no_tools", paris, {}
    yield "call_with_text", [msg("user", "w"), msg("assistant", "Let me see.", tool_calls=[call("f", "{}")])], {}
    yield "result_string", [*paris, result("21 °C, \"sunny\"\n")], tools
    yield "result_json_string", [*paris, result('{"temp": 21}')], tools
    yield "result_object", [*paris, result({"temp": 21, "sky": "clear ☀", "list": [1, 2.0, None]})], tools
    yield "result_list", [*paris, result([{"a": 1}, "b"])], tools
    yield "result_number", [*paris, result(21)], tools
    yield "result_float", [*paris, result(21.5)], tools
    yield "result_true", [*paris, result(True)], tools
    yield "result_empty", [*paris, result("")], tools
    yield "result_ipython", [*paris, msg("ipython", "out")], tools
    yield "result_function_role", [*paris, msg("function", "out")], tools
    yield "agent_loop", [msg("system", "Agent."), *paris, result("21"), msg("assistant", "It is 21 °C."), msg("user", "London?"),
                         msg("assistant", "", tool_calls=[call("get_weather", '{"unit": "F", "city": "London"}', "c2")]),
                         result("70")], tools
    yield "arguments_spacing", [msg("user", "x"), msg("assistant", None, tool_calls=[
        call("add", '{"b":1,\n "a":[1,2,{"z":null,"y":true}],"s":"é\\u00e9\\n\\"\\u2028"}')])], {}
    yield "arguments_odd", [msg("user", "x"), msg("assistant", None, tool_calls=[call("f", json.dumps(ODD))])], {}
    yield "arguments_empty", [msg("user", "x"), msg("assistant", None, tool_calls=[call("now", "")])], {}
    yield "arguments_duplicate_keys", [msg("user", "x"), msg("assistant", None, tool_calls=[
        call("f", '{"a": 1, "b": 2, "a": 3}')])], {}
    yield "parallel_calls", [msg("user", "x"), msg("assistant", None, tool_calls=[
        call("get_weather", '{"city": "Rome"}', "a"), call("add", '{"a": 1, "b": 2}', "b")]),
        result("sun"), result("3")], tools
    yield "empty_tool_calls", [msg("user", "x"), msg("assistant", "y", tool_calls=[])], {}
    final = {"continue_final_message": True}
    yield "continue", [msg("user", "Tell a story"), msg("assistant", "Once upon a time,")], final
    yield "continue_trims", [msg("user", "Tell"), msg("assistant", "  Once ")], final
    yield "continue_tools", [msg("user", "Tell"), msg("assistant", "{\"name\": ")], {**final, **tools}
    yield "long", [msg("user" if i % 2 == 0 else "assistant", f"turn {i} " + "word " * i) for i in range(41)], {}


def main():
    template = load(sys.argv[1])
    for name, messages, more in cases():
        request = {"messages": messages, **more}
        json.dump({"name": name, "request": request, "text": render(template, request)}, sys.stdout, ensure_ascii=True)
        print()


main()
