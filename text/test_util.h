// Shared by the tests, benches and fuzzers of text/.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "base/rng.h"
#include "text/utf8.h"

namespace agentserve::text {

// Folder of test data that is not part of the repository; AGENTSERVE_SHARED_DATA overrides the place.
inline std::string SharedData(const std::string& name) {
  const char* dir = std::getenv("AGENTSERVE_SHARED_DATA");
  if (dir != nullptr) return std::string(dir) + "/" + name;
  const char* source = std::getenv("AGENTSERVE_SOURCE");
  return (source != nullptr ? std::string(source) + "/" : std::string()) + "../shared/data/" + name;
}
inline bool Exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}
inline std::string TestData(const std::string& name) {
  const char* source = std::getenv("AGENTSERVE_SOURCE");
  return (source != nullptr ? std::string(source) : std::string(".")) + "/text/testdata/" + name;
}
inline std::string Slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream all;
  all << in.rdbuf();
  return all.str();
}

// Random valid UTF-8 that favours what splits and merges oddly. The same for the same generator state.
inline std::string RandomText(base::SplitMix64* rng, size_t most_pieces) {
  static const std::vector<std::string> kPieces = {" ",
                                                   "  ",
                                                   "\n",
                                                   "\r\n",
                                                   "\t",
                                                   "\n\n ",
                                                   "'s",
                                                   "'LL",
                                                   "'\xC5\xBF",
                                                   "'",
                                                   "the",
                                                   " The",
                                                   "ing",
                                                   "1",
                                                   "2024",
                                                   "12345",
                                                   "{\"name\": ",
                                                   "\"}",
                                                   "<|eot_id|>",
                                                   "<|",
                                                   "|>",
                                                   "\xC2\xA0",
                                                   "\xC2\x85",
                                                   "\xE1\xA0\x8E",
                                                   "\xE3\x80\x80",
                                                   "\xEF\xBB\xBF",
                                                   "\xE2\x80\x8B",
                                                   "\xC2\xBD",
                                                   "\xC3\xA9",
                                                   "e\xCC\x81",
                                                   "\xF0\x9F\x91\x8D\xF0\x9F\x8F\xBD",
                                                   "\xE6\x9D\xB1\xE4\xBA\xAC",
                                                   "\xD0\xBF\xD1\x80\xD0\xB8",
                                                   "\xD7\xA9",
                                                   "...",
                                                   "!!",
                                                   "#",
                                                   "_",
                                                   "-",
                                                   std::string("\0", 1),
                                                   "\x1c",
                                                   "\x7f",
                                                   "\xEF\xBF\xBD"};
  std::string text;
  const uint64_t pieces = rng->Below(most_pieces + 1);
  for (uint64_t i = 0; i < pieces; ++i) {
    const uint64_t kind = rng->Below(20);
    if (kind < 12) {
      text += kPieces[rng->Below(kPieces.size())];
    } else if (kind < 16) {
      text.push_back(static_cast<char>(rng->Below(128)));
    } else if (kind < 19) {
      uint32_t c = static_cast<uint32_t>(rng->Below(kind == 16 ? 0x3000 : 0x110000));
      if (c >= 0xD800 && c < 0xE000) c = 0x41;
      AppendUtf8(c, &text);
    } else {
      text += std::string(rng->Below(60), static_cast<char>('a' + rng->Below(4)));
    }
  }
  return text;
}

}  // namespace agentserve::text
