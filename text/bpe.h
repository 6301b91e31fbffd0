// Byte-pair encoding of one piece of text. Internal to text/.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "text/byte_lookup.h"
#include "text/tokenizer_spec.h"

namespace agentserve::text {

// Repeatedly joins the adjacent pair of lowest rank, leftmost first, until no pair joins. Time O(n log n) in the bytes
// of the piece. Immutable; thread-safe.
class Bpe {
 public:
  // Memory reused between calls of one thread.
  struct Scratch {
    struct Symbol {
      uint32_t id = 0;
      int32_t prev = -1;
      int32_t next = -1;
    };
    struct Candidate {
      uint32_t rank;
      int32_t pos;
      uint32_t left, right;  // as pushed; a mismatch means that the pair is gone
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  // `spec` must outlive this. Errors: a byte without a token, two tokens of equal bytes, a pair merged twice.
  static absl::StatusOr<Bpe> Create(const TokenizerSpec& spec, const std::string& origin);

  // Appends the ids of `piece` (less than 2 GiB).
  void Encode(std::string_view piece, Scratch* scratch, std::vector<uint32_t>* out) const;

 private:
  Bpe(const TokenizerSpec& spec, size_t tokens) : ids_(&spec.tokens, tokens), merges_(spec.merges.size()) {}
  void MergeShort(std::string_view piece, Scratch* scratch, std::vector<uint32_t>* out) const;
  void MergeLong(std::string_view piece, Scratch* scratch, std::vector<uint32_t>* out) const;
  void MarkWholePieces(const TokenizerSpec& spec);

  BytesToId ids_;  // ordinary tokens only, so that no text yields a special token
  MergeTable merges_;
  std::array<uint32_t, 256> byte_ids_{};
  std::vector<bool> whole_;  // by id: a piece of just these bytes is this one token
};

}  // namespace agentserve::text
