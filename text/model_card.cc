#include "text/model_card.h"

#include <algorithm>
#include <filesystem>
#include <limits>

#include "base/status_macros.h"
#include "base/strings.h"
#include "text/json_value.h"

namespace agentserve::text {
namespace {

constexpr uint64_t kMaxConfigFileBytes = 16u << 20;  // tokenizer_config.json of Llama 3 has 50 KB

absl::Status Invalid(const std::string& file, std::string_view key, const std::string& what) {
  return absl::InvalidArgumentError(base::StrCat(file, ": ", key, ": ", what));
}

absl::StatusOr<JsonValue> ReadObject(const std::string& path) {
  AS_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxConfigFileBytes));
  AS_ASSIGN_OR_RETURN(JsonValue root, ParseJson(text, path));
  if (!root.is_object()) {
    return absl::InvalidArgumentError(base::StrCat(path, ": is ", root.KindName(), ", not a JSON object"));
  }
  return root;
}

bool Exists(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

absl::StatusOr<uint32_t> RequiredCount(const JsonValue& root, const std::string& file, std::string_view key) {
  const JsonValue* v = root.Find(key);
  uint64_t value = 0;
  if (v == nullptr) return Invalid(file, key, "missing");
  if (!v->GetUint(std::numeric_limits<int32_t>::max(), &value) || value == 0) {
    return Invalid(file, key, "must be a positive integer below 2^31");
  }
  return static_cast<uint32_t>(value);
}

// A token id, a list of them, or null/absent (nothing is added).
absl::Status AddTokenIds(const JsonValue& root, const std::string& file, std::string_view key,
                         std::vector<uint32_t>* ids) {
  const JsonValue* v = root.Find(key);
  if (v == nullptr || v->is_null()) return absl::OkStatus();
  const auto add = [&](const JsonValue& item) {
    uint64_t id = 0;
    if (!item.GetUint(std::numeric_limits<int32_t>::max(), &id)) return false;
    ids->push_back(static_cast<uint32_t>(id));
    return true;
  };
  const bool ok = v->is_array() ? std::all_of(v->items.begin(), v->items.end(), add) : add(*v);
  return ok ? absl::OkStatus() : Invalid(file, key, "must be a token id or a list of token ids");
}

absl::Status ReadNumber(const JsonValue& root, const std::string& file, std::string_view key, double least, double most,
                        std::optional<double>* out) {
  const JsonValue* v = root.Find(key);
  if (v == nullptr || v->is_null()) return absl::OkStatus();
  const bool number = v->kind == JsonValue::Kind::kInt || v->kind == JsonValue::Kind::kFloat;
  if (!number || !(v->number >= least && v->number <= most)) {
    return Invalid(file, key, base::StrCat("must be a number of ", least, " to ", most));
  }
  *out = v->number;
  return absl::OkStatus();
}

absl::Status ReadGenerationConfig(const std::string& file, ModelCard* card) {
  AS_ASSIGN_OR_RETURN(const JsonValue root, ReadObject(file));
  AS_RETURN_IF_ERROR(AddTokenIds(root, file, "eos_token_id", &card->eos_token_ids));
  DefaultSampling& s = card->sampling;
  AS_RETURN_IF_ERROR(ReadNumber(root, file, "temperature", 0, 100, &s.temperature));
  AS_RETURN_IF_ERROR(ReadNumber(root, file, "top_p", 0, 1, &s.top_p));
  AS_RETURN_IF_ERROR(ReadNumber(root, file, "min_p", 0, 1, &s.min_p));
  AS_RETURN_IF_ERROR(ReadNumber(root, file, "repetition_penalty", 1e-3, 100, &s.repetition_penalty));
  std::optional<double> top_k;
  AS_RETURN_IF_ERROR(ReadNumber(root, file, "top_k", -1, 1e9, &top_k));
  if (top_k) s.top_k = static_cast<int64_t>(*top_k);
  const JsonValue* do_sample = root.Find("do_sample");
  if (do_sample != nullptr && do_sample->kind == JsonValue::Kind::kBool && !do_sample->boolean) s.temperature = 0;
  return absl::OkStatus();
}

absl::StatusOr<bool> HasChatTemplate(const std::filesystem::path& dir) {
  if (Exists(dir / "chat_template.jinja")) return true;
  const std::string file = (dir / "tokenizer_config.json").string();
  if (!Exists(file)) return false;
  AS_ASSIGN_OR_RETURN(const JsonValue root, ReadObject(file));
  const JsonValue* chat_template = root.Find("chat_template");
  if (chat_template == nullptr || chat_template->is_null()) return false;
  // A list holds named templates.
  if (!chat_template->is_string() && !chat_template->is_array()) {
    return Invalid(file, "chat_template", "must be a string or a list of named templates");
  }
  return chat_template->is_string() ? !chat_template->string.empty() : !chat_template->items.empty();
}

}  // namespace

absl::StatusOr<ModelCard> LoadModelCard(const std::string& model_dir) {
  std::filesystem::path dir(model_dir);
  if (dir.filename().empty() || dir.filename() == "." || dir.filename() == "..") {
    std::error_code ignored;  // "models/tiny/", ".": the name is that of the real folder
    const std::filesystem::path real = std::filesystem::weakly_canonical(dir, ignored);
    if (!ignored) dir = real;
    if (dir.filename().empty()) dir = dir.parent_path();
  }
  ModelCard card;
  card.model_id = dir.filename().string();
  const std::string file = (dir / "config.json").string();
  AS_ASSIGN_OR_RETURN(const JsonValue config, ReadObject(file));
  AS_ASSIGN_OR_RETURN(card.context_length, RequiredCount(config, file, "max_position_embeddings"));
  AS_ASSIGN_OR_RETURN(card.vocab_size, RequiredCount(config, file, "vocab_size"));
  AS_RETURN_IF_ERROR(AddTokenIds(config, file, "eos_token_id", &card.eos_token_ids));
  std::vector<uint32_t> bos;
  AS_RETURN_IF_ERROR(AddTokenIds(config, file, "bos_token_id", &bos));
  if (!bos.empty()) card.bos_token_id = bos[0];
  if (Exists(dir / "generation_config.json")) {
    AS_RETURN_IF_ERROR(ReadGenerationConfig((dir / "generation_config.json").string(), &card));
  }
  for (const uint32_t id : card.eos_token_ids) {
    if (id >= card.vocab_size) {
      return Invalid(file, "eos_token_id", base::StrCat(id, " is not below vocab_size ", card.vocab_size));
    }
  }
  std::sort(card.eos_token_ids.begin(), card.eos_token_ids.end());
  card.eos_token_ids.erase(std::unique(card.eos_token_ids.begin(), card.eos_token_ids.end()), card.eos_token_ids.end());
  AS_ASSIGN_OR_RETURN(card.has_chat_template, HasChatTemplate(dir));
  return card;
}

}  // namespace agentserve::text
