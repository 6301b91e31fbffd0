#include "text/tokenizer.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <unordered_map>

#include "base/hash.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "text/bpe.h"
#include "text/json_value.h"
#include "text/pretokenizer.h"
#include "text/tokenizer_spec.h"
#include "text/utf8.h"

namespace agentserve::text {
namespace {

// The largest published tokenizer.json files have about 35 MB.
constexpr uint64_t kMaxTokenizerFileBytes = 256u << 20;
constexpr uint64_t kMaxConfigFileBytes = 16u << 20;

// Finds the longest added token at a position; a byte trie with sorted edges.
class AddedTokenTrie {
 public:
  AddedTokenTrie() { nodes_.emplace_back(); }

  void Add(const std::string& content, uint32_t id) {
    first_byte_[static_cast<uint8_t>(content[0])] = true;
    size_t node = 0;
    for (const char c : content) {
      const auto byte = static_cast<uint8_t>(c);
      const auto it = nodes_[node].edges.find(byte);
      if (it != nodes_[node].edges.end()) {
        node = it->second;
        continue;
      }
      const size_t next = nodes_.size();
      nodes_[node].edges.emplace(byte, next);
      nodes_.emplace_back();
      node = next;
    }
    nodes_[node].id = id;
  }

  // Leftmost, then longest, match at or behind `from`. False if there is none.
  bool Find(std::string_view text, size_t from, size_t* begin, size_t* end, uint32_t* id) const {
    for (size_t i = from; i < text.size(); ++i) {
      if (!first_byte_[static_cast<uint8_t>(text[i])]) continue;
      size_t node = 0;
      bool found = false;
      for (size_t j = i; j < text.size(); ++j) {
        const auto it = nodes_[node].edges.find(static_cast<uint8_t>(text[j]));
        if (it == nodes_[node].edges.end()) break;
        node = it->second;
        if (nodes_[node].id == kNoToken) continue;
        *begin = i;
        *end = j + 1;
        *id = nodes_[node].id;
        found = true;
      }
      if (found) return true;
    }
    return false;
  }
  bool empty() const { return nodes_.size() == 1; }

 private:
  struct Node {
    std::unordered_map<uint8_t, size_t> edges;
    uint32_t id = kNoToken;
  };
  std::vector<Node> nodes_;
  std::array<bool, 256> first_byte_{};
};

}  // namespace

struct Tokenizer::Impl {
  Impl(TokenizerSpec spec_in) : spec(std::move(spec_in)) {}

  void EncodeOrdinary(std::string_view text, Bpe::Scratch* scratch, std::vector<uint32_t>* out) const {
    PieceReader reader(*pre, text);
    std::string_view piece;
    while (reader.Next(&piece)) bpe->Encode(piece, scratch, out);
  }

  std::vector<uint32_t> Encode(std::string_view text, const AddedTokenTrie& trie) const {
    std::string repaired;
    if (!IsValidUtf8(text)) {
      repaired = ToValidUtf8(text);
      text = repaired;
    }
    std::vector<uint32_t> ids;
    ids.reserve(text.size() / 3);
    Bpe::Scratch scratch;
    size_t pos = 0, begin = 0, end = 0;
    uint32_t id = 0;
    while (!trie.empty() && trie.Find(text, pos, &begin, &end, &id)) {
      EncodeOrdinary(text.substr(pos, begin - pos), &scratch, &ids);
      ids.push_back(id);
      pos = end;
    }
    EncodeOrdinary(text.substr(pos), &scratch, &ids);
    return ids;
  }

