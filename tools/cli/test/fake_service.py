#!/usr/bin/env python3
"""Stands in for any service of the cluster: started under the service's name by `agentserve up`.

The folder $FAKE_DIR steers it. NAME is the worker id or the program's name without "agentserve-".
  NAME.exit      exit at once with the code in this file
  NAME.once      crash after being ready, once (the file is removed)
  NAME.deaf      ignore SIGTERM
It appends "NAME pid event" lines to $FAKE_DIR/events and its arguments to $FAKE_DIR/NAME.args.
"""
import http.server
import os
import pathlib
import signal
import sys
import time

args = sys.argv[1:]
folder = pathlib.Path(os.environ["FAKE_DIR"])


def flag(name, default=None):
    return args[args.index(name) + 1] if name in args else default


name = flag("--worker-id") or pathlib.Path(sys.argv[0]).name.removeprefix("agentserve-")


def note(event):
    with open(folder / "events", "a") as out:
        out.write(f"{name} {os.getpid()} {event}\n")


def log(event):
    print(f"2026-01-01T00:00:00.000Z info agentserve-{name} {event} port={flag('--port')}", file=sys.stderr, flush=True)


class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def stop(*_):
    note("term")
    if not (folder / f"{name}.deaf").exists():
        os._exit(0)


note("start")
(folder / f"{name}.args").write_text("\n".join(args))
(folder / f"{name}.env").write_text(os.environ.get("AGENTSERVE_GATEWAY_API_KEY", ""))
signal.signal(signal.SIGTERM, stop)
exit_file = folder / f"{name}.exit"
if exit_file.exists():
    print(f"{name}: the reason is written here", file=sys.stderr, flush=True)
    sys.exit(int(exit_file.read_text()))
if flag("--run-dir"):
    (pathlib.Path(flag("--run-dir")) / f"{name}.sock").write_text("")
sys.stderr.write("half a ")
sys.stderr.flush()
time.sleep(0.02)
sys.stderr.write("line\n")
log("service.ready")
if name == "gateway":
    server = http.server.HTTPServer((flag("--host"), int(flag("--port"))), Ready)
    server.serve_forever()
while True:
    once = folder / f"{name}.once"
    if once.exists():
        once.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
