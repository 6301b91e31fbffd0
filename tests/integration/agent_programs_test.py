#!/usr/bin/env python3
"""Agents against a real cluster of `agentserve up` with the bundled model: a two-turn program in each dialect must be
one program to the router, and every call must be explained. argv[1] = the agentserve program."""
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request

PROGRAM = pathlib.Path(sys.argv.pop(1)).resolve()
PATIENCE_S = 120  # also on a busy machine
KEYS = "key-of-a team-a\nkey-of-b team-b\n"
TENANTS = {"tenants": {"team-a": {"share": 2, "max_priority": 10}, "team-b": {}}}
QUESTION = "Please tell me what you can do for me, and which tools you have for that."

# name, headers, body, program the router must see (None = one of its own naming), what named it
DIALECTS = [
    ("own", {"x-agentserve-program-id": "own-1"}, {}, "own-1", "own"),
    ("dynamo", {"X-Dynamo-Session-ID": "dyn-1", "X-Dynamo-Parent-Session-ID": "dyn-0"}, {}, "dyn-1", "dynamo"),
    ("dynamo trajectory", {"x-dynamo-trajectory-id": "tra-1"}, {}, "tra-1", "dynamo"),
    ("claude code", {"x-claude-code-session-id": "cc", "x-claude-code-agent-id": "sub"}, {}, "cc/sub", "claude_code"),
    ("codex", {"session-id": "cod-1"}, {}, "cod-1", "codex"),
    ("opencode", {"x-session-id": "oc-1", "x-parent-session-id": "oc-0"}, {}, "oc-1", "opencode"),
    ("nvext", {}, {"nvext": {"agent_hints": {"prefix_id": "nv-1", "osl": 8, "priority": 3}}}, "nv-1", "nvext"),
    ("body", {}, {"program_id": "body-1"}, "body-1", "body"),
    ("metadata", {}, {"metadata": {"agent.program_id": "meta-1"}}, "meta-1", "metadata"),
    ("cache key", {}, {"prompt_cache_key": "pck-1"}, "pck-1", "cache_key"),
    ("nothing", {}, {}, None, "new"),
]


class Cluster:
    def __init__(self):
        self.dir = tempfile.TemporaryDirectory(prefix="agent-programs-")
        folder = pathlib.Path(self.dir.name)
        (folder / "keys").write_text(KEYS)
        (folder / "tenants.json").write_text(json.dumps(TENANTS))
        self.state_file = folder / "state.json"
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [PROGRAM, "up", "--port", "0", "--device", "cpu", "--threads", "1", "--state-file", self.state_file,
             f"--gateway-arg=--api-key-file={folder / 'keys'}", f"--router-arg=--tenants={folder / 'tenants.json'}"],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT)

    def ports(self):
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and self.process.poll() is None:
            try:
                state = json.loads(self.state_file.read_text())
                found = {p["role"]: p for p in state["processes"] if p.get("port")}
                port = found["gateway"]["port"]
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as reply:
                    if reply.status == 200:
                        return port, found["router"]
            except (OSError, ValueError, KeyError):
                pass
            time.sleep(0.1)
        raise RuntimeError("the cluster did not become ready:\n" + self.text())

    def text(self):
        self.log.flush()
        return pathlib.Path(self.log.name).read_text()[-5000:]

    def stop(self):
        self.process.terminate()
        code = self.process.wait(timeout=PATIENCE_S)
        self.log.close()
        self.dir.cleanup()
        return code


def setUpModule():
    global cluster, gateway, router
    cluster = Cluster()
    try:
        gateway, router = cluster.ports()
    except BaseException:
        cluster.process.kill()
        raise


def tearDownModule():
    code = cluster.stop()
    assert code == 0, f"agentserve up ended with {code}"