  TokenizerSpec spec;
  std::optional<Bpe> bpe;
  std::unique_ptr<PreTokenizer> pre;
  std::vector<bool> special;      // by id
  AddedTokenTrie all_added;       // special or not
  AddedTokenTrie ordinary_added;  // not special
  std::unordered_map<std::string, uint32_t> added_ids;
  std::optional<uint32_t> bos;
  std::string hash;
};

namespace {

// Name of the begin-of-text token in tokenizer_config.json: a string, or an object with "content". "" if not set.
absl::StatusOr<std::string> ConfiguredBos(const std::string& path) {
  AS_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxConfigFileBytes));
  AS_ASSIGN_OR_RETURN(const JsonValue root, ParseJson(text, path));
  const JsonValue* bos = root.Find("bos_token");
  if (bos != nullptr && bos->is_object()) bos = bos->Find("content");
  if (bos == nullptr || bos->is_null()) return std::string();
  if (!bos->is_string()) {
    return absl::InvalidArgumentError(base::StrCat(path, ": bos_token: is ", bos->KindName(), ", not a string"));
  }
  return bos->string;
}

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Build(absl::StatusOr<TokenizerSpec> spec, std::string_view file,
                                                            const std::string& origin) {
  AS_RETURN_IF_ERROR(spec.status());
  auto impl = std::make_unique<Impl>(*std::move(spec));
  AS_ASSIGN_OR_RETURN(Bpe bpe, Bpe::Create(impl->spec, origin));
  impl->bpe = std::move(bpe);
  AS_ASSIGN_OR_RETURN(impl->pre, PreTokenizer::Create(impl->spec.pattern, origin + ": pre_tokenizer pattern"));
  impl->special.assign(impl->spec.tokens.size(), false);
  for (const AddedToken& token : impl->spec.added) {
    impl->added_ids.emplace(token.content, token.id);
    impl->all_added.Add(token.content, token.id);
    if (token.special) {
      impl->special[token.id] = true;
    } else {
      impl->ordinary_added.Add(token.content, token.id);
    }
  }
  impl->hash = base::Sha256Hex(file);
  if (const auto it = impl->added_ids.find("<|begin_of_text|>"); it != impl->added_ids.end()) impl->bos = it->second;
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(impl)));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(std::string_view json, const std::string& origin) {
  return Build(ParseTokenizerJson(json, origin), json, origin);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromTiktoken(std::string_view lines, const std::string& origin) {
  return Build(ParseTiktoken(lines, origin), lines, origin);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& model_dir) {
  const std::filesystem::path dir(model_dir);
  std::error_code ignored;
  std::string path = (dir / "tokenizer.json").string();
  const bool json = std::filesystem::exists(path, ignored);
  if (!json) path = (dir / "tokenizer.model").string();
  if (!json && !std::filesystem::exists(path, ignored)) {
    return absl::NotFoundError(base::StrCat(model_dir,
                                            ": neither tokenizer.json nor tokenizer.model is there; point to a "
                                            "folder in Hugging Face layout"));
  }
  AS_ASSIGN_OR_RETURN(const std::string data, ReadFile(path, kMaxTokenizerFileBytes));
  AS_ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer, json ? FromJson(data, path) : FromTiktoken(data, path));
  const std::string config = (dir / "tokenizer_config.json").string();
  if (std::filesystem::exists(config, ignored)) {
    AS_ASSIGN_OR_RETURN(const std::string name, ConfiguredBos(config));
    if (!name.empty()) {
      tokenizer->impl_->bos = tokenizer->SpecialId(name);
      if (!tokenizer->impl_->bos) {
        return absl::InvalidArgumentError(
            base::StrCat(config, ": bos_token: ", QuoteForError(name), " is not among the added tokens of ", path));
      }
    }
  }
  return tokenizer;
}

std::vector<uint32_t> Tokenizer::Encode(std::string_view text) const {
  return impl_->Encode(text, impl_->ordinary_added);
}

std::vector<uint32_t> Tokenizer::EncodeParsingSpecials(std::string_view text) const {
  return impl_->Encode(text, impl_->all_added);
}

std::string Tokenizer::Decode(std::span<const uint32_t> ids, bool skip_special) const {
  std::string out;
  out.reserve(ids.size() * 4);
  Utf8Sanitizer sanitizer;
  for (const uint32_t id : ids) {
    if (!skip_special || !IsSpecial(id)) sanitizer.Push(TokenBytes(id), &out);
  }
  sanitizer.Finish(&out);
  return out;
}

std::string_view Tokenizer::TokenBytes(uint32_t id) const {
  return impl_->spec.tokens.has(id) ? impl_->spec.tokens.bytes(id) : std::string_view();
}

bool Tokenizer::IsSpecial(uint32_t id) const { return id < impl_->special.size() && impl_->special[id]; }

std::optional<uint32_t> Tokenizer::SpecialId(std::string_view content) const {
  const auto it = impl_->added_ids.find(std::string(content));
  if (it == impl_->added_ids.end()) return std::nullopt;
  return it->second;
}

uint32_t Tokenizer::vocab_size() const { return impl_->spec.tokens.size(); }
std::optional<uint32_t> Tokenizer::bos() const { return impl_->bos; }
const std::string& Tokenizer::hash() const { return impl_->hash; }
const std::vector<AddedToken>& Tokenizer::added_tokens() const { return impl_->spec.added; }

}  // namespace agentserve::text
