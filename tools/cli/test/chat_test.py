#!/usr/bin/env python3
"""Black-box test of `agentserve chat` and the flags of `bench serve`, with a fake server: argv[1] = the program."""
import http.server
import json
import pathlib
import subprocess
import sys
import threading
import unittest

PROGRAM = pathlib.Path(sys.argv.pop(1)).resolve()


class FakeApi(http.server.BaseHTTPRequestHandler):
    bodies = []
    answer = None  # events to send instead of the usual ones

    def do_GET(self):
        self.reply(200, "application/json", json.dumps({"data": [{"id": "fake-model"}]}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers.get("authorization") != "Bearer key":
            return self.reply(401, "application/json", json.dumps({"error": {"message": "wrong key"}}))
        FakeApi.bodies.append(body)
        events = FakeApi.answer or [
            {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
            {"choices": [{"delta": {"content": "you said "}}]},
            {"choices": [{"delta": {"content": body["messages"][-1]["content"]}}]},
            {"choices": [{"delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 3}}, "[DONE]"]
        text = "".join(f"data: {e if isinstance(e, str) else json.dumps(e)}\n\n" for e in events)
        self.reply(200, "text/event-stream; charset=utf-8", text)

    def reply(self, status, kind, text):
        data = text.encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class ChatTest(unittest.TestCase):
    def setUp(self):
        FakeApi.bodies, FakeApi.answer = [], None
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeApi)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def run_program(self, *args, stdin=""):
        return subprocess.run([PROGRAM, *args], input=stdin, capture_output=True, text=True, timeout=60)

    def chat(self, stdin, *args):
        return self.run_program("chat", "--url", self.url, "--api-key", "key", *args, stdin=stdin)

    def test_conversation_over_pipes(self):
        done = self.chat("one\ntwo\n/system be brief\nthree\n/quit\nnever\n", "--temperature", "0")
        self.assertEqual((done.returncode, done.stdout), (0, "you said one\nyou said two\nyou said three\n"))
        self.assertIn("(3 tokens, ", done.stderr)
        second, third = FakeApi.bodies[1]["messages"], FakeApi.bodies[2]["messages"]
        self.assertEqual([(m["role"], m["content"]) for m in second],
                         [("user", "one"), ("assistant", "you said one"), ("user", "two")])
        self.assertEqual([(m["role"], m["content"]) for m in third], [("system", "be brief"), ("user", "three")])
        self.assertEqual((FakeApi.bodies[0]["model"], FakeApi.bodies[0]["temperature"]), ("fake-model", 0))

    def test_failures_are_said_and_end_a_script(self):
        done = self.run_program("chat", "--url", self.url, "--model", "m", stdin="one\ntwo\n")
        self.assertEqual(done.returncode, 1)
        self.assertIn("HTTP status 401: wrong key", done.stderr)
        for events, words in [([{"error": {"message": "worker lost"}}, "[DONE]"], "worker lost"),
                              ([{"choices": [{"delta": {"content": "x"}}]}], "the stream ended too early")]:
            FakeApi.answer = events
            done = self.chat("one\n")
            self.assertEqual(done.returncode, 1)
            self.assertIn(words, done.stderr)

    def test_tool_calls_are_shown_and_kept(self):
        call = lambda **kw: {"choices": [{"delta": {"tool_calls": [{"index": 0, **kw}]}}]}
        FakeApi.answer = [call(id="c1", type="function", function={"name": "add", "arguments": ""}),
                          call(function={"arguments": '{"a":'}), call(function={"arguments": "1}"}), "[DONE]"]
        done = self.chat("one\ntwo\n")
        self.assertIn('[calls add] {"a":1}', done.stdout)
        self.assertEqual(FakeApi.bodies[1]["messages"][1]["tool_calls"][0]["function"], {"name": "add", "arguments": '{"a":1}'})

    def test_wrong_flags(self):
        for args in (["chat", "--url", "ftp://x"], ["chat", "--timeout", "0"], ["bench", "serve", "--requests", "0"],
                     ["bench", "serve", "--prompt-tokens", "5:3"], ["bench", "serve", "--concurrency", "0"],
                     ["bench", "serve", "--rate", "nan"], ["bench", "serve", "--endpoint", "x"], ["bench"], ["bench", "x"],
                     ["top", "--interval-ms", "1"], ["probe", "--timeout", "-1"], []):
            done = self.run_program(*args)
            self.assertEqual(done.returncode, 2, (args, done.stderr))
            self.assertTrue(done.stderr or done.stdout, args)

    def test_help_of_every_command(self):
        text = self.run_program("--help").stdout
        for name in ("up", "chat", "top", "bench", "probe"):
            self.assertIn(f"  {name} ", text)
        for args in (["up"], ["chat"], ["top"], ["bench", "serve"], ["probe"]):
            done = self.run_program(*args, "--help")
            self.assertEqual(done.returncode, 0)
            self.assertIn("Usage: agentserve " + " ".join(args), done.stdout)
            self.assertIn("AGENTSERVE_" + "_".join(args).upper(), done.stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)
