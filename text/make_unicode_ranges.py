#!/usr/bin/env python3
"""Writes unicode_ranges.inc: ranges of letters, numbers and white space, from Python's unicodedata.

usage: make_unicode_ranges.py > unicode_ranges.inc
"""
import sys
import unicodedata

WHITE_SPACE = {*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}


def char_class(code_point):
    if code_point in WHITE_SPACE:
        return "kSpace"
    category = unicodedata.category(chr(code_point))
    return {"L": "kLetter", "N": "kNumber"}.get(category[0])


def ranges():
    start, current = 0, None
    for code_point in range(0x110001):
        found = char_class(code_point) if code_point < 0x110000 else None
        if found != current:
            if current:
                yield start, code_point - 1, current
            start, current = code_point, found


print(f"// Made by make_unicode_ranges.py from Unicode {unicodedata.unidata_version}. Do not edit.")
line = ""
for first, last, name in ranges():
    item = f"{{0x{first:X}, 0x{last:X}, {name}}}, "
    if len(line) + len(item) > 118:
        print(line.rstrip())
        line = ""
    line += item
print(line.rstrip(), file=sys.stdout)
