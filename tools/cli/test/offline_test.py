#!/usr/bin/env python3
"""Black-box test of `agentserve generate` and `bench step`: argv[1] = the agentserve program, argv[2] = a model folder."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

PROGRAM = pathlib.Path(sys.argv.pop(1)).resolve()
MODEL = pathlib.Path(sys.argv.pop(1)).resolve()


def run(*args, stdin=""):
    return subprocess.run([PROGRAM, *args], input=stdin, capture_output=True, text=True, timeout=120)


class GenerateTest(unittest.TestCase):
    def batch(self, *specs, args=()):
        done = run("generate", "--model", str(MODEL), "--batch", "-", *args, stdin="\n".join(json.dumps(s) for s in specs))
        self.assertEqual(done.returncode, 0, done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def test_seeded_output_repeats_whatever_the_chunks(self):
        specs = [{"prompt": "One two three four five six seven eight nine ten", "seed": seed, "temperature": t, "max_tokens": 24}
                 for seed in (1, 2) for t in (0, 0.9)]
        first = self.batch(*specs)
        for args in ([], ["--chunk-tokens", "3"], ["--block-tokens", "4", "--threads", "1"]):
            again = self.batch(*specs, args=args)
            self.assertEqual([r["token_ids"] for r in again], [r["token_ids"] for r in first], args)
        self.assertEqual(first[0]["token_ids"], first[2]["token_ids"])  # greedy: the seed does not count
        self.assertNotEqual(first[1]["token_ids"], first[3]["token_ids"])

    def test_limits_and_stops(self):
        free, = self.batch({"prompt": "Hello", "temperature": 0, "max_tokens": 12, "ignore_eos": True})
        self.assertEqual((len(free["token_ids"]), free["finish_reason"]), (12, "length"))
        stop = free["text"].strip()[3:5]
        cut, kept = self.batch({"prompt": "Hello", "temperature": 0, "max_tokens": 12, "ignore_eos": True, "stop": [stop]},
                               {"prompt": "Hello", "temperature": 0, "max_tokens": 12, "ignore_eos": True, "stop": stop,
                                "include_stop_str_in_output": True})
        before = free["text"].split(stop)[0]
        self.assertEqual((cut["text"], cut["finish_reason"], cut["stop_match"]), (before, "stop", stop))
        self.assertEqual(kept["text"], before + stop)

    def test_chat_ends_by_itself_and_ids_go_in_as_they_are(self):
        chat, = self.batch({"messages": [{"role": "user", "content": "Hello!"}], "temperature": 0, "max_tokens": 200})
        self.assertEqual(chat["finish_reason"], "stop")
        ids, = self.batch({"prompt_ids": chat["prompt_token_ids"], "temperature": 0, "max_tokens": 200})
        self.assertEqual(ids["token_ids"], chat["token_ids"])

    def test_logprobs(self):
        out, = self.batch({"prompt": "Hello", "temperature": 0, "max_tokens": 3, "ignore_eos": True, "logprobs": 2})
        for entry in out["logprobs"]:
            self.assertEqual(entry["top"][0]["token"], entry["token"])
            self.assertLessEqual(entry["top"][1]["logprob"], entry["logprob"])
            self.assertLessEqual(entry["logprob"], 0)

    def test_flags_and_batch_agree(self):
        done = run("generate", "--model", str(MODEL), "--prompt", "Hello", "--temperature", "0.7", "--seed", "5",
                   "--max-tokens", "9", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        batch, = self.batch({"prompt": "Hello", "temperature": 0.7, "seed": 5, "max_tokens": 9})
        self.assertEqual(json.loads(done.stdout)["token_ids"], batch["token_ids"])

    def test_wrong_input_is_named(self):
        for spec, words in [
            ({"prompt": "x", "temprature": 1}, 'unknown field "temprature"'),
            ({"prompt": "x", "temperature": 3}, 'field "temperature"'),
            ({"prompt": "x", "max_tokens": 1.5}, 'field "max_tokens": a whole number'),
            ({"prompt": "x", "prompt_ids": [1]}, "exactly one of"),
            ({}, "exactly one of"),
            ({"prompt_ids": [2**32]}, 'field "prompt_ids"'),
            ({"prompt_ids": []}, "the prompt is empty"),
            ({"messages": [{"content": "x"}]}, "messages[0]"),
            ([], "a JSON object is expected"),
        ]:
            done = run("generate", "--model", str(MODEL), "--batch", "-", stdin=json.dumps(spec))
            self.assertEqual(done.returncode, 2, (spec, done.stderr))
            self.assertIn(words, done.stderr)
            self.assertIn("-:1: ", done.stderr)

    def test_exit_codes(self):
        self.assertEqual(run("generate").returncode, 2)
        self.assertEqual(run("generate", "--prompt", "a", "--chat", "b").returncode, 2)
        with tempfile.TemporaryDirectory() as empty:
            done = run("generate", "--model", empty, "--prompt", "x")
        self.assertEqual(done.returncode, 3)
        self.assertIn("config.json", done.stderr)

    def test_bench_step(self):
        done = run("bench", "step", "--model", str(MODEL), "--prompt-tokens", "32", "--decode-tokens", "4", "--json", "-")
        self.assertEqual(done.returncode, 0, done.stderr)
        for key, value in json.loads(done.stdout).items():
            self.assertGreater(value, 0, key)
        self.assertEqual(run("bench", "step", "--batch", "0").returncode, 2)


if __name__ == "__main__":
    unittest.main(verbosity=2)
