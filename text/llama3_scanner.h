// Hand-written scanner for the split pattern of Llama 3: one pass, no backtracking, no limits. Internal to text/.
// The test compares it with PCRE2 running the pattern itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace agentserve::text {

enum class CharClass : uint8_t { kOther = 0, kLetter = 1, kNumber = 2, kSpace = 3 };

// \p{L}, \p{N}, White_Space (Unicode 14), anything else. `code_point` < 0x110000.
CharClass ClassOf(uint32_t code_point);

// End of the piece that starts at `pos` (< text.size()); `text` is valid UTF-8 and pos at a character.
size_t Llama3PieceEnd(std::string_view text, size_t pos);

}  // namespace agentserve::text
