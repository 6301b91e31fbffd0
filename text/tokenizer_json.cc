// tokenizer.json of Hugging Face: a SAX reader that takes the two large parts (vocab, merges) directly into flat
// buffers and everything else into a small tree.
#include <array>
#include <limits>
#include <optional>
#include <unordered_map>

#include "base/status_macros.h"
#include "base/strings.h"
#include "text/byte_lookup.h"
#include "text/json_builder.h"
#include "text/tokenizer_spec.h"
#include "text/utf8.h"

namespace agentserve::text {

const char kLlama3Pattern[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const char kGpt2Pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

bool TokenTable::Add(uint32_t id, std::string_view bytes) {
  if (id >= entries_.size()) entries_.resize(id + 1);
  Entry& e = entries_[id];
  if (e.used) return false;
  e = {static_cast<uint32_t>(arena_.size()), static_cast<uint32_t>(bytes.size()) & 0x7FFFFFFFu, 1};
  arena_.append(bytes);
  return true;
}

void TokenTable::Reserve(size_t tokens, size_t bytes) {
  entries_.reserve(tokens);
  arena_.reserve(bytes);
}

namespace {

using base::StrCat;

// GPT-2's byte alphabet: printable Latin-1 bytes stand for themselves, the other 68 are U+0100, U+0101, .. in order.
// Code point -> byte, or -1.
constexpr size_t kAlphabetEnd = 0x100 + 68;
constexpr std::array<int16_t, kAlphabetEnd> kByteOf = [] {
  std::array<int16_t, kAlphabetEnd> t{};
  t.fill(-1);
  size_t shifted = 0x100;
  for (size_t b = 0; b < 256; ++b) {
    const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    t[printable ? b : shifted++] = static_cast<int16_t>(b);
  }
  return t;
}();

// Appends the bytes that `token` (valid UTF-8) spells in the byte alphabet; false if a character is not in it.
bool AppendFromAlphabet(std::string_view token, std::string* out) {
  size_t pos = 0;
  while (pos < token.size()) {
    const auto first = static_cast<uint8_t>(token[pos]);
    uint32_t c = first;
    if (first < 0x80) {
      ++pos;
    } else {
      c = NextCodePoint(token, &pos);
    }
    if (c >= kAlphabetEnd || kByteOf[c] < 0) return false;
    out->push_back(static_cast<char>(kByteOf[c]));
  }
  return true;
}

// Pieces of merges as byte strings, left and right side by side in one buffer.
struct RawMerge {
  size_t offset;
  uint32_t left_bytes, right_bytes;
};

class TokenizerJsonReader : public JsonBuilder {
 public:
  bool start_object(size_t n) override {
    if (mode_ != Mode::kTree) return WrongType("an object");
    if (InModelMember("vocab")) {
      if (vocab_seen_) return Fail("model.vocab: given twice");
      vocab_seen_ = true;
      mode_ = Mode::kVocab;
      return true;
    }
    return JsonBuilder::start_object(n);
  }
  bool start_array(size_t n) override {
    if (mode_ == Mode::kMerges && pair_at_ < 0) {
      pair_at_ = 0;
      return true;
    }
    if (mode_ != Mode::kTree) return WrongType("an array");
    if (InModelMember("merges")) {
      if (merges_seen_) return Fail("model.merges: given twice");
      merges_seen_ = true;
      mode_ = Mode::kMerges;
      return true;
    }
    return JsonBuilder::start_array(n);
  }
  bool end_object() override {
    if (mode_ == Mode::kVocab) {
      mode_ = Mode::kTree;
      return JsonBuilder::null();  // keeps the member's place
    }
    return JsonBuilder::end_object();
  }
  bool end_array() override {
    if (mode_ != Mode::kMerges) return JsonBuilder::end_array();
    if (pair_at_ < 0) {
      mode_ = Mode::kTree;
      return JsonBuilder::null();
    }
    if (pair_at_ != 2) return Fail(StrCat(MergeField(), ": ", pair_at_, " parts; a merge has two"));
    pair_at_ = -1;
    return true;
  }
  bool key(std::string& k) override {
    if (mode_ != Mode::kVocab) return JsonBuilder::key(k);
    token_ = std::move(k);
    return true;
  }
  bool number_unsigned(uint64_t v) override {
    if (mode_ == Mode::kTree) return JsonBuilder::number_unsigned(v);
    if (mode_ == Mode::kMerges) return WrongType("a number");
    return AddToken(v);
  }
  bool string(std::string& v) override {
    if (mode_ == Mode::kTree) return JsonBuilder::string(v);
    if (mode_ == Mode::kVocab) return WrongType("a string");
    return pair_at_ < 0 ? AddMergeText(v) : AddMergePart(v);
  }
  bool null() override { return mode_ == Mode::kTree ? JsonBuilder::null() : WrongType("null"); }
  bool boolean(bool v) override { return mode_ == Mode::kTree ? JsonBuilder::boolean(v) : WrongType("a boolean"); }
  bool number_integer(int64_t v) override {
    return mode_ == Mode::kTree ? JsonBuilder::number_integer(v) : WrongType("a negative number");
  }
  bool number_float(double v, const std::string& s) override {
    return mode_ == Mode::kTree ? JsonBuilder::number_float(v, s) : WrongType("a fraction or huge number");
  }
  bool parse_error(size_t position, const std::string& token, const nlohmann::json::exception& e) override {
    if (!JsonBuilder::error().empty()) return false;
    JsonBuilder::parse_error(position, token, e);
    if (mode_ == Mode::kVocab)
      return Fail(StrCat("model.vocab: ", JsonBuilder::error(), "; behind ", QuoteForError(token_)));
    if (mode_ == Mode::kMerges) return Fail(StrCat(MergeField(), ": ", JsonBuilder::error()));
    return false;
  }

  bool vocab_seen() const { return vocab_seen_; }
  bool merges_seen() const { return merges_seen_; }
  TokenTable& tokens() { return tokens_; }
  // Tokens that are not spelled in the byte alphabet; only added tokens may be.
  const std::unordered_map<uint32_t, std::string>& foreign() const { return foreign_; }
  const std::vector<RawMerge>& merges() const { return merges_; }
  const std::string& merge_bytes() const { return merge_bytes_; }

 private:
  enum class Mode { kTree, kVocab, kMerges };

  bool InModelMember(const char* name) const { return depth() == 2 && key_at(0) == "model" && key_at(1) == name; }
  std::string MergeField() const { return StrCat("model.merges[", merges_.size(), "]"); }
  bool WrongType(const char* found) {
    if (mode_ == Mode::kVocab)
      return Fail(StrCat("model.vocab: ", QuoteForError(token_), " is ", found, ", not an id"));
    return Fail(StrCat(MergeField(), ": ", found, "; expected \"left right\" or [\"left\", \"right\"]"));
  }

  bool AddToken(uint64_t id) {
    if (id > kMaxTokenId) {
      return Fail(StrCat("model.vocab: id ", id, " of ", QuoteForError(token_), " is above the limit ", kMaxTokenId));
    }
    if (token_.empty()) return Fail(StrCat("model.vocab: id ", id, " is an empty token"));
    bytes_.clear();
    const auto id32 = static_cast<uint32_t>(id);
    if (!AppendFromAlphabet(token_, &bytes_)) {
      foreign_.emplace(id32, token_);
      bytes_ = token_;
    }
    if (!tokens_.Add(id32, bytes_)) {
      return Fail(StrCat("model.vocab: id ", id, " is given to ", QuoteForError(token_), " and to another token"));
    }
    return true;
  }

  bool AddMergeText(const std::string& text) {
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
      return Fail(StrCat(MergeField(), ": ", QuoteForError(text), " is not two tokens with one space between"));
    }
    const std::string_view view = text;
    return AddMerge(view.substr(0, space), view.substr(space + 1));
  }

  bool AddMergePart(std::string& part) {
    if (pair_at_ == 2) return Fail(StrCat(MergeField(), ": more than two parts"));
    if (pair_at_++ == 0) {
      left_ = std::move(part);
      return true;
    }
    return AddMerge(left_, part);
  }

  bool AddMerge(std::string_view left, std::string_view right) {
    // An empty part would make a merge that leads back to itself.
    if (left.empty() || right.empty()) return Fail(StrCat(MergeField(), ": an empty part"));
    const size_t start = merge_bytes_.size();
    const bool left_ok = AppendFromAlphabet(left, &merge_bytes_);
    const size_t middle = merge_bytes_.size();
    if (!left_ok || !AppendFromAlphabet(right, &merge_bytes_)) {
      return Fail(StrCat(MergeField(), ": ", QuoteForError(left_ok ? right : left),
                         " has characters outside of the byte-level alphabet"));
    }
    merges_.push_back(
        {start, static_cast<uint32_t>(middle - start), static_cast<uint32_t>(merge_bytes_.size() - middle)});
    return true;
  }

  Mode mode_ = Mode::kTree;
  bool vocab_seen_ = false, merges_seen_ = false;
  std::string token_, left_, bytes_;
  int pair_at_ = -1;  // parts read of a merge given as array; -1 outside of one
  TokenTable tokens_;
  std::unordered_map<uint32_t, std::string> foreign_;
  std::vector<RawMerge> merges_;
  std::string merge_bytes_;
};

absl::Status Invalid(const std::string& message) { return absl::InvalidArgumentError(message); }
absl::Status Unsupported(const std::string& message) { return absl::UnimplementedError(message); }

// Type of a component {"type": "..."}; "" for null or absent.
absl::StatusOr<std::string> TypeOf(const JsonValue* v, const std::string& field) {
  if (v == nullptr || v->is_null()) return std::string();
  const JsonValue* type = v->Find("type");
  if (type == nullptr || !type->is_string()) return Invalid(StrCat(field, ".type: missing or not a string"));
  return type->string;
}

bool IsTrue(const JsonValue& object, std::string_view key) {
  const JsonValue* v = object.Find(key);
  return v != nullptr && v->kind == JsonValue::Kind::kBool && v->boolean;
}

// null, absent, false, 0 or "": a setting that is off.
bool IsOff(const JsonValue* v) {
  if (v == nullptr || v->is_null()) return true;
  if (v->kind == JsonValue::Kind::kBool) return !v->boolean;
  if (v->is_string()) return v->string.empty();
  return (v->kind == JsonValue::Kind::kInt || v->kind == JsonValue::Kind::kFloat) && v->number == 0;
}

absl::Status CheckModel(const JsonValue& model, const std::string& origin, TokenizerSpec* spec) {
  const JsonValue* type = model.Find("type");
  if (type != nullptr && (!type->is_string() || type->string != "BPE")) {
    return Unsupported(StrCat(origin, ": model.type: only \"BPE\" is supported",
                              type->is_string() ? ", found " + QuoteForError(type->string) : ""));
  }
  for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "unk_token"}) {
    if (!IsOff(model.Find(key))) {
      return Unsupported(StrCat(origin, ": model.", key, ": must be off (null) for a byte-level BPE tokenizer"));
    }
  }
  spec->ignore_merges = IsTrue(model, "ignore_merges");
  return absl::OkStatus();
}

