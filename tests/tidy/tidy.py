#!/usr/bin/env python3
"""Style that is executable. Usage: tidy.py CHECK [--root DIR] [--build DIR] [--shrink]

Each check prints its violations as FILE:LINE: what is wrong and what to do, and exits with 1 if there is any, with 77
if it cannot run here (it says why). --shrink rewrites a ratchet file after code became shorter.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import source

HERE = pathlib.Path(__file__).resolve().parent
SKIP = 77
MAX_FUNCTION_LINES = 70
MAX_FILE_LINES = 500
NEVER_FILE_LINES = 1000

# Kinds of headers from outside the repository; the first match counts.
OUTSIDE = [
    ("grpc", r"grpc(pp)?/"), ("proto", r"google/(protobuf|rpc)/"), ("absl", r"absl/"),
    ("cuda", r"(cuda|cublas|nccl|nvml|nvtx|cub/|cute/|cutlass|mma\.h)"), ("simd", r"(hwy/|immintrin|arm_neon)"),
    ("boost", r"boost/"), ("json", r"nlohmann/"), ("openssl", r"openssl/"), ("pcre2", r"pcre2"),
    ("prometheus", r"prometheus/"), ("xxhash", r"xxhash"), ("test", r"(gtest|gmock|benchmark)/"),
    ("system", r"(sys/|linux/|arpa/|net/|netinet/|unistd|fcntl|poll|signal|pthread|dirent|execinfo|netdb|malloc|sched|spawn)"),
]
FORBIDDEN_IN_CORES = [
    ("a clock", r"_clock\b|\bclock_gettime\b|\bgettimeofday\b|\bMonotonicClock\b|\bUnixSeconds\b|\bNow\s*\(|\bstd::time\s*\("),
    ("sleeping", r"\bsleep_(for|until)\b|\b[un]?sleep\s*\(|\bnanosleep\b"),
    ("threads", r"\bstd::(this_)?j?thread\b|\bpthread_|\bstd::async\b|\bthread_local\b"),
    ("locks", r"\bstd::\w*mutex\b|\bMutex\b|\b(lock_guard|unique_lock|scoped_lock|condition_variable)\b"),
    ("randomness", r"\brandom_device\b|\bmt19937|\bs?rand\s*\(|\bEntropyUint64\b|\bRandomHex128\b"),
    ("the environment", r"\bgetenv\b"),
]
FORBIDDEN_WORDS = ["TO" + "DO", "FIX" + "ME"]


def read(root, name):
    return (root / name).read_text(errors="replace")


def load_layering(text):
    """{folder: (allowed folders, allowed kinds)}; "*" in folders = everything."""
    table = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.split("#")[0].strip()
        if not line:
            continue
        match = re.fullmatch(r"([\w/]+):\s*([^|]*)(?:\|(.*))?", line)
        if match is None:
            raise SystemExit(f"layering.txt:{number}: cannot be read: {line}")
        table[match.group(1)] = (match.group(2).split(), (match.group(3) or "").split())
    return table


def rule_for(table, path):
    folder = os.path.dirname(path)
    while folder and folder not in table:
        folder = os.path.dirname(folder)
    return folder


def kind_of(path):
    for kind, pattern in OUTSIDE:
        if re.match(pattern, path):
            return kind
    return None


def under(path, folder):
    return path == folder or path.startswith(folder + "/")


def check_layering(root, _):
    table = load_layering(read(root, "tests/tidy/layering.txt"))
    out = []
    for name in source.cpp_files(root):
        rule = rule_for(table, name)
        if not rule:
            out.append(f"{name}:1: its folder is not in tests/tidy/layering.txt; add it with what it may include")
            continue
        folders, kinds = table[rule]
        if "*" in folders:
            continue
        allowed = folders + [rule]
        for line, quote, path in source.includes(read(root, name)):
            ours = quote == '"' and (root / path.split("/")[0]).is_dir() and "/" in path
            if path.startswith("agentserve/") and quote == '"':
                ours, kind = False, "proto"
            else:
                kind = kind_of(path)
            if ours and not any(under(path, f) for f in allowed):
                out.append(f'{name}:{line}: {rule}/ must not include "{path}" (it may include: {" ".join(allowed)})')
            elif not ours and kind and kind != "test" and kind not in kinds:
                out.append(f"{name}:{line}: {rule}/ must not include {path} (kind {kind}; it may use: {' '.join(kinds) or 'none'})")
    return out


def check_purity(root, _):
    out = []
    for name in source.cpp_files(root):
        folders = name.split("/")[:-1]
        if not ("core" in folders or folders[:1] == ["engine"]) or source.is_test(name):
            continue
        for number, line in enumerate(source.strip_cpp(read(root, name)).split("\n"), 1):
            for what, pattern in FORBIDDEN_IN_CORES:
                if re.search(pattern, line):
                    out.append(f"{name}:{number}: cores do not use {what}; pass it in as a value: {line.strip()[:80]}")
    return out


class Ratchet:
    """Known exceptions with their size. They may shrink, never grow, and no new ones may come without a reviewer."""

    def __init__(self, path):
        self.path = path
        text = path.read_text() if path.exists() else ""
        self.head = [line for line in text.splitlines() if line.startswith("#")]
        self.limits = {}
        for line in text.splitlines():
            if line.strip() and not line.startswith("#"):
                size, key = line.split(None, 1)
                self.limits[key.strip()] = int(size)

    def compare(self, sizes, limit, what):
        out = []
        for key, (size, place) in sorted(sizes.items()):
            known = self.limits.get(key)
            if size > limit and known is None:
                out.append(f"{place}: {what} {key} has {size} lines; at most {limit} fit. Split it")
            elif known is not None and size > known:
                out.append(f"{place}: {what} {key} grew from {known} to {size} lines; it may only shrink")
        for key, known in sorted(self.limits.items()):
            size = sizes.get(key, (0, ""))[0]
            if size < known:
                out.append(f"tests/tidy/{self.path.name}: {key} is down to {size} lines from {known}: "
                           f"run tests/tidy/tidy.py {self.path.stem.split('_')[0]} --shrink")
        return out

    def shrink(self, sizes, limit):
        kept = {k: min(v, sizes[k][0]) for k, v in self.limits.items() if k in sizes and sizes[k][0] > limit}
        self.limits = kept
        lines = self.head + [f"{size} {key}" for key, size in sorted(kept.items())]
        self.path.write_text("\n".join(lines) + "\n")


def ratchet_of(root, name):
    return Ratchet(root / "tests/tidy" / name)


def check_functions(root, options):
    sizes = {}
    for name in source.cpp_files(root):
        for function, first, lines in source.functions(read(root, name)):
            key = f"{name}:{function}"
            if lines > sizes.get(key, (0,))[0]:
                sizes[key] = (lines, f"{name}:{first}")
    ratchet = ratchet_of(root, "functions_ratchet.txt")
    if options.shrink:
        ratchet.shrink(sizes, MAX_FUNCTION_LINES)
    return ratchet.compare(sizes, MAX_FUNCTION_LINES, "function")


def check_files(root, options):
    sizes = {}
    for name in source.tree_files(root):
        if name.endswith(source.SOURCE_SUFFIXES + (".py", ".js", ".mjs", ".sh", ".cmake", "CMakeLists.txt")):
            sizes[name] = (read(root, name).count("\n"), f"{name}:1")
    ratchet = ratchet_of(root, "files_ratchet.txt")
    if options.shrink:
        ratchet.shrink(sizes, MAX_FILE_LINES)
    out = ratchet.compare(sizes, MAX_FILE_LINES, "file")
    return out + [f"{place}: {size} lines; {NEVER_FILE_LINES} are never allowed"
                  for size, place in sizes.values() if size > NEVER_FILE_LINES]


def check_targets(root, options):
    """Every source is compiled or named in a CMakeLists.txt; every header is included or named."""
    compiled = set()
    commands = pathlib.Path(options.build or root / "build") / "compile_commands.json"
    if commands.exists():
        for entry in json.loads(commands.read_text()):
            path = os.path.realpath(os.path.join(entry["directory"], entry["file"]))
            compiled.add(os.path.relpath(path, os.path.realpath(root)))
    names = source.tree_files(root)
    lists = {n: read(root, n) for n in names if n.endswith("CMakeLists.txt")}
    named = set()
    for list_name, text in lists.items():
        text = re.sub(r"#[^\n]*", "", text)
        for word in re.findall(r"[\w./+-]+\.(?:cc|h|cu|cuh)\b", text):
            named.add(os.path.normpath(os.path.join(os.path.dirname(list_name), word)))
    included = set()
    cpp = [n for n in names if n.endswith(source.SOURCE_SUFFIXES)]
    for name in cpp:
        for _, _, path in source.includes(read(root, name)):
            included.update({path, os.path.normpath(os.path.join(os.path.dirname(name), path))} - {name})
    out = []
    for name in cpp:
        if name in named or name in compiled:
            continue
        if name.endswith((".h", ".cuh")) and name in included:
            continue
        out.append(f"{name}:1: belongs to no target; name it in a CMakeLists.txt or delete it")
    return out


def check_words(root, _):
    out = []
    pattern = re.compile(r"\b(" + "|".join(FORBIDDEN_WORDS) + r")\b")
    for name in source.tree_files(root):
        if name.endswith((".json", ".safetensors", ".bin", ".lock", ".jsonl", ".png", ".gz", ".npz")):
            continue
        for number, line in enumerate(read(root, name).split("\n"), 1):
            if pattern.search(line):
                out.append(f"{name}:{number}: unfinished work is finished or left out, not marked: {line.strip()[:80]}")
    return out


def check_format(root, _):
    tool = shutil.which("clang-format-14") or shutil.which("clang-format")
    version = subprocess.run([tool, "--version"], capture_output=True, text=True).stdout if tool else ""
    if " 14." not in version:
        print("skipped: clang-format 14 is not installed (other versions format differently)")
        sys.exit(SKIP)
    files = source.cpp_files(root)
    if not files:
        return []
    done = subprocess.run([tool, "--dry-run", *files], cwd=root, capture_output=True, text=True)
    bad = sorted({m.group(1) for m in re.finditer(r"^(.+?):\d+:\d+: warning", done.stderr, re.M)})
    return [f"{name}:1: is not formatted; run clang-format-14 -i {name}" for name in bad]


def check_scripts(root, _):
    if shutil.which("shellcheck") is None:
        print("skipped: shellcheck is not installed")
        sys.exit(SKIP)
    shell = []
    for name in source.tree_files(root):
        if name.endswith((".sh", ".bash")) or "." not in os.path.basename(name):
            with open(root / name, "rb") as file:
                if re.match(rb"#!.*\b(bash|sh)\b", file.readline(64)):
                    shell.append(name)
    if not shell:
        return []
    done = subprocess.run(["shellcheck", "--format=gcc", *shell], cwd=root, capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode != 0 else []


CHECKS = {"layering": check_layering, "purity": check_purity, "functions": check_functions, "files": check_files,
          "targets": check_targets, "words": check_words, "format": check_format, "scripts": check_scripts}


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=CHECKS)
    parser.add_argument("--root", type=pathlib.Path, default=HERE.parent.parent)
    parser.add_argument("--build", type=pathlib.Path)
    parser.add_argument("--shrink", action="store_true")
    options = parser.parse_args(argv)
    violations = CHECKS[options.check](options.root.resolve(), options)
    for v in violations:
        print(v)
    print(f"{options.check}: {len(violations) or 'no'} violation{'' if len(violations) == 1 else 's'}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
