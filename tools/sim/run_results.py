#!/usr/bin/env python3
"""Runs the simulations behind docs/scheduling_results.md and writes their JSON, tables and plots.

Usage: run_results.py [--sim build/bin/agentserve-sim] [--data ../shared/data] [--out results] [--only NAME,..]
                      [--scale F] [--jobs N] [--list]

Needs no package beyond Python's own. Without --data's traces folder the trace experiments are skipped, and it says so.
Each experiment is one call of the simulator; finished ones are kept unless --force is given.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys

import plot

BASELINES = "fifo,program-fifo"
PUBLISHED = ("fifo,program-fifo,priority,priority-overflow,priority-preempt,relative,priority-relative,traj-progress,"
             "traj-deadline,plas,atlas,hrrn,justitia,srpt-oracle,agent")
ABLATION = PUBLISHED + ",srpt-oracle/inf,justitia/full/inf"
LAYERS = ",".join(["fifo", "agent/layers=none", "agent"] + [f"agent/layers=all.-L{i}" for i in (1, 2, 3, 4, 6, 7, 8)])


def experiments(scale):
    """name -> (arguments, needs traces). Durations are virtual seconds."""
    def seconds(v):
        return str(int(v * scale))
    coding = ["--workload", "coding", "--jobs-per-session", "3", "--tool-cap", "60", "--think-cap", "60",
              "--calibration", "h200-3b", "--block-tokens", "64", "--duration", seconds(5000), "--warmup",
              seconds(1500), "--seeds", "3", "--tenants", "8"]
    host = coding + ["--host-gib", "256"]
    mix = ["--workload", "mix", "--programs", "4000", "--max-batch", "64", "--kv-gib", "8", "--duration", seconds(160),
           "--warmup", seconds(40), "--seeds", "3"]
    burst = ["--arrivals", "trace", "--calibration", "a10g-published", "--exact-max-tokens"]
    out = {
        "published_trajectories": (["--workload", "published-trajectories", "--max-batch", "4", "--policy",
                                    PUBLISHED + ",traj-progress/full,traj-deadline/full,agent/full"] + burst, True),
        "published_trajectories_h200": (["--workload", "published-trajectories", "--policy", BASELINES + ",agent",
                                         "--arrivals", "trace", "--calibration", "h200-1b", "--exact-max-tokens"],
                                        True),
        "published_ablation": (["--workload", "published-ablation", "--max-batch", "20", "--batch-cap", "16",
                                "--policy", PUBLISHED] + burst, True),
        "coding": (coding + ["--policy", ABLATION, "--load", "0.85,1.0,1.1"], True),
        "coding_host": (host + ["--policy", PUBLISHED + ",srpt-oracle/inf,agent/layers=none,agent/none,agent/full", "--load",
                                "0.85,1.0,1.1"], True),
        "mix_host": (mix + ["--host-gib", "64", "--policy", BASELINES + ",agent,agent/layers=none,srpt-oracle,"
                            "srpt-oracle/inf", "--load", "0.85,1.0,1.1"], False),
        "coding_layers": (coding + ["--policy", LAYERS + ",srpt-oracle/inf", "--load", "1.0"], True),
        "mix": (mix + ["--policy", ABLATION, "--load", "0.7,0.85,1.0,1.1"], False),
        "mix_layers": (mix + ["--policy", LAYERS + ",srpt-oracle/inf", "--load", "1.0"], False),
        "mix_bursty": (mix + ["--policy", BASELINES + ",agent,srpt-oracle,srpt-oracle/inf", "--load", "0.85",
                              "--arrivals", "gamma"], False),
        "mix_heavy_tenant": (mix + ["--policy", BASELINES + ",agent,agent/layers=all.-L8", "--load", "1.0", "--tenants",
                                    "8", "--heavy-tenant", "0.6"], False),
        "split": (mix + ["--policy", BASELINES + ",agent", "--workers", "3", "--prefill-workers", "1", "--load",
                         "0.85"], False),
    }
    for shape in ("react", "plan_execute", "reflect", "fanout", "tree", "chat"):
        args = list(mix)
        args[1] = shape
        out[f"shape_{shape}"] = (args + ["--policy", BASELINES + ",plas,justitia,agent,srpt-oracle,srpt-oracle/inf",
                                         "--load", "0.85"], False)
    return out


def run(sim, data, out, name, args):
    target = out / f"{name}.json"
    log = out / f"{name}.log"
    with open(log, "w") as stream:
        done = subprocess.run([sim, *args, "--data", data, "--json", str(target), "--csv", str(out / f"{name}.csv")],
                              stdout=stream, stderr=stream, check=False)
    return name, done.returncode, log


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sim", default="build/bin/agentserve-sim")
    parser.add_argument("--data", default=os.environ.get("AGENTSERVE_SHARED_DATA", "../shared/data"))
    parser.add_argument("--out", default="results")
    parser.add_argument("--only", default="", help="comma list of experiments")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the virtual durations")
    parser.add_argument("--jobs", type=int, default=1, help="simulations at once")
    parser.add_argument("--force", action="store_true", help="run again what is there")
    parser.add_argument("--list", action="store_true")
    a = parser.parse_args()
    table = experiments(a.scale)
    chosen = [n for n in a.only.split(",") if n] or list(table)
    for name in chosen:
        if name not in table:
            sys.exit(f"run_results.py: unknown experiment {name}; there are: {', '.join(table)}")
    if a.list:
        for name in chosen:
            print(name, "agentserve-sim", *table[name][0])
        return 0
    if not os.access(a.sim, os.X_OK):
        sys.exit(f"run_results.py: {a.sim} is not built: cmake --build --preset release --target agentserve-sim")
    out = pathlib.Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    traces = os.path.isdir(os.path.join(a.data, "traces"))
    wanted = []
    for name in chosen:
        if table[name][1] and not traces:
            print(f"{name}: skipped, no traces in {a.data}", file=sys.stderr)
        elif a.force or not (out / f"{name}.json").exists():
            wanted.append(name)
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(a.jobs) as pool:
        runs = [pool.submit(run, a.sim, a.data, out, name, table[name][0]) for name in wanted]
        for done in concurrent.futures.as_completed(runs):
            name, code, log = done.result()
            failed += code != 0
            print(f"{name}: {'done' if code == 0 else f'failed with {code}, see {log}'}", flush=True)
    for name in chosen:
        file = out / f"{name}.json"
        if file.exists():
            plot.plot_experiment(name, json.loads(file.read_text()), out)
    plot.write_tables(out, [n for n in chosen if (out / f"{n}.json").exists()])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
