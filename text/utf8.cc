#include "text/utf8.h"

namespace agentserve::text {
namespace {

struct LeadInfo {
  int length;          // bytes of the whole sequence; 0 = not a lead byte
  uint8_t second_min;  // allowed range of the second byte
  uint8_t second_max;
};

LeadInfo Lead(uint8_t b) {
  if (b < 0x80) return {1, 0, 0};
  if (b < 0xC2) return {0, 0, 0};
  if (b < 0xE0) return {2, 0x80, 0xBF};
  if (b == 0xE0) return {3, 0xA0, 0xBF};
  if (b == 0xED) return {3, 0x80, 0x9F};  // no surrogates
  if (b < 0xF0) return {3, 0x80, 0xBF};
  if (b == 0xF0) return {4, 0x90, 0xBF};
  if (b < 0xF4) return {4, 0x80, 0xBF};
  if (b == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

// Result of reading one sequence at the front of `s` (not empty).
struct Step {
  size_t bytes;     // of the sequence, or of the maximal invalid part
  bool valid;       // a whole valid sequence
  bool unfinished;  // all of `s` is a proper prefix of a valid sequence
};

Step ReadSequence(std::string_view s) {
  const LeadInfo lead = Lead(static_cast<uint8_t>(s[0]));
  if (lead.length == 0) return {1, false, false};
  for (int i = 1; i < lead.length; ++i) {
    if (static_cast<size_t>(i) == s.size()) return {s.size(), false, true};
    const uint8_t b = static_cast<uint8_t>(s[static_cast<size_t>(i)]);
    const uint8_t lo = i == 1 ? lead.second_min : 0x80;
    const uint8_t hi = i == 1 ? lead.second_max : 0xBF;
    if (b < lo || b > hi) return {static_cast<size_t>(i), false, false};
  }
  return {static_cast<size_t>(lead.length), true, false};
}

// White_Space of Unicode plus U+001C..1F: what Python's str.isspace() is true for.
bool IsPythonSpace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

}  // namespace

void Utf8Sanitizer::Push(std::string_view bytes, std::string* out) {
  size_t pos = 0;
  while (!held_.empty() && pos < bytes.size()) {
    held_.push_back(bytes[pos]);
    const Step step = ReadSequence(held_);
    if (step.unfinished) {
      ++pos;
    } else if (step.valid) {
      ++pos;
      out->append(held_);
      held_.clear();
    } else {
      // The held prefix cannot be continued by this byte, which starts anew.
      out->append(kReplacementChar);
      held_.clear();
    }
  }
  size_t clean_from = pos;
  while (pos < bytes.size()) {
    if (static_cast<uint8_t>(bytes[pos]) < 0x80) {
      ++pos;
      continue;
    }
    const Step step = ReadSequence(bytes.substr(pos));
    if (step.valid) {
      pos += step.bytes;
      continue;
    }
    out->append(bytes.substr(clean_from, pos - clean_from));
    if (step.unfinished) {
      held_.assign(bytes.substr(pos));
      return;
    }
    out->append(kReplacementChar);
    pos += step.bytes;
    clean_from = pos;
  }
  out->append(bytes.substr(clean_from));
}

void Utf8Sanitizer::Finish(std::string* out) {
  if (!held_.empty()) out->append(kReplacementChar);
  held_.clear();
}

bool IsValidUtf8(std::string_view s) {
  size_t pos = 0;
  while (pos < s.size()) {
    if (static_cast<uint8_t>(s[pos]) < 0x80) {
      ++pos;
      continue;
    }
    const Step step = ReadSequence(s.substr(pos));
    if (!step.valid) return false;
    pos += step.bytes;
  }
  return true;
}

std::string ToValidUtf8(std::string_view s) {
  std::string out;
  out.reserve(s.size());
  Utf8Sanitizer sanitizer;
  sanitizer.Push(s, &out);
  sanitizer.Finish(&out);
  return out;
}

void AppendUtf8(uint32_t c, std::string* out) {
  const auto put = [out](uint32_t b) { out->push_back(static_cast<char>(b)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

uint32_t NextCodePoint(std::string_view s, size_t* pos) {
  const auto at = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(s[*pos + i])); };
  const uint32_t b = at(0);
  uint32_t c = b;
  if (b < 0x80) {
    *pos += 1;
  } else if (b < 0xE0) {
    c = (b & 0x1F) << 6 | (at(1) & 0x3F);
    *pos += 2;
  } else if (b < 0xF0) {
    c = (b & 0x0F) << 12 | (at(1) & 0x3F) << 6 | (at(2) & 0x3F);
    *pos += 3;
  } else {
    c = (b & 0x07) << 18 | (at(1) & 0x3F) << 12 | (at(2) & 0x3F) << 6 | (at(3) & 0x3F);
    *pos += 4;
  }
  return c;
}

std::string_view PythonStrip(std::string_view s) {
  size_t begin = 0;
  while (begin < s.size()) {
    size_t next = begin;
    if (!IsPythonSpace(NextCodePoint(s, &next))) break;
    begin = next;
  }
  size_t end = s.size();
  while (end > begin) {
    size_t start = end - 1;
    while (start > begin && (static_cast<uint8_t>(s[start]) & 0xC0) == 0x80) --start;
    size_t next = start;
    if (!IsPythonSpace(NextCodePoint(s, &next))) break;
    end = start;
  }
  return s.substr(begin, end - begin);
}

}  // namespace agentserve::text
