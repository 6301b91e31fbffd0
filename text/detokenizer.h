// Turns a stream of token ids into text deltas that never split a UTF-8 sequence.
#pragma once

#include <cstdint>
#include <string>

#include "text/tokenizer.h"
#include "text/utf8.h"

namespace agentserve::text {

// Invariant: all Push results and Finish concatenated equal Tokenizer::Decode of the same ids. Single-threaded; the
// tokenizer must outlive it. Holds at most 3 bytes.
class StreamingDetokenizer {
 public:
  StreamingDetokenizer(const Tokenizer& tokenizer, bool skip_special);

  // Text that became certain with this token; often "" in the middle of a multi-byte character. Bytes that can no
  // longer become valid are given as U+FFFD at once.
  std::string Push(uint32_t id);
  // What is still held is a truncated sequence: U+FFFD, or "" if nothing is held. Ready for a new stream afterwards.
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  Utf8Sanitizer sanitizer_;
};

}  // namespace agentserve::text