absl::Status ReadSplit(const JsonValue& split, const std::string& field, TokenizerSpec* spec) {
  const JsonValue* pattern = split.Find("pattern");
  const JsonValue* regex = pattern == nullptr ? nullptr : pattern->Find("Regex");
  if (regex == nullptr || !regex->is_string()) return Invalid(StrCat(field, ".pattern.Regex: missing or not a string"));
  const JsonValue* behavior = split.Find("behavior");
  if (behavior == nullptr || !behavior->is_string() || behavior->string != "Isolated") {
    return Unsupported(StrCat(field, ".behavior: only \"Isolated\" is supported"));
  }
  if (!spec->pattern.empty()) return Unsupported(StrCat(field, ": only one Split is supported"));
  spec->pattern = regex->string;
  return absl::OkStatus();
}

absl::Status ReadByteLevel(const JsonValue& level, const std::string& field, TokenizerSpec* spec) {
  if (IsTrue(level, "add_prefix_space")) return Unsupported(StrCat(field, ".add_prefix_space: must be false"));
  const JsonValue* use_regex = level.Find("use_regex");
  if (use_regex != nullptr && IsOff(use_regex)) return absl::OkStatus();
  if (!spec->pattern.empty()) return Unsupported(StrCat(field, ".use_regex: must be false behind a Split"));
  spec->pattern = kGpt2Pattern;
  return absl::OkStatus();
}

