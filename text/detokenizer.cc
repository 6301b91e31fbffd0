#include "text/detokenizer.h"

namespace agentserve::text {

StreamingDetokenizer::StreamingDetokenizer(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer), skip_special_(skip_special) {}

std::string StreamingDetokenizer::Push(uint32_t id) {
  std::string out;
  if (skip_special_ && tokenizer_->IsSpecial(id)) return out;
  sanitizer_.Push(tokenizer_->TokenBytes(id), &out);
  return out;
}

std::string StreamingDetokenizer::Finish() {
  std::string out;
  sanitizer_.Finish(&out);
  return out;
}

}  // namespace agentserve::text
