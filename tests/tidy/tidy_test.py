#!/usr/bin/env python3
"""Proves that each tidiness check catches what it is for: plants a violation in a small tree and expects it by name."""
import contextlib
import io
import json
import pathlib
import shutil
import tempfile
import unittest

import source
import tidy

LAYERING = """
base: | absl prometheus
engine: base | absl
router: base engine text | absl grpc proto
router/core: base engine | absl
prefill_worker: base engine | grpc
tools: *
"""


class TidyTest(unittest.TestCase):
    def setUp(self):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="tidy-test-"))
        self.addCleanup(shutil.rmtree, self.root)
        self.write("tests/tidy/layering.txt", LAYERING)
        self.write("base/good.h", "#pragma once\nint Good();\n")
        self.write("base/good.cc", '#include "base/good.h"\nint Good() { return 1; }\n')
        self.write("base/CMakeLists.txt", "serve_library(b SRCS good.cc)\n")

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run_check(self, check, *args):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = tidy.main([check, "--root", str(self.root), *args])
        self.assertEqual(code, 1 if "no violations" not in out.getvalue() else 0)
        return out.getvalue()

    def assert_clean(self, check):
        self.assertIn("no violations", self.run_check(check))

    def assert_caught(self, check, *parts):
        text = self.run_check(check)
        for part in parts:
            self.assertIn(part, text)

    def test_clean_tree(self):
        for check in ("layering", "purity", "functions", "files", "targets", "words"):
            self.assert_clean(check)

    # layering
    def test_upward_include(self):
        self.write("engine/a.h", "#pragma once\n")
        self.write("base/bad.cc", '#include "base/good.h"\n#include "engine/a.h"\n')
        self.assert_caught("layering", 'base/bad.cc:2: base/ must not include "engine/a.h"')

    def test_service_includes_its_neighbour(self):
        self.write("prefill_worker/a.h", "#pragma once\n")
        self.write("router/bad.cc", '#include "prefill_worker/a.h"\n')
        self.assert_caught("layering", "router/bad.cc:1")

    def test_core_includes_generated_messages_and_grpc(self):
        self.write("router/core/bad.h", '#include "agentserve/router/v1/router.pb.h"\n#include <grpcpp/grpcpp.h>\n')
        self.assert_caught("layering", "router/core/bad.h:1", "router/core/bad.h:2")

    def test_core_includes_its_own_shell(self):
        self.write("router/service.h", '#pragma once\n#include "router/core/x.h"\n')
        self.write("router/core/x.h", '#pragma once\n#include "router/service.h"\n')
        text = self.run_check("layering")
        self.assertIn("router/core/x.h:2", text)
        self.assertNotIn("router/service.h:2", text)

    def test_cuda_header(self):
        self.write("engine/bad.cc", "#include <cuda_runtime.h>\n")
        self.assert_caught("layering", "engine/bad.cc:1", "kind cuda")

    def test_folder_without_a_rule(self):
        self.write("novel/a.cc", "int x;\n")
        self.assert_caught("layering", "novel/a.cc:1", "not in tests/tidy/layering.txt")

    def test_everything_allowed(self):
        self.write("tools/a.cc", '#include <grpcpp/grpcpp.h>\n#include "base/good.h"\n')
        self.assert_clean("layering")

    # purity
    def test_impure_core(self):
        for planted in ("auto t = std::chrono::steady_clock::now();", "std::this_thread::sleep_for(x);",
                        "std::thread t;", "std::mutex m;", "absl::Mutex m;", "std::random_device d;",
                        "int x = rand();", 'getenv("A");', "usleep(1);", "clock.Now();"):
            self.write("router/core/bad.cc", f"void F() {{\n  {planted}\n}}\n")
            with self.subTest(planted):
                self.assert_caught("purity", "router/core/bad.cc:2")
            self.write("engine/bad.cc", f"{planted}\n")
            with self.subTest("engine: " + planted):
                self.assert_caught("purity", "engine/bad.cc:1")
            (self.root / "engine/bad.cc").unlink()

    def test_purity_leaves_comments_strings_tests_and_shells_alone(self):
        self.write("router/core/ok.cc", '// std::mutex is not used\nconst char* s = "rand()"; /* sleep(1) */\nint operand(int);\n')
        self.write("router/core/ok_test.cc", "std::thread t;\n")
        self.write("router/service.cc", "std::mutex m;\n")
        self.assert_clean("purity")

    # functions
    def test_long_function(self):
        body = "  x();\n" * 69
        self.write("base/long.cc", f"namespace a {{\nvoid C::Fits() {{\n{body[7:]}}}\nint C::TooLong(int a) {{\n{body}}}\n}}\n")
        text = self.run_check("functions")
        self.assertIn("base/long.cc:72: function base/long.cc:C::TooLong has 71 lines", text)
        self.assertNotIn("Fits", text)

    def test_function_kinds(self):
        text = """
#define MACRO(x) \\
  do { x } while (0)
struct S {
  S() : a_{1}, b_(2) {
    f();
  }
  int Get() const { return a_; }
  int a_{0};
  std::vector<int> v = {1, 2};
};
enum class E { kA, kB };
constexpr int kTable[] = {1, 2};
TEST(Suite, Case) {
  auto l = [](int x) { return x; };
  if (x) { y(); }
}
template <typename T>
auto Generic(T t) -> decltype(t.x()) {
  const char* s = "}";
  char c = '{';
}
bool operator==(const S& a, const S& b) { return R"({)" == b; }
"""
        self.assertEqual([(n, s) for n, _, s in source.functions(text)],
                         [("S", 3), ("Get", 1), ("TEST(Suite,Case)", 4), ("Generic", 5), ("operator==", 1)])

    def test_ratchet_only_shrinks(self):
        def tree(lines, known):
            body = "  x();\n" * (lines - 2)
            self.write("base/long.cc", f"void F() {{\n{body}}}\n")
            self.write("tests/tidy/functions_ratchet.txt", f"# head\n{known} base/long.cc:F\n" if known else "# head\n")
        tree(80, 80)
        self.assert_clean("functions")
        tree(81, 80)
        self.assert_caught("functions", "grew from 80 to 81")
        tree(79, 80)
        self.assert_caught("functions", "is down to 79 lines from 80")
        self.assertIn("no violations", self.run_check("functions", "--shrink") + self.run_check("functions"))
        self.assertEqual((self.root / "tests/tidy/functions_ratchet.txt").read_text(), "# head\n79 base/long.cc:F\n")
        tree(10, 79)
        self.run_check("functions", "--shrink")
        self.assertEqual((self.root / "tests/tidy/functions_ratchet.txt").read_text(), "# head\n")
        tree(81, 0)
        self.run_check("functions", "--shrink")  # takes in nothing new
        self.assert_caught("functions", "has 81 lines")

    # files
    def test_long_file(self):
        self.write("base/long.h", "// x\n" * 501)
        self.assert_caught("files", "base/long.h:1: file base/long.h has 501 lines")
        self.write("base/long.h", "// x\n" * 1001)
        self.write("tests/tidy/files_ratchet.txt", "1001 base/long.h\n")
        self.assert_caught("files", "1000 are never allowed")

    # targets
    def test_source_outside_any_target(self):
        self.write("base/lost.cc", "int x;\n")
        self.write("base/unused.h", "#pragma once\n")
        self.assert_caught("targets", "base/lost.cc:1: belongs to no target", "base/unused.h:1")

    def test_source_named_only_in_a_comment(self):
        self.write("base/lost.cc", "int x;\n")
        self.write("base/CMakeLists.txt", "serve_library(b SRCS good.cc)  # not lost.cc\n")
        self.assert_caught("targets", "base/lost.cc:1")

    def test_compiled_source_counts(self):
        self.write("base/generated_name.cc", "int x;\n")
        build = self.root / "build"
        entry = {"directory": str(build), "file": "../base/generated_name.cc", "command": ""}
        self.write("build/compile_commands.json", json.dumps([entry]))
        self.assert_clean("targets")

    # words
    def test_unfinished_work(self):
        self.write("base/note.cc", "int x;\n// TO" + "DO: later\n")
        self.assert_caught("words", "base/note.cc:2")

    # format and scripts: only where the tools are
    def test_unformatted_file(self):
        if shutil.which("clang-format-14") is None:
            self.skipTest("clang-format-14 is not installed")
        self.write(".clang-format", "BasedOnStyle: Google\n")
        self.assert_clean("format")
        self.write("base/ugly.cc", "int   x ;\n")
        self.assert_caught("format", "base/ugly.cc:1")

    def test_shell_script(self):
        if shutil.which("shellcheck") is None:
            self.skipTest("shellcheck is not installed")
        self.write("scripts/good", '#!/usr/bin/env bash\necho "$1"\n')
        self.assert_clean("scripts")
        self.write("scripts/bad", "#!/usr/bin/env bash\necho $1\n")
        self.assert_caught("scripts", "scripts/bad:2")


if __name__ == "__main__":
    unittest.main(verbosity=2)
