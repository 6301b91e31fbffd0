"""Reading the tree and C++ text: shared by the tidiness checks. Standard library only."""
import os
import pathlib
import re
import subprocess

SOURCE_SUFFIXES = (".cc", ".h", ".cu", ".cuh")
SKIPPED_FOLDERS = {"node_modules", ".git", ".cache", "__pycache__"}


def tree_files(root):
    """Relative paths of the files of the checkout: tracked or new, not ignored. Without git: all but build folders."""
    root = pathlib.Path(root)
    done = subprocess.run(["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                          capture_output=True)
    inside = (root / ".git").exists() and done.returncode == 0
    if inside:
        names = [n for n in done.stdout.decode().split("\0") if n]
        return sorted(n for n in set(names) if (root / n).is_file())
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if f not in SKIPPED_FOLDERS and not f.startswith("build")]
        found += [os.path.relpath(os.path.join(folder, n), root) for n in names]
    return sorted(found)


def cpp_files(root):
    return [f for f in tree_files(root) if f.endswith(SOURCE_SUFFIXES)]


def is_test(path):
    return re.search(r"_(test|bench|fuzz|fuzzer)\.(cc|cu)$|(^|/)(tests?|testing)/|_test_\w+\.(cc|h)$|(^|/)test_\w+\.(cc|h)$",
                     path) is not None


_TOKENS = re.compile(
    r'//[^\n]*|/\*.*?\*/|R"(?P<d>[^\s()\\]{0,16})\(.*?\)(?P=d)"|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])+\'',
    re.S)


def strip_cpp(text):
    """The text with comments and the insides of literals blanked; line numbers stay."""
    def blank(match):
        token = match.group(0)
        keep = "\n" * token.count("\n")
        if token.startswith("/"):
            return keep or " "
        quote = '"' if '"' in token[:2] else "'"
        return quote + keep + quote
    return _TOKENS.sub(blank, text)


_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.M)


def includes(text):
    """(line, quote, path) of each include. Works on the raw text: include paths look like literals."""
    return [(text.count("\n", 0, m.start()) + 1, m.group(1), m.group(2)) for m in _INCLUDE.finditer(text)]


_SCOPE = re.compile(r"^(?:template\s*<.*>\s*)?(?:inline\s+)?(?:typedef\s+)?(?:namespace|class|struct|union|enum|extern)\b", re.S)


def functions(text):
    """(name, first line, lines) of each function with a body. A heuristic for clang-formatted code."""
    code = re.sub(r"^[ \t]*#(?:[^\n\\]|\\.|\\\n)*", lambda m: "\n" * m.group(0).count("\n"), strip_cpp(text), flags=re.M)
    out = []
    header_start = 0
    i = 0
    while i < len(code):
        c = code[i]
        if c in ";}":
            header_start = i + 1
        elif c == "{":
            header = code[header_start:i].strip()
            brace_init = i > 0 and (code[i - 1].isalnum() or code[i - 1] in "_>,=(")
            scope = _SCOPE.match(re.sub(r"\[\[.*?\]\]|\balignas\s*\(.*?\)", "", header).strip()) is not None
            if brace_init or header.endswith(("=", ",", "(")) or (not scope and header and "(" not in header):
                i = matching_brace(code, i)  # an initialiser; the header goes on
            elif scope or not header:
                header_start = i + 1
            else:
                end = matching_brace(code, i)
                start = header_start + len(code[header_start:i]) - len(code[header_start:i].lstrip())
                first = code.count("\n", 0, start) + 1
                out.append((function_name(header), first, code.count("\n", start, end) + 1))
                header_start = end + 1
                i = end
        i += 1
    return out


def matching_brace(code, i):
    depth = 0
    for j in range(i, len(code)):
        if code[j] == "{":
            depth += 1
        elif code[j] == "}":
            depth -= 1
            if depth == 0:
                return j
    return len(code) - 1


def function_name(header):
    match = re.search(r"([~\w:]+|operator\s*\S+?)\s*\(([^()]*)", header)
    if match is None:
        return "?"
    if re.fullmatch(r"[A-Z_]{4,}", match.group(1)):  # TEST(Suite, Case)
        return re.sub(r"\s+", "", f"{match.group(1)}({match.group(2)})")
    return re.sub(r"\s+", "", match.group(1))
