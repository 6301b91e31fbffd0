#!/usr/bin/env python3
"""Trains the small byte-level BPE used by the tests of text/ and writes it in both file layouts.

usage: make_tokenizer_fixture.py CORPUS.txt OUT_DIR

OUT_DIR/tokenizer.json   Hugging Face layout, merges as arrays, ignore_merges false
OUT_DIR/tokenizer.model  tiktoken lines of the same tokens
"""
import base64
import collections
import json
import re
import sys

MERGES = 700
EXTRA = "naïve café déjà vu Größe über 東京 東京都 日本語 привет мир 안녕하세요 שלום 😀😀 👍🏽 {\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}\n" * 400
LLAMA3 = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
          "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")


def byte_alphabet():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(0x100 + i) for i, b in enumerate(shifted)}}


def train(text):
    words = collections.Counter(re.findall(r" ?[^\W\d_]+|\d{1,3}| ?[^\s\w]+|\s+", text))
    parts = {w: [bytes([b]) for b in w.encode()] for w in words}
    tokens, merges = [bytes([b]) for b in range(256)], []
    known = set(tokens)
    while len(merges) < MERGES:
        pairs = collections.Counter()
        for word, count in words.items():
            for pair in zip(parts[word], parts[word][1:]):
                pairs[pair] += count
        pair = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(pair)
        joined = pair[0] + pair[1]
        if joined not in known:
            known.add(joined)
            tokens.append(joined)
        for word, p in parts.items():
            i = 0
            while i + 1 < len(p):
                if (p[i], p[i + 1]) == pair:
                    p[i:i + 2] = [joined]
                i += 1
    return tokens, merges


def special_names():
    fixed = {0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id", 6: "start_header_id", 7: "end_header_id",
             8: "eom_id", 9: "eot_id", 10: "python_tag"}
    reserved = 0
    for i in range(256):
        if i in fixed:
            yield f"<|{fixed[i]}|>"
        else:
            yield f"<|reserved_special_token_{reserved}|>"
            reserved += 1


def main():
    corpus, out = sys.argv[1:3]
    text = open(corpus, encoding="utf-8").read()[:300_000] + EXTRA
    tokens, merges = train(text)
    alphabet = byte_alphabet()
    spell = lambda token: "".join(alphabet[b] for b in token)
    added = [{"id": len(tokens) + i, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for i, name in enumerate(special_names())]
    tree = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {spell(t): i for i, t in enumerate(tokens)},
                  "merges": [[spell(a), spell(b)] for a, b in merges]},
    }
    with open(f"{out}/tokenizer.json", "w", encoding="utf-8") as f:
        json.dump(tree, f, ensure_ascii=False, separators=(",", ":"))
    with open(f"{out}/tokenizer.model", "w", encoding="ascii") as f:
        for i, token in enumerate(tokens):
            f.write(f"{base64.b64encode(token).decode()} {i}\n")


main()
