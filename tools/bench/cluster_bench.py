#!/usr/bin/env python3
"""Measures a whole cluster on this machine and prints the tables of docs/benchmarks.md.

For each wiring it starts `agentserve up`, waits until it is ready, runs `agentserve bench serve` at several loads, and
reads the CPU time of each process before and after. Only one wiring runs at a time.

Usage: tools/bench/cluster_bench.py [--bin build/bin] [--json FILE] [--requests N] [--idle N] [--device cuda --model DIR]
         [--wirings 0P1D,1P1D,1P1D:stream] [--concurrency 1,8,32] [--prompt-tokens N] [--output-tokens N] [--up-arg ARG]...

A wiring is xPyD, or xPyD:TRANSPORT (mapped, stream, auto). On GPUs: `--device cuda --model DIR`; workers are spread over the
GPUs found, so 1P1D on one GPU shares it and on two GPUs moves KV over NVLink.
"""
import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid):
    """User plus system time of a process."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) / 1024


class Cluster:
    """`agentserve up`, from start to a clean stop."""

    def __init__(self, bin_dir, prefill, decode, extra=(), log_dir=None):
        self.dir = tempfile.TemporaryDirectory(prefix="agentserve-bench-")
        self.state_path = os.path.join(self.dir.name, "state.json")
        if log_dir:
            extra = (*extra, "--log-dir", log_dir)
        started = time.monotonic()
        self.process = subprocess.Popen(
            [f"{bin_dir}/agentserve", "up", "--port", "0", "--quiet", "--prefill", str(prefill), "--decode", str(decode),
             "--state-file", self.state_path, *extra], stdout=subprocess.DEVNULL)
        while not self.state().get("ready"):
            if self.process.poll() is not None or time.monotonic() - started > 120:
                raise SystemExit("the cluster did not start")
            time.sleep(0.01)
        self.ready_s = time.monotonic() - started

    def state(self):
        try:
            with open(self.state_path, encoding="utf-8") as f:
                return json.load(f)
        except (OSError, ValueError):
            return {}

    def cpu(self):
        return {p["name"]: cpu_seconds(p["pid"]) for p in self.state()["processes"]}

    def memory(self):
        return {p["name"]: resident_mib(p["pid"]) for p in self.state()["processes"]}

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(timeout=30) != 0:
            raise SystemExit("the cluster did not stop cleanly")


def serve_load(bin_dir, cluster, args):
    """One run of the load generator: its JSON, with CPU microseconds per output token of each process."""
    before = cluster.cpu()
    out = subprocess.run([f"{bin_dir}/agentserve", "bench", "serve", "--url", cluster.state()["url"], "--json", "-", *args],
                         check=True, capture_output=True, text=True).stdout
    report = json.loads(out[out.index("{"):])
    after = cluster.cpu()
    tokens = report["output_tokens_per_s"] * report["seconds"]
    report["cpu_us_per_token"] = {name: (after[name] - before[name]) * 1e6 / tokens for name in after}
    return report


def row(label, r):
    cpu = r["cpu_us_per_token"]
    return (f"| {label} | {r['ttft_ms']['p50']:.1f} / {r['ttft_ms']['p99']:.1f} | {r['tpot_ms']['p50']:.2f} / "
            f"{r['tpot_ms']['p99']:.2f} | {r['output_tokens_per_s']:.0f} | {cpu['router']:.0f} | {cpu['gateway']:.0f} | "
            f"{r['failed']} |")


def parse_wiring(text):
    match = re.fullmatch(r"(\d+)P(\d+)D(?::(\w+))?", text)
    if match is None:
        raise SystemExit(f"wiring {text!r}: expected xPyD or xPyD:TRANSPORT")
    prefill, decode, transport = int(match.group(1)), int(match.group(2)), match.group(3)
    if transport is None and prefill:
        transport = "mapped"
    name = f"{prefill}P{decode}D" + (f" {transport}" if transport else " (aggregated)" if not prefill else "")
    return name, prefill, decode, ("--kv-transport", transport) if transport else ()


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", default="build/bin")
    parser.add_argument("--json")
    parser.add_argument("--requests", type=int, default=120)
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model")
    parser.add_argument("--wirings", default="0P1D,1P1D,1P1D:stream")
    parser.add_argument("--concurrency", default="1,8,32")
    parser.add_argument("--prompt-tokens", default="1024")
    parser.add_argument("--output-tokens", default="64")
    parser.add_argument("--up-arg", action="append", default=[], help="passed to `agentserve up`; may be repeated")
    parser.add_argument("--log-dir", help="keeps the services' logs there, one folder per wiring")
    return parser.parse_args()


def main():
    options = parse_options()
    results = {}
    common = ["--device", options.device, *(["--threads", "1"] if options.device == "cpu" else []),
              *(["--model", options.model] if options.model else []), *options.up_arg]
    print("| wiring, load | TTFT ms p50 / p99 | TPOT ms p50 / p99 | tokens/s | router us CPU/token | gateway us CPU/token | failed |")
    print("|---|---|---|---|---|---|---|")
    for name, prefill, decode, extra in map(parse_wiring, options.wirings.split(",")):
        log_dir = os.path.join(options.log_dir, re.sub(r"\W+", "-", name).strip("-")) if options.log_dir else None
        cluster = Cluster(options.bin, prefill, decode, (*common, *extra), log_dir)
        results[name] = {"ready_s": cluster.ready_s}
        for concurrency in map(int, options.concurrency.split(",")):
            label = f"{name}, {concurrency} at once, {options.prompt_tokens} in, {options.output_tokens} out"
            report = serve_load(options.bin, cluster, [
                "--concurrency", str(concurrency), "--requests", str(max(concurrency * 2, options.requests if concurrency > 1 else 40)),
                "--prompt-tokens", options.prompt_tokens, "--output-tokens", options.output_tokens, "--seed", str(concurrency)])
            results[name][concurrency] = report
            print(row(label, report), flush=True)
        if prefill == 0 and options.idle:
            idle_streams(options, cluster, results)
        cluster.stop()
    for name in results:
        if "ready_s" in results[name]:
            print(f"ready after start, {name}: {results[name]['ready_s']:.2f} s")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as f:
            json.dump(results, f, indent=1)


def idle_streams(options, cluster, results):
    before = cluster.memory()
    held = subprocess.run([f"{options.bin}/agentserve", "bench", "serve", "--url", cluster.state()["url"], "--hold-idle",
                           str(options.idle), "--hold-seconds", "10", "--state-file", cluster.state_path],
                          check=False, capture_output=True, text=True)
    after = cluster.memory()
    results["idle"] = {"output": held.stdout, "before_mib": before, "after_mib": after}
    print(f"\n{options.idle} idle streams:\n{held.stdout}{held.stderr}", file=sys.stderr)


if __name__ == "__main__":
    main()