def call(method, path, body=None, headers=None, key="key-of-a"):
    request = urllib.request.Request(f"http://127.0.0.1:{gateway}{path}", method=method,
                                     data=None if body is None else json.dumps(body).encode(),
                                     headers={"authorization": f"Bearer {key}", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
            return reply.status, dict(reply.headers.items()), json.loads(reply.read())
    except urllib.error.HTTPError as e:
        return e.code, dict(e.headers.items()), json.loads(e.read())


def chat(messages, headers=None, body=None, key="key-of-a", max_tokens=8):
    return call("POST", "/v1/chat/completions",
                {"messages": messages, "max_tokens": max_tokens, "temperature": 0, **(body or {})}, headers, key)


def why(request_id, key="key-of-a"):
    status, _, decision = call("GET", f"/v1/agentserve/requests/{request_id}/decision", key=key)
    return decision if status == 200 else status


class AgentPrograms(unittest.TestCase):
    maxDiff = None

    def turn(self, messages, headers=None, body=None):
        status, reply_headers, reply = chat(messages, headers, body)
        self.assertEqual(status, 200, reply)
        return reply_headers, reply

    def two_turns(self, name, headers, body):
        ask = [{"role": "system", "content": f"You answer for {name}."}, {"role": "user", "content": QUESTION}]
        first_headers, first = self.turn(ask, headers, body)
        answer = first["choices"][0]["message"].get("content") or "Well."
        more = ask + [{"role": "assistant", "content": answer}, {"role": "user", "content": "Go on, please."}]
        second_headers, second = self.turn(more, headers, body)
        return (first_headers, first), (second_headers, second)

    def test_two_turns_of_each_dialect_are_one_program(self):
        for name, headers, body, program, source in DIALECTS:
            with self.subTest(name):
                (h1, r1), (h2, r2) = self.two_turns(name, headers, body)
                seen = h1["x-agentserve-program-id"]
                if program is not None:
                    self.assertEqual(seen, program)
                self.assertEqual(h2["x-agentserve-program-id"], seen)
                one, two = why(r1["id"]), why(h2["x-agentserve-request-id"])
                self.assertEqual(one["program"], seen)
                self.assertEqual(two["program"], seen)
                self.assertEqual(one["tenant"], "team-a")
                self.assertEqual(one["program_named_by"], source)
                self.assertEqual(two["program_named_by"], "prefix" if source == "new" else source)
                self.assertEqual(two["state"], "ended")
                self.assertEqual(two["end_reason"], "done")
                self.assertEqual(two["response_id"], r2["id"])
                self.assertEqual(two["place"]["decode_worker"], "decode-0")
                self.assertGreater(two["timeline"]["total_ms"], 0)
                listed = call("GET", "/v1/agentserve/decisions?program_id=" + urllib.parse.quote(seen, safe=""))[2]["data"]
                self.assertEqual([d["response_id"] for d in listed], [r2["id"], r1["id"]])

    def test_previous_response_id_continues_a_program(self):
        _, first = self.turn([{"role": "user", "content": QUESTION}], {"x-session-id": "before"})
        headers, _ = self.turn([{"role": "user", "content": "Something else."}], None,
                               {"previous_response_id": first["id"], "prompt_cache_key": "weaker"})
        self.assertEqual(headers["x-agentserve-program-id"], "before")

    def test_tenants_are_apart(self):
        _, reply = self.turn([{"role": "user", "content": "mine"}], {"x-agentserve-program-id": "shared-name"})
        self.assertEqual(why(reply["id"], key="key-of-b"), 404)
        self.assertEqual(call("DELETE", "/v1/agentserve/programs/shared-name", key="key-of-b")[0], 404)
        self.assertEqual(call("DELETE", "/v1/agentserve/programs/shared-name")[0], 200)
        self.assertEqual(why(reply["id"], key="wrong"), 401)

    def test_hints_are_clamped_by_tenant(self):
        _, reply = self.turn([{"role": "user", "content": "hurry"}],
                             {"x-agentserve-priority": "100", "x-agentserve-osl": "100000"})
        self.assertEqual(sorted(why(reply["id"])["clamped_hints"]), ["osl", "priority"])

    def test_dependent_calls_wait(self):
        program = {"x-agentserve-program-id": "graph"}
        results = {}

        def send(name, needs):
            headers = {**program, "x-agentserve-call-id": name, "x-request-id": f"graph-{name}"}
            if needs:
                headers["x-agentserve-depends-on"] = needs
            results[name] = chat([{"role": "user", "content": f"This is part {name} of the work."}], headers)

        # The join first: order does not matter.
        threads = [threading.Thread(target=send, args=a) for a in (("join", "a,b"), ("a", ""), ("b", "a"))]
        for t in threads:
            t.start()
            time.sleep(0.2)
        for t in threads:
            t.join()
        for name, (status, _, reply) in results.items():
            self.assertEqual(status, 200, f"{name}: {reply}")
        self.assertGreater(why("graph-join")["timeline"]["dependency_ms"], 0)
        self.assertEqual(why("graph-a")["timeline"]["dependency_ms"], 0)
        status, _, reply = chat([{"role": "user", "content": "x"}],
                                {**program, "x-agentserve-call-id": "me", "x-agentserve-depends-on": "me"})
        self.assertEqual(status, 400)
        self.assertIn("depends_on", reply["error"]["message"])

    def test_declared_programs_and_tools(self):
        calls = [{"id": "plan", "osl": 8}, {"id": "act", "depends_on": ["plan"], "osl": 8}]
        status, _, reply = call("PUT", "/v1/agentserve/programs/declared", {"calls": calls})
        self.assertEqual((status, reply["pending_calls"]), (200, 2))
        for name in ("plan", "act"):
            self.turn([{"role": "user", "content": f"Do the {name}."}],
                      {"x-agentserve-program-id": "declared", "x-agentserve-call-id": name})
        for phase in ("start", "end"):
            status, _, _ = call("POST", "/v1/agentserve/programs/declared/tool", {"tool": "bash", "phase": phase})
            self.assertEqual(status, 200)
        self.assertEqual(call("DELETE", "/v1/agentserve/programs/declared")[0], 200)
        self.assertEqual(call("DELETE", "/v1/agentserve/programs/declared")[0], 404)

    def test_bad_own_hints_are_refused(self):
        status, _, reply = chat([{"role": "user", "content": "x"}], {"x-agentserve-priority": "soon"})
        self.assertEqual(status, 400)
        self.assertEqual(reply["error"]["param"], "x-agentserve-priority")

    def test_why_on_the_command_line(self):
        _, reply = self.turn([{"role": "user", "content": QUESTION}], {"x-agentserve-program-id": "cli"})
        run = lambda *args: subprocess.run([PROGRAM, "why", *args, "--state-file", cluster.state_file],
                                           capture_output=True, text=True, timeout=PATIENCE_S)
        text = run(reply["id"])
        self.assertEqual(text.returncode, 0, text.stderr)
        for part in ("program   cli, named by x-agentserve headers", "tenant team-a", "decode on decode-0", "* decode-0",
                     "first token after"):
            self.assertIn(part, text.stdout)
        listed = run("--program=cli")
        self.assertIn("cli", listed.stdout)
        self.assertEqual(json.loads(run(reply["id"], "--json").stdout)["program_id"], "cli")
        missing = run("nothing-like-it")
        self.assertNotEqual(missing.returncode, 0)
        self.assertIn("nothing is known", missing.stderr)

    def test_zz_metrics_count_by_source(self):
        port = router.get("metrics_port")
        if not port:
            self.skipTest("the state file names no metrics port of the router")
        end = time.monotonic() + 10
        while True:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
                text = reply.read().decode()
            counts = {m[1]: float(m[2]) for m in re.finditer(
                r'agentserve_router_calls_identified_total\{[^}]*source="([a-z_]+)"[^}]*\} ([0-9.e+]+)', text)}
            good = all(counts.get(s, 0) >= 1 for s in ("own", "dynamo", "claude_code", "codex", "opencode", "nvext",
                                                       "body", "metadata", "cache_key", "new", "prefix"))
            if good or time.monotonic() > end:
                break
            time.sleep(0.2)
        self.assertTrue(good, counts)
        self.assertRegex(text, r'agentserve_router_hints_clamped_total\{[^}]*hint="priority"[^}]*\} [1-9]')
        self.assertRegex(text, r'agentserve_router_decision_places_total\{[^}]*reason="local_short"[^}]*\} [1-9]')
        self.assertRegex(text, r'agentserve_router_dependent_calls_total\{[^}]*outcome="waited"[^}]*\} [1-9]')


if __name__ == "__main__":
    unittest.main(verbosity=2)
