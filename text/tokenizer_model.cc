// tokenizer.model of Llama 3: tiktoken lines "<base64 of the bytes> <rank>". Rank and id are the same number; the
// special tokens and the split pattern are not in the file but fixed.
#include <array>
#include <charconv>

#include "base/strings.h"
#include "text/byte_lookup.h"
#include "text/json_value.h"
#include "text/tokenizer_spec.h"

namespace agentserve::text {
namespace {

constexpr uint32_t kSpecials = 256;  // ids of the special tokens follow the ranks

constexpr std::array<int8_t, 256> kBase64 = [] {
  std::array<int8_t, 256> t{};
  t.fill(-1);
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (size_t i = 0; i < kDigits.size(); ++i) t[static_cast<uint8_t>(kDigits[i])] = static_cast<int8_t>(i);
  return t;
}();

// Strict: padded, no stray bits. False if malformed or empty.
bool DecodeBase64(std::string_view text, std::string* out) {
  out->clear();
  if (text.empty() || text.size() % 4 != 0) return false;
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with("=") ? 1 : 0;
  text.remove_suffix(padding);
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const int8_t digit = kBase64[static_cast<uint8_t>(c)];
    if (digit < 0) return false;
    bits = bits << 6 | static_cast<uint32_t>(digit);
    count += 6;
    if (count >= 8) {
      count -= 8;
      out->push_back(static_cast<char>(bits >> count & 0xFF));
    }
  }
  return (bits & ((1u << count) - 1)) == 0;
}

void AddSpecials(TokenizerSpec* spec) {
  const uint32_t first = spec->tokens.size();
  const auto named = [](uint32_t i) -> const char* {
    switch (i) {
      case 0:
        return "<|begin_of_text|>";
      case 1:
        return "<|end_of_text|>";
      case 4:
        return "<|finetune_right_pad_id|>";
      case 6:
        return "<|start_header_id|>";
      case 7:
        return "<|end_header_id|>";
      case 8:
        return "<|eom_id|>";
      case 9:
        return "<|eot_id|>";
      case 10:
        return "<|python_tag|>";
      default:
        return nullptr;
    }
  };
  uint32_t reserved = 0;
  for (uint32_t i = 0; i < kSpecials; ++i) {
    const char* name = named(i);
    std::string content = name != nullptr ? name : base::StrCat("<|reserved_special_token_", reserved++, "|>");
    spec->tokens.Add(first + i, content);
    spec->added.push_back({first + i, std::move(content), true});
  }
}

// The format has no merge list: any two adjacent tokens merge if their joined bytes are a token, lowest rank first.
void DeriveMerges(uint32_t count, TokenizerSpec* spec) {
  const TokenTable& tokens = spec->tokens;
  BytesToId ids(&tokens, count);
  for (uint32_t id = 0; id < count; ++id) ids.Insert(id);
  for (uint32_t id = 0; id < count; ++id) {
    const std::string_view bytes = tokens.bytes(id);
    for (size_t cut = 1; cut < bytes.size(); ++cut) {
      const uint32_t left = ids.Find(bytes.substr(0, cut));
      if (left == kNoToken) continue;
      const uint32_t right = ids.Find(bytes.substr(cut));
      if (right != kNoToken) spec->merges.push_back({left, right, id, id});
    }
  }
}

}  // namespace

absl::StatusOr<TokenizerSpec> ParseTiktoken(std::string_view lines, const std::string& origin) {
  // Longer tokens would make deriving merges slow; the longest of Llama 3 has 128 bytes.
  constexpr size_t kMaxTokenBytes = 1024;
  TokenizerSpec spec;
  spec.pattern = kLlama3Pattern;
  spec.ignore_merges = true;
  std::string bytes;
  size_t line_number = 0;
  uint32_t count = 0;
  while (!lines.empty()) {
    ++line_number;
    const size_t end = lines.find('\n');
    std::string_view line = lines.substr(0, end);
    lines.remove_prefix(end == std::string_view::npos ? lines.size() : end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    const auto error = [&](const std::string& what) {
      return absl::InvalidArgumentError(base::StrCat(origin, ": line ", line_number, ": ", what));
    };
    const size_t space = line.find(' ');
    if (space == std::string_view::npos) return error("expected \"<base64> <rank>\", found " + QuoteForError(line));
    if (!DecodeBase64(line.substr(0, space), &bytes)) {
      return error("token " + QuoteForError(line.substr(0, space)) + " is not base64");
    }
    if (bytes.size() > kMaxTokenBytes)
      return error(base::StrCat("token of ", bytes.size(), " bytes; at most ", kMaxTokenBytes));
    uint32_t rank = 0;
    const char* rank_end = line.data() + line.size();
    const auto [ptr, ec] = std::from_chars(line.data() + space + 1, rank_end, rank);
    if (ec != std::errc() || ptr != rank_end || rank > kMaxTokenId - kSpecials) {
      return error("rank " + QuoteForError(line.substr(space + 1)) + " is not an integer in range");
    }
    if (!spec.tokens.Add(rank, bytes)) return error(base::StrCat("rank ", rank, " is given twice"));
    ++count;
  }
  if (count == 0) return absl::InvalidArgumentError(base::StrCat(origin, ": no tokens; the file is empty"));
  if (count != spec.tokens.size()) {
    return absl::InvalidArgumentError(base::StrCat(origin, ": ", count, " lines but ranks up to ",
                                                   spec.tokens.size() - 1,
                                                   "; ranks must be 0, 1, .. without holes (truncated file?)"));
  }
  DeriveMerges(count, &spec);
  AddSpecials(&spec);
  return spec;
}

}  // namespace agentserve::text
