"""Trains the byte-level BPE tokenizer and writes it in the Hugging Face layout.

    python3 bpe.py --out DIR --text SHAKESPEARE [--dialogues 6000]

The splitting expression is Llama 3's. Merges are learned in two stages so that a word splits the same way wherever it stands:
stage 1 learns inside runs of letters, of punctuation and of white space, never across; stage 2 lets a leading space join the
first token of a word. " Zorblat" and "Zorblat" then differ in their first token at most, which makes copying a value from the
user's sentence into JSON easy for a small model. All numbers of two and three digits are tokens.
"""

import argparse
import collections
import json
import os

import regex

import chat_render
from dialogues import make_dialogue

PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIALS = ["begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1", "finetune_right_pad_id",
            "reserved_special_token_2", "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag"]
SPECIALS = [f"<|{s}|>" for s in SPECIALS + [f"reserved_special_token_{i}" for i in range(3, 8)]]
VOCAB_SIZE = 4096  # with the special tokens
SPACE_MERGES = 1150


def byte_alphabet():
    """The printable stand-in of each byte (the usual byte-level alphabet): printable bytes stand for themselves."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {}, 0
    for b in range(256):
        if b in keep:
            table[b] = chr(b)
        else:
            table[b] = chr(256 + extra)
            extra += 1
    order = keep + [b for b in range(256) if b not in keep]
    return table, [table[b] for b in order]


TABLE, ALPHABET = byte_alphabet()
SPACE = TABLE[32]


def to_symbols(text):
    return "".join(TABLE[b] for b in text.encode())


def count_pieces(texts):
    """Counts of (has leading space, symbols of the rest) over all pieces; digit pieces are left out."""
    split = regex.compile(PATTERN)
    specials = regex.compile(r"<\|[a-z_0-9]+\|>")
    raw = collections.Counter()
    for text in texts:
        for segment in specials.split(text):
            raw.update(split.findall(segment))
    counts = collections.Counter()
    for piece, n in raw.items():
        if piece[0].isnumeric():
            continue
        spaced = len(piece) > 1 and piece[0] == " " and not piece.isspace()
        rest = piece[1:] if spaced else piece
        if not spaced and len(piece) > 1 and not piece[0].isalpha() and piece[1].isalpha() and piece[0] != "'":
            rest = piece[1:]  # one punctuation mark in front of letters stays a token of its own
        counts[(spaced, to_symbols(rest))] += n
    return counts


def learn_merges(words, wanted):
    """Plain BPE over {word: count}; ties go to the smaller pair so that the result does not depend on hashing."""
    state = [(list(w), n) for w, n in sorted(words.items())]
    pairs, where = collections.Counter(), collections.defaultdict(set)
    for i, (symbols, n) in enumerate(state):
        for pair in zip(symbols, symbols[1:]):
            pairs[pair] += n
            where[pair].add(i)
    merges = []
    while len(merges) < wanted and pairs:
        best = max(pairs, key=lambda p: (pairs[p], tuple(-ord(c) for c in p[0][:4] + p[1][:4])))
        if pairs[best] < 2:
            break
        merges.append(best)
        for i in sorted(where.pop(best)):
            symbols, n = state[i]
            for pair in zip(symbols, symbols[1:]):
                pairs[pair] -= n
                if pairs[pair] <= 0:
                    del pairs[pair]
            out, j = [], 0
            while j < len(symbols):
                if j + 1 < len(symbols) and (symbols[j], symbols[j + 1]) == best:
                    out.append(symbols[j] + symbols[j + 1])
                    j += 2
                else:
                    out.append(symbols[j])
                    j += 1
            state[i] = (out, n)
            for pair in zip(out, out[1:]):
                pairs[pair] += n
                where[pair].add(i)
        pairs.pop(best, None)
    return merges, {"".join(s): s for s, _ in state}


def train(texts):
    """Returns (vocabulary list, merge list) without the special tokens."""
    counts = count_pieces(texts)
    digits = "0123456789"
    vocab = list(ALPHABET)
    merges = []
    for a in digits:
        for b in digits:
            vocab.append(a + b)
            merges.append((a, b))
    for n in range(1000):
        s = f"{n:03d}"
        vocab.append(s)
        merges += [(s[:2], s[2]), (s[0], s[1:])]
    words = collections.Counter()
    for (_, w), n in counts.items():
        words[w] += n
    room = VOCAB_SIZE - len(SPECIALS) - len(vocab)
    learned, split_of = learn_merges(words, room - SPACE_MERGES)
    known = set(vocab)
    for a, b in learned:
        merges.append((a, b))
        if a + b not in known:
            known.add(a + b)
            vocab.append(a + b)
    starts = collections.Counter()
    for (spaced, w), n in counts.items():
        if spaced:
            starts[split_of[w][0]] += n
    for token, _ in sorted(starts.items(), key=lambda kv: (-kv[1], kv[0])):
        if len(vocab) == VOCAB_SIZE - len(SPECIALS):
            break
        if SPACE + token not in known:
            known.add(SPACE + token)
            vocab.append(SPACE + token)
            merges.append((SPACE, token))
    assert len(vocab) == VOCAB_SIZE - len(SPECIALS), len(vocab)
    return vocab, merges


def tokenizer_json(vocab, merges):
    first = len(vocab)
    added = [dict(id=first + i, content=s, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
             for i, s in enumerate(SPECIALS)]
    bos = SPECIALS[0]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": {"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
            {"type": "TemplateProcessing",
             "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
             "pair": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                      {"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
             "special_tokens": {bos: {"id": bos, "ids": [first], "tokens": [bos]}}}]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
                  "vocab": {t: i for i, t in enumerate(vocab)}, "merges": [f"{a} {b}" for a, b in merges]},
    }


def write(out, vocab, merges):
    os.makedirs(out, exist_ok=True)
    dump = lambda name, value, indent=None: open(os.path.join(out, name), "w", encoding="utf-8").write(
        json.dumps(value, ensure_ascii=False, indent=indent) + "\n")
    dump("tokenizer.json", tokenizer_json(vocab, merges))
    special = {"bos_token": SPECIALS[0], "eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>"}
    decoder = {str(len(vocab) + i): dict(content=s, lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
               for i, s in enumerate(SPECIALS)}
    dump("tokenizer_config.json", {"added_tokens_decoder": decoder, **special, "clean_up_tokenization_spaces": False,
                                   "model_input_names": ["input_ids", "attention_mask"], "model_max_length": 8192,
                                   "tokenizer_class": "PreTrainedTokenizerFast"}, 1)
    dump("special_tokens_map.json", special, 1)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--out", required=True)
    args.add_argument("--text", required=True)
    args.add_argument("--dialogues", type=int, default=6000)
    args = args.parse_args()
    texts = [open(args.text, encoding="utf-8").read()[:300000]]
    for i in range(args.dialogues):
        d = make_dialogue(f"bpe/{i}")
        texts.append(chat_render.render_chat(d["messages"], d["tools"], d["date"]))
    vocab, merges = train(texts)
    write(args.out, vocab, merges)
    print(f"{len(vocab)} tokens + {len(SPECIALS)} special, {len(merges)} merges -> {args.out}")


if __name__ == "__main__":
    main()
