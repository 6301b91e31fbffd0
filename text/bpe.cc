#include "text/bpe.h"

#include <algorithm>
#include <cstdio>

#include "base/strings.h"
#include "text/json_value.h"

namespace agentserve::text {
namespace {

// Up to here scanning all pairs for the lowest rank is faster than a heap (see text_bench).
constexpr size_t kShortPiece = 48;

std::vector<bool> SpecialFlags(const TokenizerSpec& spec) {
  std::vector<bool> special(spec.tokens.size(), false);
  for (const AddedToken& token : spec.added) {
    if (token.special) special[token.id] = true;
  }
  return special;
}

}  // namespace

absl::StatusOr<Bpe> Bpe::Create(const TokenizerSpec& spec, const std::string& origin) {
  const std::vector<bool> special = SpecialFlags(spec);
  Bpe bpe(spec, spec.tokens.size());
  for (uint32_t id = 0; id < spec.tokens.size(); ++id) {
    if (!spec.tokens.has(id) || special[id]) continue;
    if (!bpe.ids_.Insert(id)) {
      return absl::InvalidArgumentError(
          base::StrCat(origin, ": model.vocab: id ", id, " and id ", bpe.ids_.Find(spec.tokens.bytes(id)), " are both ",
                       QuoteForError(spec.tokens.bytes(id)), "; each token must be unique"));
    }
  }
  for (size_t b = 0; b < 256; ++b) {
    const char byte = static_cast<char>(b);
    bpe.byte_ids_[b] = bpe.ids_.Find(std::string_view(&byte, 1));
    if (bpe.byte_ids_[b] == kNoToken) {
      char hex[8];
      std::snprintf(hex, sizeof(hex), "0x%02x", static_cast<unsigned>(b));
      return absl::InvalidArgumentError(
          base::StrCat(origin, ": model.vocab: no token for the byte ", hex,
                       "; a byte-level vocabulary needs all 256 (train with the whole byte alphabet)"));
    }
  }
  for (size_t i = 0; i < spec.merges.size(); ++i) {
    const Merge& m = spec.merges[i];
    // A special token must not arise from text.
    if (special[m.result] || special[m.left] || special[m.right]) continue;
    if (!bpe.merges_.Insert(m)) {
      return absl::InvalidArgumentError(base::StrCat(origin, ": model.merges[", i, "]: the pair ",
                                                     QuoteForError(spec.tokens.bytes(m.left)), " ",
                                                     QuoteForError(spec.tokens.bytes(m.right)), " is merged twice"));
    }
  }
  bpe.MarkWholePieces(spec);
  return bpe;
}

void Bpe::MarkWholePieces(const TokenizerSpec& spec) {
  whole_.assign(spec.tokens.size(), spec.ignore_merges);
  if (spec.ignore_merges) return;
  // Without ignore_merges a token is taken whole exactly if its own merges lead to it; found out once, here.
  Scratch scratch;
  std::vector<uint32_t> ids;
  for (uint32_t id = 0; id < spec.tokens.size(); ++id) {
    if (!spec.tokens.has(id) || ids_.Find(spec.tokens.bytes(id)) != id) continue;
    ids.clear();
    MergeLong(spec.tokens.bytes(id), &scratch, &ids);
    whole_[id] = ids.size() == 1 && ids[0] == id;
  }
}

void Bpe::Encode(std::string_view piece, Scratch* scratch, std::vector<uint32_t>* out) const {
  if (piece.empty()) return;
  const uint32_t id = ids_.Find(piece);
  if (id != kNoToken && whole_[id]) {
    out->push_back(id);
  } else if (piece.size() <= kShortPiece) {
    MergeShort(piece, scratch, out);
  } else {
    MergeLong(piece, scratch, out);
  }
}

void Bpe::MergeShort(std::string_view piece, Scratch*, std::vector<uint32_t>* out) const {
  struct Part {
    uint32_t id;
    MergeTable::Hit pair;  // with the next part
  };
  std::array<Part, kShortPiece> parts;
  size_t n = piece.size();
  for (size_t i = 0; i < n; ++i) parts[i].id = byte_ids_[static_cast<uint8_t>(piece[i])];
  for (size_t i = 0; i + 1 < n; ++i) parts[i].pair = merges_.Find(parts[i].id, parts[i + 1].id);
  parts[n - 1].pair = {};
  while (true) {
    size_t best = 0;
    for (size_t i = 1; i < n; ++i) {
      if (parts[i].pair.rank < parts[best].pair.rank) best = i;
    }
    if (parts[best].pair.rank == UINT32_MAX) break;
    parts[best].id = parts[best].pair.result;
    std::copy(parts.begin() + static_cast<std::ptrdiff_t>(best) + 2, parts.begin() + static_cast<std::ptrdiff_t>(n),
              parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    --n;
    parts[best].pair = best + 1 < n ? merges_.Find(parts[best].id, parts[best + 1].id) : MergeTable::Hit{};
    if (best > 0) parts[best - 1].pair = merges_.Find(parts[best - 1].id, parts[best].id);
  }
  for (size_t i = 0; i < n; ++i) out->push_back(parts[i].id);
}

void Bpe::MergeLong(std::string_view piece, Scratch* scratch, std::vector<uint32_t>* out) const {
  using Candidate = Scratch::Candidate;
  auto& symbols = scratch->symbols;
  auto& heap = scratch->heap;
  symbols.clear();
  heap.clear();
  const auto n = static_cast<int32_t>(piece.size());
  for (int32_t i = 0; i < n; ++i) {
    symbols.push_back({byte_ids_[static_cast<uint8_t>(piece[static_cast<size_t>(i)])], i - 1, i + 1 < n ? i + 1 : -1});
  }
  // Lowest rank on top, then leftmost.
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.pos > b.pos;
  };
  const auto candidate = [&](int32_t pos) -> Candidate {
    const auto& s = symbols[static_cast<size_t>(pos)];
    if (s.next < 0) return {UINT32_MAX, pos, 0, 0};
    const uint32_t right = symbols[static_cast<size_t>(s.next)].id;
    return {merges_.Find(s.id, right).rank, pos, s.id, right};
  };
  for (int32_t i = 0; i + 1 < n; ++i) {
    if (const Candidate c = candidate(i); c.rank != UINT32_MAX) heap.push_back(c);
  }
  std::make_heap(heap.begin(), heap.end(), later);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Candidate c = heap.back();
    heap.pop_back();
    auto& left = symbols[static_cast<size_t>(c.pos)];
    if (left.id != c.left || left.next < 0) continue;  // consumed or grown since
    auto& right = symbols[static_cast<size_t>(left.next)];
    if (right.id != c.right) continue;
    left.id = merges_.Find(c.left, c.right).result;
    right.id = kNoToken;  // stale candidates at its position no longer match
    left.next = right.next;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].prev = c.pos;
    for (const int32_t pos : {left.prev, c.pos}) {
      if (pos < 0) continue;
      if (const Candidate fresh = candidate(pos); fresh.rank != UINT32_MAX) {
        heap.push_back(fresh);
        std::push_heap(heap.begin(), heap.end(), later);
      }
    }
  }
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    out->push_back(symbols[static_cast<size_t>(i)].id);
  }
}

}  // namespace agentserve::text
