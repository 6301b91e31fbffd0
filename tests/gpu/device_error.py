#!/usr/bin/env python3
"""A real CUDA error in one worker: its requests go on elsewhere, it ends with a report, the other worker serves on.

Usage: device_error.py --model DIR [--bin build/bin] [--streams 8] [--tokens 200]

Two decode workers on GPU 0; one of them writes to an unmapped address at its 60th step (failpoint cuda.fault). Every stream
must come back whole, some after a migration; the faulty worker must exit with code 1 and name the CUDA error; new requests
must be served. Exit code 0: all of it; 1: not; 77: no GPU.
"""
import argparse
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request


class Service:
    """One process; `port` once it says service.ready."""

    def __init__(self, folder, name, command, env=None):
        self.name, self.log = name, os.path.join(folder, name + ".log")
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=subprocess.DEVNULL, env={**os.environ, **(env or {})})

    def text(self):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read()

    def port(self, timeout_s=60):
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            found = re.search(r"service\.ready.*?\bport=(\d+)", self.text())
            if found:
                return int(found.group(1))
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise SystemExit(f"{self.name} did not start:\n{self.text()[-2000:]}")


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def wait_for(what, condition, timeout_s):
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"waited {timeout_s} s for {what}")
        time.sleep(0.05)


def run(options, folder, services):
    def start(name, binary, *args, env=None):
        services.append(Service(folder, name, [f"{options.bin}/agentserve-{binary}", *args], env))
        return services[-1]

    model = os.path.abspath(options.model)
    router = start("router", "router", "--model", model)
    address = f"127.0.0.1:{router.port()}"
    worker = ["--model", model, "--router", address, "--device", "cuda:0", "--gpu-memory-utilization", "0.3"]
    faulty = start("faulty", "decode-worker", *worker, "--worker-id", "faulty", env={"AGENTSERVE_FAILPOINTS": "cuda.fault=60"})
    healthy = start("healthy", "decode-worker", *worker, "--worker-id", "healthy")
    faulty.port(), healthy.port()
    gateway = start("gateway", "gateway", "--router", address, "--port", "0")
    url = f"http://127.0.0.1:{gateway.port()}/v1"
    wait_for("both workers", lambda: router.text().count("worker.ready") >= 2, 20)
    with urllib.request.urlopen(f"{url}/models", timeout=30) as answer:
        model_id = json.load(answer)["data"][0]["id"]

    def ask(i):
        body = dict(model=model_id, prompt=[300 + (i * 37 + k) % 700 for k in range(64)], max_tokens=options.tokens, ignore_eos=True,
                    temperature=0)
        return post(f"{url}/completions", body)["usage"]["completion_tokens"]

    with concurrent.futures.ThreadPoolExecutor(options.streams) as pool:
        lengths = list(pool.map(ask, range(options.streams)))
    wait_for("the faulty worker's end", lambda: faulty.process.poll() is not None, 20)
    after = ask(99)
    report = [line for line in faulty.text().splitlines() if "step.failed" in line]
    print(f"streams whole: {sum(n == options.tokens for n in lengths)} of {options.streams}; faulty worker exit code "
          f"{faulty.process.returncode}; healthy alive: {healthy.process.poll() is None}; served after it: {after} tokens")
    print("report:", report[0] if report else "(none)")
    return (all(n == options.tokens for n in lengths) and faulty.process.returncode == 1 and healthy.process.poll() is None
            and after == options.tokens and report and "illegal" in report[0].lower())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", default="build/bin")
    parser.add_argument("--model", required=True)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200)
    options = parser.parse_args()
    if shutil.which("nvidia-smi") is None:
        print("SKIPPED: no GPU")
        return 77
    services = []
    with tempfile.TemporaryDirectory(prefix="agentserve-device-error-") as folder:
        try:
            ok = run(options, folder, services)
        finally:
            for s in reversed(services):
                s.process.terminate()
            for s in services:
                s.process.wait(timeout=40)
    print("PASS" if ok else "FAIL")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
