#!/usr/bin/env python3
"""Black-box test of `agentserve up` with fake services: argv[1] = the agentserve program."""
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAM = pathlib.Path(sys.argv.pop(1)).resolve()
FAKE = pathlib.Path(__file__).with_name("fake_service.py")
SERVICES = ["gateway", "router", "kvstore", "prefill-worker", "decode-worker"]
PATIENCE_S = 60  # also on a busy machine


def alive(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


class UpTest(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="up-test-"))
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        self.runtime = self.dir / "runtime"
        self.fakes = self.dir / "fakes"
        self.bin = self.dir / "bin"
        model = self.dir / "model"
        for folder in (self.runtime, self.fakes, self.bin, model):
            folder.mkdir()
        (model / "config.json").write_text("{}")
        for service in SERVICES:
            (self.bin / f"agentserve-{service}").symlink_to(FAKE)
        self.env = dict(os.environ, FAKE_DIR=str(self.fakes), XDG_RUNTIME_DIR=str(self.runtime))
        self.args = ["--bin-dir", str(self.bin), "--model", str(model), "--port", "0"]

    def up(self, *args):
        self.output = self.dir / "output"
        with self.output.open("w") as output:
            process = subprocess.Popen([PROGRAM, "up", *self.args, *args], env=self.env, stdin=subprocess.DEVNULL,
                                       stdout=output, stderr=subprocess.STDOUT)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def text(self):
        return self.output.read_text()

    def wait_for(self, what, condition):
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            value = condition()
            if value:
                return value
            time.sleep(0.02)
        self.fail(f"waited {PATIENCE_S} s for {what}; output:\n{self.text()}")

    def wait_ready(self):
        self.wait_for("the banner", lambda: "Try it:" in self.text())
        return self.state()

    def state(self):
        files = list(self.runtime.glob("agentserve-*/state.json"))
        return json.loads(files[0].read_text()) if files else None

    def events(self):
        path = self.fakes / "events"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def assert_nothing_left(self):
        for name, pid, event in self.events():
            self.assertFalse(event == "start" and alive(int(pid)), f"{name} {pid} still runs")
        self.assertEqual(list(self.runtime.iterdir()), [], "run folder was left behind")

    def test_ready_then_ctrl_c_leaves_nothing(self):
        process = self.up("--prefill", "2", "--decode", "1", "--api-key", "secret", "--router-arg=--max-queued=7")
        state = self.wait_ready()
        self.assertTrue(state["ready"])
        self.assertEqual([p["name"] for p in state["processes"]],
                         ["kvstore", "router", "prefill-0", "prefill-1", "decode-0", "gateway"])
        self.assertTrue(all(alive(p["pid"]) for p in state["processes"]))
        ports = [p["port"] for p in state["processes"]] + [p["metrics_port"] for p in state["processes"][:-1]]
        self.assertEqual(len(set(ports)), len(ports))
        self.assertIn("curl -N http://127.0.0.1:", self.text())
        self.assertIn("prefill-1  | half a line", self.text())
        self.assertIn("--max-queued=7", (self.fakes / "router.args").read_text())
        self.assertNotIn("secret", (self.fakes / "gateway.args").read_text())
        self.assertEqual((self.fakes / "gateway.env").read_text(), "secret")
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(PATIENCE_S), 0)
        order = [name for name, _, event in self.events() if event == "term"]
        self.assertEqual((order[0], order[1], order[-1]), ("gateway", "router", "kvstore"))
        self.assertEqual(sorted(order[2:-1]), ["decode-0", "prefill-0", "prefill-1"])
        self.assert_nothing_left()

    def test_sigterm_while_starting_leaves_nothing(self):
        (self.fakes / "gateway.exit").write_text("1")  # never ready
        process = self.up()
        self.wait_for("a first start", self.events)
        process.terminate()
        self.assertEqual(process.wait(PATIENCE_S), 0, self.text())
        self.assert_nothing_left()

    def test_crashed_child_is_started_again(self):
        process = self.up()
        self.wait_ready()
        (self.fakes / "decode-0.once").touch()
        self.wait_for("the restart", lambda: "decode-0 is back" in self.text())
        self.assertIn("decode-0 was killed by signal 9", self.text())
        self.assertIn("starting it again in 0.20 s", self.text())
        state = self.state()
        decode = next(p for p in state["processes"] if p["name"] == "decode-0")
        self.assertEqual(decode["restarts"], 1)
        starts = [e for e in self.events() if e[0] == "decode-0" and e[2] == "start"]
        self.assertEqual(int(starts[1][1]), decode["pid"])
        process.terminate()
        self.assertEqual(process.wait(PATIENCE_S), 0)
        self.assert_nothing_left()

    def test_model_error_stops_everything_with_its_code(self):
        (self.fakes / "prefill-0.exit").write_text("3")
        process = self.up("--quiet")
        self.assertEqual(process.wait(PATIENCE_S), 3)
        self.assertIn("prefill-0: the reason is written here", self.text())
        self.assertIn("prefill-0 cannot start: it ended with exit code 3", self.text())
        self.assert_nothing_left()

    def test_crash_loop_before_ready_gives_up(self):
        (self.fakes / "router.exit").write_text("1")
        process = self.up()
        self.assertEqual(process.wait(PATIENCE_S), 1)
        self.assertIn("router ended 5 times before it was ready", self.text())
        self.assert_nothing_left()

    def test_deaf_child_is_killed_after_the_drain_timeout(self):
        (self.fakes / "router.deaf").touch()
        process = self.up("--drain-timeout", "0.5")
        self.wait_ready()
        process.terminate()
        self.assertEqual(process.wait(PATIENCE_S), 0)
        self.assertIn("killing router", self.text())
        self.assertIn(["decode-0", "term"], [[n, e] for n, _, e in self.events()])
        self.assert_nothing_left()

    def test_second_ctrl_c_kills_at_once(self):
        (self.fakes / "gateway.deaf").touch()
        process = self.up("--drain-timeout", "60")
        self.wait_ready()
        process.send_signal(signal.SIGINT)
        self.wait_for("the first stop", lambda: "stopping (once more" in self.text())
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(PATIENCE_S), 0)
        self.assert_nothing_left()

    def test_killed_supervisor_takes_its_children_along(self):
        process = self.up()
        pids = [p["pid"] for p in self.wait_ready()["processes"]]
        process.kill()
        process.wait()
        self.wait_for("the children's end", lambda: not any(alive(p) for p in pids))

    def test_port_in_use(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            process = self.up("--port", str(port))
            self.assertEqual(process.wait(PATIENCE_S), 2)
        self.assertIn(f"port {port} on 127.0.0.1 is already in use", self.text())
        self.assertEqual(self.events(), [])

    def test_bad_settings(self):
        for args, code, words in [
            (["--model", "/nonexistent"], 3, "--model /nonexistent is not a folder"),
            (["--policy", "lifo"], 2, "--policy is 'lifo'; it must be one of agent, fifo, program-fifo"),
            (["--decode", "0"], 2, "--decode is 0; it must be 1 to 64"),
            (["--bin-dir", "/nonexistent"], 2, "/nonexistent/agentserve-gateway is missing"),
            (["--decod", "1"], 2, "did you mean --decode?"),
        ]:
            process = self.up(*args)
            self.assertEqual(process.wait(PATIENCE_S), code, self.text())
            self.assertIn(words, self.text())
        self.assert_nothing_left()

    def test_given_files_and_log_folder(self):
        state, logs, run = self.dir / "s.json", self.dir / "logs", self.dir / "mine"
        process = self.up("--state-file", str(state), "--log-dir", str(logs), "--run-dir", str(run), "--quiet",
                          "--no-kvstore", "--prefill", "0")
        self.wait_for("the banner", lambda: "Try it:" in self.text())
        self.assertEqual([p["name"] for p in json.loads(state.read_text())["processes"]],
                         ["router", "decode-0", "gateway"])
        self.assertIn("service.ready", (logs / "decode-0.log").read_text())
        self.assertNotIn("service.ready", self.text())
        process.terminate()
        self.assertEqual(process.wait(PATIENCE_S), 0)
        self.assertFalse(state.exists() or run.exists())

    def test_unknown_command(self):
        done = subprocess.run([PROGRAM, "uo"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 2)
        self.assertIn("did you mean 'up'?", done.stderr)

    def test_probe(self):
        process = self.up()
        url = self.wait_ready()["url"]
        self.assertEqual(subprocess.run([PROGRAM, "probe", "--url", url + "/ready"]).returncode, 0)
        process.terminate()
        process.wait(PATIENCE_S)
        done = subprocess.run([PROGRAM, "probe", "--url", url + "/ready"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("nothing listens there", done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
