#include "gateway/openai/logprobs.h"

#include <algorithm>

#include "base/strings.h"
#include "gateway/json_util.h"

namespace agentserve::gateway {
namespace {

bool IsUtf8(std::string_view s) {
  // The escaper replaces what is not UTF-8, so a text without U+FFFD in the outcome was clean.
  std::string escaped;
  AppendJsonString(&escaped, s);
  return escaped.find("\xEF\xBF\xBD") == std::string::npos || s.find("\xEF\xBF\xBD") != s.npos;
}

// OpenAI's notation of tokens that are not text by themselves.
std::string TokenText(std::string_view bytes) {
  if (IsUtf8(bytes)) return std::string(bytes);
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out = "bytes:";
  for (unsigned char c : bytes) {
    out += "\\x";
    out += kHex[c >> 4];
    out += kHex[c & 15];
  }
  return out;
}

void AppendChance(std::string* out, const TokenChance& t) {
  *out += "\"token\":";
  AppendJsonString(out, t.bytes);
  *out += ",\"logprob\":";
  AppendJsonNumber(out, t.logprob);
  *out += ",\"bytes\":[";
  for (size_t i = 0; i < t.bytes.size(); ++i) {
    base::StrAppend(out, i > 0 ? "," : "", static_cast<unsigned>(static_cast<unsigned char>(t.bytes[i])));
  }
  *out += ']';
}

template <typename T, typename Fn>
void AppendList(std::string* out, std::string_view key, const std::vector<T>& list, Fn&& fn) {
  base::StrAppend(out, "\"", key, "\":[");
  for (size_t i = 0; i < list.size(); ++i) {
    if (i > 0) *out += ',';
    fn(list[i]);
  }
  *out += ']';
}

void AppendTopObject(std::string* out, const TokenLogprobs& t) {
  *out += '{';
  bool chosen_listed = false;
  const auto add = [&](const TokenChance& c, bool first) {
    if (!first) *out += ',';
    AppendJsonString(out, TokenText(c.bytes));
    *out += ':';
    AppendJsonNumber(out, c.logprob);
  };
  for (size_t i = 0; i < t.top.size(); ++i) {
    add(t.top[i], i == 0);
    chosen_listed |= t.top[i].bytes == t.chosen.bytes;
  }
  if (!chosen_listed) add(t.chosen, t.top.empty());
  *out += '}';
}

}  // namespace

std::vector<TokenLogprobs> CollectLogprobs(const router::v1::Delta& delta) {
  std::vector<TokenLogprobs> out;
  int next = 0;
  const auto text = [&] { return next < delta.logprob_texts_size() ? delta.logprob_texts(next++) : std::string(); };
  for (const auto& l : delta.logprobs()) {
    TokenLogprobs& t = out.emplace_back();
    t.chosen = {text(), l.logprob()};
    for (const auto& top : l.top()) t.top.push_back({text(), top.logprob()});
  }
  return out;
}

void AppendChatLogprobs(std::string* out, const std::vector<TokenLogprobs>& tokens) {
  *out += '{';
  AppendList(out, "content", tokens, [&](const TokenLogprobs& t) {
    *out += '{';
    AppendChance(out, t.chosen);
    *out += ',';
    AppendList(out, "top_logprobs", t.top, [&](const TokenChance& c) {
      *out += '{';
      AppendChance(out, c);
      *out += '}';
    });
    *out += '}';
  });
  *out += ",\"refusal\":null}";
}

void AppendTextLogprobs(std::string* out, const std::vector<TokenLogprobs>& tokens, uint32_t top, uint64_t* offset) {
  *out += '{';
  AppendList(out, "tokens", tokens, [&](const TokenLogprobs& t) { AppendJsonString(out, TokenText(t.chosen.bytes)); });
  *out += ',';
  AppendList(out, "token_logprobs", tokens, [&](const TokenLogprobs& t) { AppendJsonNumber(out, t.chosen.logprob); });
  *out += ',';
  if (top == 0) {
    *out += "\"top_logprobs\":null";
  } else {
    AppendList(out, "top_logprobs", tokens, [&](const TokenLogprobs& t) { AppendTopObject(out, t); });
  }
  *out += ',';
  AppendList(out, "text_offset", tokens, [&](const TokenLogprobs& t) {
    base::StrAppend(out, *offset);
    *offset += CodePoints(t.chosen.bytes);
  });
  *out += '}';
}

uint64_t CodePoints(std::string_view s) {
  return static_cast<uint64_t>(
      std::count_if(s.begin(), s.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

}  // namespace agentserve::gateway