absl::Status ReadPreTokenizer(const JsonValue& root, const std::string& origin, TokenizerSpec* spec) {
  const std::string field = origin + ": pre_tokenizer";
  const JsonValue* pre = root.Find("pre_tokenizer");
  AS_ASSIGN_OR_RETURN(const std::string type, TypeOf(pre, field));
  if (type.empty()) return Invalid(StrCat(field, ": missing; expected Sequence[Split, ByteLevel] or ByteLevel"));
  if (type == "ByteLevel") {
    AS_RETURN_IF_ERROR(ReadByteLevel(*pre, field, spec));
  } else if (type == "Sequence") {
    const JsonValue* steps = pre->Find("pretokenizers");
    if (steps == nullptr || !steps->is_array())
      return Invalid(StrCat(field, ".pretokenizers: missing or not an array"));
    bool byte_level = false;
    for (size_t i = 0; i < steps->items.size(); ++i) {
      const std::string step_field = StrCat(field, ".pretokenizers[", i, "]");
      AS_ASSIGN_OR_RETURN(const std::string step, TypeOf(&steps->items[i], step_field));
      if (byte_level) return Unsupported(StrCat(step_field, ": nothing may follow ByteLevel"));
      if (step == "Split") {
        AS_RETURN_IF_ERROR(ReadSplit(steps->items[i], step_field, spec));
      } else if (step == "ByteLevel") {
        AS_RETURN_IF_ERROR(ReadByteLevel(steps->items[i], step_field, spec));
        byte_level = true;
      } else {
        return Unsupported(
            StrCat(step_field, ".type: ", QuoteForError(step), " is not supported (Split, ByteLevel are)"));
      }
    }
    if (!byte_level)
      return Unsupported(StrCat(field, ".pretokenizers: no ByteLevel; only byte-level BPE is supported"));
  } else {
    return Unsupported(StrCat(field, ".type: ", QuoteForError(type), " is not supported (Sequence, ByteLevel are)"));
  }
  if (spec->pattern.empty()) return Unsupported(StrCat(field, ": neither a Split nor ByteLevel with use_regex"));
  return absl::OkStatus();
}

