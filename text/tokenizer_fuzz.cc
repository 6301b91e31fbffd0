// Tokenizer files. Whatever loads must round-trip text and never give special tokens for it.
#include <cstdio>
#include <cstdlib>

#include "base/check.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

using agentserve::text::Tokenizer;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const auto tokenizer =
      input.starts_with("{") ? Tokenizer::FromJson(input, "fuzz") : Tokenizer::FromTiktoken(input, "fuzz");
  if (!tokenizer.ok()) {
    AS_CHECK(!tokenizer.status().message().empty());
    return 0;
  }
  const Tokenizer& t = **tokenizer;
  const std::string valid = agentserve::text::ToValidUtf8(input.substr(0, 2000)) + " hello 'S 123\n<|eot_id|>";
  const auto ids = t.Encode(valid);
  for (const uint32_t id : ids) AS_CHECK(id < t.vocab_size() && !t.IsSpecial(id));
  AS_CHECK(t.Decode(ids, true) == valid);
  AS_CHECK(t.Decode(t.EncodeParsingSpecials(valid), false) == valid);
  return 0;
}
