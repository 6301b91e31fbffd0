#!/usr/bin/env python3
"""Lints protos/ with the pinned buf. Usage: proto_lint.py WORK_DIR [--root DIR]

buf comes from npm into WORK_DIR, once. Exits with 77, saying why, where npm or its registry cannot be reached.
"""
import argparse
import pathlib
import platform
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
SKIP = 77
INSTALL_TIMEOUT_S = 120


def skip(why):
    print(f"skipped: {why}")
    sys.exit(SKIP)


def install(work):
    machine = {"x86_64": "x64"}.get(platform.machine(), platform.machine())
    buf = work / f"node_modules/@bufbuild/buf-linux-{machine}/bin/buf"
    lock = (HERE / "proto_lint/package-lock.json").read_text()
    if buf.exists() and (work / "package-lock.json").exists() and (work / "package-lock.json").read_text() == lock:
        return buf
    if shutil.which("npm") is None or shutil.which("node") is None:
        skip("npm and node are not installed")
    work.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / "proto_lint" / name, work / name)
    try:
        # The packages hold just the program: install scripts are not needed and not run.
        done = subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"], cwd=work,
                              capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        skip(f"npm did not end within {INSTALL_TIMEOUT_S} s")
    if done.returncode != 0 or not buf.exists():
        shutil.rmtree(work / "node_modules", ignore_errors=True)
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        skip(f"npm could not install buf for {machine}: {' '.join(errors[:3]) or 'no message'}")
    return buf


def lint(buf, root):
    """(exit code, text) of buf on root/protos."""
    config = HERE / "proto_lint/buf.yaml"
    done = subprocess.run([buf, "lint", "--config", config.read_text(), str(root)], cwd=root, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


PLANTED = """syntax = "proto3";
package agentserve.planted.v1;
service Bad {
  rpc Get(GetRequest) returns (GetResponse);
}
message GetRequest { uint32 CamelCase = 1; }
message GetResponse {}
"""


def self_test(buf, work):
    """A planted file must be refused for its names and its missing comments, and for nothing that is not there."""
    planted = work / "planted/protos/agentserve/planted/v1/planted.proto"
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(PLANTED)
    code, text = lint(buf, work / "planted")
    wanted = ["CamelCase", "should be suffixed with \"Service\"", "should have a non-empty comment"]
    missing = [w for w in wanted if w not in text]
    if code == 0 or missing:
        print(f"the linter did not catch the planted violations {missing}; it said:\n{text}")
        return False
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--root", type=pathlib.Path, default=HERE.parent.parent)
    options = parser.parse_args()
    work = options.work.resolve()
    buf = install(work)
    if not self_test(buf, work):
        return 1
    code, text = lint(buf, options.root.resolve())
    print(text or "protos: no violations")
    return 1 if code != 0 else 0


if __name__ == "__main__":
    sys.exit(main())