absl::Status CheckPipeline(const JsonValue& root, const std::string& origin) {
  const JsonValue* normalizer = root.Find("normalizer");
  const absl::StatusOr<std::string> type_or = TypeOf(normalizer, origin + ": normalizer");
  AS_RETURN_IF_ERROR(type_or.status());
  const std::string_view type = *type_or;
  const JsonValue* parts = type == "Sequence" ? normalizer->Find("normalizers") : nullptr;
  if (!type.empty() && (parts == nullptr || !parts->items.empty())) {
    return Unsupported(StrCat(origin, ": normalizer: ", QuoteForError(type), " is not supported; must be null"));
  }
  AS_ASSIGN_OR_RETURN(const std::string decoder, TypeOf(root.Find("decoder"), origin + ": decoder"));
  if (!decoder.empty() && decoder != "ByteLevel") {
    return Unsupported(
        StrCat(origin, ": decoder.type: ", QuoteForError(decoder), " is not supported; must be ByteLevel"));
  }
  return absl::OkStatus();
}

absl::Status ReadAddedToken(const JsonValue& v, const std::string& field, TokenizerJsonReader* reader,
                            TokenizerSpec* spec) {
  AddedToken token;
  uint64_t id = 0;
  const JsonValue* id_value = v.Find("id");
  if (id_value == nullptr || !id_value->GetUint(kMaxTokenId, &id)) {
    return Invalid(StrCat(field, ".id: missing or not an integer of 0 to ", kMaxTokenId));
  }
  const JsonValue* content = v.Find("content");
  if (content == nullptr || !content->is_string() || content->string.empty()) {
    return Invalid(StrCat(field, ".content: missing, empty or not a string"));
  }
  for (const char* key : {"single_word", "lstrip", "rstrip"}) {
    if (IsTrue(v, key)) return Unsupported(StrCat(field, ".", key, ": must be false"));
  }
  token.id = static_cast<uint32_t>(id);
  token.content = content->string;
  token.special = IsTrue(v, "special");
  TokenTable& tokens = reader->tokens();
  if (tokens.has(token.id)) {
    // A trainer may list its special tokens in the vocabulary too; then both must agree.
    const auto foreign = reader->foreign().find(token.id);
    const std::string_view known = foreign != reader->foreign().end() ? foreign->second : tokens.bytes(token.id);
    std::string spelled;
    const bool same = known == token.content || (AppendFromAlphabet(token.content, &spelled) && known == spelled);
    if (!same) {
      return Invalid(StrCat(field, ".id: ", token.id, " is ", QuoteForError(known), " already, cannot be ",
                            QuoteForError(token.content)));
    }
  } else {
    tokens.Add(token.id, token.content);
  }
  spec->added.push_back(std::move(token));
  return absl::OkStatus();
}

