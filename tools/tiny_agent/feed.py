"""Training rows: worker processes generate dialogues, tokenize them and pack whole documents into rows of fixed length."""

import multiprocessing as mp
import random
import re

import numpy as np

import chat_render
import phrasing
import values
from dialogues import make_dialogue

ROW = 8192
SKIP, CONTEXT, ANSWER = 0, 1, 2  # loss classes of a target token
OPEN_ROWS = 12  # rows being filled per worker: enough that a short document nearly always fits somewhere
QUEUE_ROWS = 256  # rows waiting for the trainer, some four steps


def document(rng, seed, text):
    """(rendered text, is plain text)."""
    x = rng.random()
    if x < 0.05:
        start = rng.randrange(len(text) - 8000)
        start = text.index("\n\n", start) + 2
        return chat_render.BEGIN + text[start:start + rng.choice([300, 600, 1200, 2500, 5000])], True
    if x < 0.08:
        d = make_dialogue(seed, turns=rng.randint(8, 24), tool_count=rng.randint(3, 9))
    elif x < 0.10:
        d = make_dialogue(seed, turns=rng.randint(24, 70), tool_count=rng.randint(5, 12))
    else:
        d = make_dialogue(seed)
    return chat_render.render_chat(d["messages"], d["tools"], d["date"]), False


def classes(ids, marks):
    """Loss class of each token: the assistant's tokens with their end token are ANSWER."""
    start_header, assistant, end_header, break_, eot = marks
    out = np.full(len(ids), CONTEXT, np.int16)
    inside = False
    i = 0
    n = len(ids)
    while i < n:
        if inside:
            out[i] = ANSWER
            inside = ids[i] != eot
            i += 1
        elif ids[i] == start_header and i + 3 < n and ids[i + 1] == assistant:
            i += 4
            inside = True
        else:
            i += 1
    return out


def pack(docs):
    """docs: list of (ids, classes). One row: int16 [5, ROW] = tokens, positions, targets, target classes, document number."""
    row = np.zeros((5, ROW), np.int16)
    row[4] = -1
    at = 0
    for number, (ids, cls) in enumerate(docs):
        n = len(ids)
        row[0, at:at + n] = ids
        row[1, at:at + n] = np.arange(n)
        row[2, at:at + n - 1] = ids[1:]
        row[3, at:at + n - 1] = cls[1:]
        row[4, at:at + n] = number
        at += n
    return row


def lexicon(tokenizer, text):
    """(words of the plain text that no request wording uses, every token of letters): together they train each token as a value."""
    used = set(re.findall("[a-z]+", repr((phrasing.IMP_FRAMES, phrasing.NP_FRAMES, phrasing.PHRASES)).lower()))
    words = set(re.findall(r"[a-zA-Z]{3,}", text))
    words |= {w.lower() for w in words}
    return {w for w in words if w.lower() not in used}, {t.lstrip("\u0120") for t in tokenizer.get_vocab() if re.fullmatch("\u0120?[a-zA-Z]{2,}", t)}


def worker(index, seed, tokenizer_path, text, queue):
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(tokenizer_path)
    values.set_lexicon(*lexicon(tokenizer, text))
    one = lambda s: tokenizer.encode(s, add_special_tokens=False).ids
    marks = [one("<|start_header_id|>")[0], one("assistant")[0], one("<|end_header_id|>")[0], one("\n\n")[0], one("<|eot_id|>")[0]]
    assert len(one("assistant")) == 1 and len(one("\n\n")) == 1
    rng = random.Random(f"{seed}/{index}")
    rows, n = [], 0
    while True:
        batch = []
        for _ in range(64):
            n += 1
            batch.append(document(rng, f"{seed}/{index}/{n}", text))
        encoded = tokenizer.encode_batch([b[0] for b in batch], add_special_tokens=False)
        docs = []
        for (_, plain), e in zip(batch, encoded):
            ids = np.array(e.ids[:ROW], np.int16)
            docs.append((ids, np.full(len(ids), ANSWER, np.int16) if plain else classes(e.ids[:ROW], marks)))
        for doc in sorted(docs, key=lambda d: -len(d[0])):
            size = len(doc[0])
            fits = [r for r in rows if r[0] + size <= ROW]
            if fits:
                best = max(fits, key=lambda r: r[0])
                best[0] += size
                best[1].append(doc)
            else:
                rows.append([size, [doc]])
            if len(rows) > OPEN_ROWS:
                fullest = max(rows, key=lambda r: r[0])
                rows.remove(fullest)
                queue.put(pack(fullest[1]))


class Feed:
    def __init__(self, workers, seed, tokenizer_path, text_path):
        with open(text_path, encoding="utf-8") as f:
            text = f.read()
        context = mp.get_context("fork")
        self.queue = context.Queue(QUEUE_ROWS)
        self.processes = [context.Process(target=worker, args=(i, seed, tokenizer_path, text, self.queue), daemon=True)
                          for i in range(workers)]
        for p in self.processes:
            p.start()

    def batch(self, rows):
        return np.stack([self.queue.get(timeout=60) for _ in range(rows)])

    def stop(self):
        for p in self.processes:
            p.terminate()