absl::Status ReadAddedTokens(const JsonValue& root, const std::string& origin, TokenizerJsonReader* reader,
                             TokenizerSpec* spec) {
  const JsonValue* added = root.Find("added_tokens");
  if (added != nullptr && !added->is_null() && !added->is_array()) {
    return Invalid(StrCat(origin, ": added_tokens: not an array"));
  }
  std::unordered_map<uint32_t, size_t> ids;
  std::unordered_map<std::string, size_t> contents;
  const size_t count = added == nullptr ? 0 : added->items.size();
  for (size_t i = 0; i < count; ++i) {
    const std::string field = StrCat(origin, ": added_tokens[", i, "]");
    AS_RETURN_IF_ERROR(ReadAddedToken(added->items[i], field, reader, spec));
    const AddedToken& token = spec->added.back();
    const auto same_id = ids.emplace(token.id, i);
    if (!same_id.second)
      return Invalid(StrCat(field, ".id: ", token.id, " is that of entry ", same_id.first->second, " too"));
    const auto same_content = contents.emplace(token.content, i);
    if (!same_content.second) {
      return Invalid(StrCat(field, ".content: ", QuoteForError(token.content), " is that of entry ",
                            same_content.first->second, " too"));
    }
  }
  for (const auto& [id, token] : reader->foreign()) {
    if (!ids.contains(id)) {
      return Invalid(StrCat(origin, ": model.vocab: ", QuoteForError(token), " (id ", id,
                            ") has characters outside of the byte-level alphabet and is no added token"));
    }
  }
  return absl::OkStatus();
}

// Turns byte strings into ids.
absl::Status ResolveMerges(const TokenizerJsonReader& reader, const std::string& origin, TokenizerSpec* spec) {
  const TokenTable& tokens = spec->tokens;
  BytesToId ids(&tokens, tokens.size());
  for (uint32_t id = 0; id < tokens.size(); ++id) {
    if (tokens.has(id)) ids.Insert(id);  // equal ones are refused later, with a better message
  }
  const std::string_view bytes = reader.merge_bytes();
  spec->merges.reserve(reader.merges().size());
  for (const RawMerge& raw : reader.merges()) {
    const auto rank = static_cast<uint32_t>(spec->merges.size());
    const std::string_view parts[3] = {bytes.substr(raw.offset, raw.left_bytes),
                                       bytes.substr(raw.offset + raw.left_bytes, raw.right_bytes),
                                       bytes.substr(raw.offset, size_t{raw.left_bytes} + raw.right_bytes)};
    const Merge merge{ids.Find(parts[0]), ids.Find(parts[1]), rank, ids.Find(parts[2])};
    const uint32_t found[3] = {merge.left, merge.right, merge.result};
    for (int i = 0; i < 3; ++i) {
      if (found[i] != kNoToken) continue;
      return Invalid(StrCat(origin, ": model.merges[", rank, "]: the ",
                            i == 0   ? "left part "
                            : i == 1 ? "right part "
                                     : "result ",
                            QuoteForError(parts[i]), " is not in model.vocab"));
    }
    spec->merges.push_back(merge);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerSpec> ParseTokenizerJson(std::string_view json, const std::string& origin) {
  TokenizerJsonReader reader;
  // About 12 bytes of file per token byte; a wrong guess only costs copies.
  reader.tokens().Reserve(json.size() / 48, json.size() / 6);
  if (!nlohmann::json::sax_parse(json.begin(), json.end(), &reader)) {
    return Invalid(StrCat(origin, ": ", reader.error()));
  }
  const JsonValue& root = reader.root();
  if (!root.is_object()) return Invalid(StrCat(origin, ": is ", root.KindName(), ", not a JSON object"));
  const JsonValue* model = root.Find("model");
  if (model == nullptr || !model->is_object()) return Invalid(StrCat(origin, ": model: missing or not an object"));
  TokenizerSpec spec;
  AS_RETURN_IF_ERROR(CheckModel(*model, origin, &spec));
  if (!reader.vocab_seen()) return Invalid(StrCat(origin, ": model.vocab: missing or not an object"));
  if (!reader.merges_seen()) return Invalid(StrCat(origin, ": model.merges: missing or not an array"));
  AS_RETURN_IF_ERROR(CheckPipeline(root, origin));
  AS_RETURN_IF_ERROR(ReadPreTokenizer(root, origin, &spec));
  AS_RETURN_IF_ERROR(ReadAddedTokens(root, origin, &reader, &spec));
  spec.tokens = std::move(reader.tokens());
  AS_RETURN_IF_ERROR(ResolveMerges(reader, origin, &spec));
  return spec;
}

}  // namespace agentserve::text
