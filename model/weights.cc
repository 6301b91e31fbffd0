#include "model/weights.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/clock.h"
#include "base/hash.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "kernels/bf16/bf16.h"
#include "model/fingerprint.h"
#include "model/safetensors.h"

namespace agentserve::model {
namespace {

namespace fs = std::filesystem;
using base::StrCat;
using nlohmann::json;

constexpr size_t kMaxIndexBytes = 32 << 20;  // 100,000 tensors with long names
constexpr size_t kMaxShards = 1000;
constexpr size_t kMaxNamesShown = 5;

// Where one expected tensor goes.
struct Slot {
  std::vector<uint64_t> shape;
  const uint16_t** target;
  bool found = false;
};
using Slots = std::map<std::string, Slot>;

Slots ExpectedTensors(const ModelConfig& c, Weights* w) {
  const uint64_t h = c.hidden_size, f = c.intermediate_size, q = c.q_size(), kv = c.kv_size();
  Slots s;
  s["model.embed_tokens.weight"] = {{c.vocab_size, h}, &w->embedding};
  s["model.norm.weight"] = {{h}, &w->final_norm};
  if (!c.tie_word_embeddings) s["lm_head.weight"] = {{c.vocab_size, h}, &w->lm_head};
  w->layers.resize(c.num_layers);
  for (uint32_t i = 0; i < c.num_layers; ++i) {
    LayerWeights& l = w->layers[i];
    const std::string p = StrCat("model.layers.", i, ".");
    s[p + "input_layernorm.weight"] = {{h}, &l.input_norm};
    s[p + "self_attn.q_proj.weight"] = {{q, h}, &l.q};
    s[p + "self_attn.k_proj.weight"] = {{kv, h}, &l.k};
    s[p + "self_attn.v_proj.weight"] = {{kv, h}, &l.v};
    s[p + "self_attn.o_proj.weight"] = {{h, q}, &l.o};
    s[p + "post_attention_layernorm.weight"] = {{h}, &l.post_norm};
    s[p + "mlp.gate_proj.weight"] = {{f, h}, &l.gate};
    s[p + "mlp.up_proj.weight"] = {{f, h}, &l.up};
    s[p + "mlp.down_proj.weight"] = {{h, f}, &l.down};
  }
  return s;
}

// Tensors that old checkpoints carry and that are computed here, or that a tied model ignores.
bool Ignored(const std::string& name, const ModelConfig& c) {
  return name.ends_with("rotary_emb.inv_freq") || (c.tie_word_embeddings && name == "lm_head.weight");
}

// File names of the shards of an index, each once, and which file holds which tensor.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& path) {
  AS_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path, kMaxIndexBytes));
  const json index = json::parse(text, nullptr, false);
  if (index.is_discarded() || !index.is_object()) {
    return absl::InvalidArgumentError(StrCat(path, ": not a JSON object"));
  }
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) {
    return absl::InvalidArgumentError(StrCat(path, ": field \"weight_map\" must be an object"));
  }
  std::map<std::string, std::string> out;
  for (const auto& [tensor, file] : map->items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (name.empty() || name.find('/') != std::string::npos || !name.ends_with(".safetensors")) {
      return absl::InvalidArgumentError(StrCat(path, ": field \"weight_map\": tensor \"", tensor.substr(0, 120),
                                               "\" must name a .safetensors file in the same folder"));
    }
    out[tensor] = name;
  }
  return out;
}

struct WeightFiles {
  std::vector<std::string> names;
  std::map<std::string, std::string> file_of;  // empty if there is no index
};

absl::StatusOr<WeightFiles> FindFiles(const std::string& dir) {
  std::error_code error;
  if (fs::exists(dir + "/model.safetensors", error)) return WeightFiles{{"model.safetensors"}, {}};
  WeightFiles out;
  const std::string index = dir + "/model.safetensors.index.json";
  if (fs::exists(index, error)) {
    AS_ASSIGN_OR_RETURN(out.file_of, ReadIndex(index));
    std::set<std::string> names;
    for (const auto& [tensor, file] : out.file_of) names.insert(file);
    if (names.empty() || names.size() > kMaxShards) {
      return absl::InvalidArgumentError(
          StrCat(index, ": names ", names.size(), " files; 1 to ", kMaxShards, " allowed"));
    }
    out.names.assign(names.begin(), names.end());
    return out;
  }
  for (const fs::directory_entry& entry : fs::directory_iterator(dir, error)) {
    if (entry.path().extension() == ".safetensors") out.names.push_back(entry.path().filename().string());
  }
  if (out.names.size() == 1) return out;
  return absl::NotFoundError(StrCat(dir, ": ", out.names.empty() ? "no weights" : "several *.safetensors but no index",
                                    "; expected model.safetensors or model.safetensors.index.json"));
}

// Collects names for one message, at most kMaxNamesShown of them.
std::string NameSome(const std::vector<std::string>& names) {
  std::string out;
  for (size_t i = 0; i < std::min(names.size(), kMaxNamesShown); ++i) {
    base::StrAppend(&out, i == 0 ? "" : ", ", "\"", names[i].substr(0, 120), "\"");
  }
  if (names.size() > kMaxNamesShown) base::StrAppend(&out, " and ", names.size() - kMaxNamesShown, " more");
  return out;
}

class Loader {
 public:
  Loader(const ModelConfig& config, const std::function<void(const LoadProgress&)>& progress, ReadFiles read,
         Weights* weights)
      : config_(config),
        progress_(progress),
        read_(read),
        weights_(weights),
        slots_(ExpectedTensors(config, weights)) {}

  absl::Status Load(const std::string& dir);

 private:
  absl::Status CheckFile(const WeightFiles& files, size_t i);
  absl::Status PlaceTensor(const MappedFile& file, const TensorInfo& info);
  void Convert(const MappedFile& file, const TensorInfo& info, const uint16_t** target);
  void ReadThrough(const MappedFile& file, uint64_t begin, uint64_t end);
  void Report(const std::string& file, bool force);
  uint64_t SampleHash() const;

  const ModelConfig& config_;
  const std::function<void(const LoadProgress&)>& progress_;
  const ReadFiles read_;
  Weights* weights_;
  Slots slots_;
  std::vector<std::vector<TensorInfo>> infos_;  // per file
  std::vector<std::string> unexpected_;
  base::MonotonicClock clock_;
  base::TimeNs began_ = clock_.Now(), reported_ = 0;
  uint64_t done_ = 0, total_ = 0;
};

void Loader::Report(const std::string& file, bool force) {
  constexpr base::TimeNs kEvery = 200 * base::kNsPerMs;
  const base::TimeNs now = clock_.Now();
  if (!progress_ || (!force && now - reported_ < kEvery)) return;
  reported_ = now;
  LoadProgress p;
  p.file = file;
  p.bytes_done = done_;
  p.bytes_total = total_;
  p.seconds = static_cast<double>(now - began_) / 1e9;
  p.bytes_per_second = p.seconds > 0 ? static_cast<double>(done_) / p.seconds : 0;
  p.eta_seconds = p.bytes_per_second > 0 ? static_cast<double>(total_ - done_) / p.bytes_per_second : 0;
  progress_(p);
}

// Brings bytes into memory in pieces, so that progress is seen and the first token does not wait for the disk.
void Loader::ReadThrough(const MappedFile& file, uint64_t begin, uint64_t end) {
  constexpr uint64_t kPiece = 32 << 20;
  for (uint64_t at = begin; at < end; at += kPiece) {
    const uint64_t n = std::min(kPiece, end - at);
    file.Populate(at, n);
    done_ += n;
    Report(file.path(), false);
  }
}

void Loader::Convert(const MappedFile& file, const TensorInfo& info, const uint16_t** target) {
  const std::byte* from = file.bytes().data() + info.begin;
  std::vector<uint16_t>& to = weights_->converted.emplace_back(info.elements());
  if (info.dtype == WeightDtype::kBf16) {  // an odd address
    std::memcpy(to.data(), from, info.end - info.begin);
  } else if (info.dtype == WeightDtype::kF16) {
    for (size_t i = 0; i < to.size(); ++i) {
      uint16_t half = 0;
      std::memcpy(&half, from + 2 * i, 2);
      to[i] = kernels::FloatToBf16(kernels::HalfToFloat(half));
    }
  } else {
    for (size_t i = 0; i < to.size(); ++i) {
      float f = 0;
      std::memcpy(&f, from + 4 * i, 4);
      to[i] = kernels::FloatToBf16(f);
    }
  }
  *target = to.data();
}

absl::Status Loader::PlaceTensor(const MappedFile& file, const TensorInfo& info) {
  const auto it = slots_.find(info.name);
  if (it == slots_.end()) {
    if (!Ignored(info.name, config_)) unexpected_.push_back(info.name);
    return absl::OkStatus();
  }
  Slot& slot = it->second;
  if (slot.found) {
    return absl::InvalidArgumentError(StrCat(file.path(), ": tensor \"", info.name, "\" is also in another file"));
  }
  if (info.shape != slot.shape) {
    TensorInfo want;
    want.shape = slot.shape;
    return absl::InvalidArgumentError(StrCat(file.path(), ": tensor \"", info.name, "\": field \"shape\" = ",
                                             info.ShapeText(), ", but config.json needs ", want.ShapeText()));
  }
  slot.found = true;
  const std::byte* data = file.bytes().data() + info.begin;
  const bool in_place = info.dtype == WeightDtype::kBf16 && reinterpret_cast<uintptr_t>(data) % 2 == 0;
  if (in_place) {
    *slot.target = reinterpret_cast<const uint16_t*>(data);
  } else {
    Convert(file, info, slot.target);
  }
  if (read_ == ReadFiles::kNow) ReadThrough(file, info.begin, info.end);
  return absl::OkStatus();
}

// Parses the header of one file and, if there is an index, compares the two.
absl::Status Loader::CheckFile(const WeightFiles& files, size_t i) {
  const MappedFile& file = weights_->files[i];
  AS_ASSIGN_OR_RETURN(infos_.emplace_back(), ParseSafetensors(file.bytes(), file.path()));
  total_ += file.bytes().size();
  if (files.file_of.empty()) return absl::OkStatus();
  std::set<std::string> present;
  for (const TensorInfo& info : infos_[i]) present.insert(info.name);
  for (const auto& [tensor, name] : files.file_of) {
    if (name == files.names[i] && !present.contains(tensor)) {
      return absl::InvalidArgumentError(StrCat(file.path(), ": tensor \"", tensor.substr(0, 120),
                                               "\" is missing, but model.safetensors.index.json places it here"));
    }
  }
  return absl::OkStatus();
}

absl::Status Loader::Load(const std::string& dir) {
  AS_ASSIGN_OR_RETURN(const WeightFiles files, FindFiles(dir));
  for (size_t i = 0; i < files.names.size(); ++i) {
    AS_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(StrCat(dir, "/", files.names[i])));
    weights_->files.push_back(std::move(file));
    AS_RETURN_IF_ERROR(CheckFile(files, i));
  }
  for (size_t i = 0; i < files.names.size(); ++i) {
    for (const TensorInfo& info : infos_[i]) AS_RETURN_IF_ERROR(PlaceTensor(weights_->files[i], info));
  }
  std::vector<std::string> missing;
  for (const auto& [name, slot] : slots_) {
    if (!slot.found) missing.push_back(name);
  }
  if (!missing.empty()) {
    return absl::InvalidArgumentError(
        StrCat(dir, ": the weights lack ", missing.size(), " tensors that config.json needs: ", NameSome(missing)));
  }
  if (!unexpected_.empty()) {
    return absl::InvalidArgumentError(
        StrCat(dir, ": the weights hold ", unexpected_.size(),
               " tensors that a Llama model of config.json does not have: ", NameSome(unexpected_)));
  }
  if (config_.tie_word_embeddings) weights_->lm_head = weights_->embedding;
  weights_->sample_hash = SampleHash();
  done_ = total_;
  Report(weights_->files.back().path(), true);
  return absl::OkStatus();
}

// Names and shapes of all tensors, and from each the first and last 4 KiB and eight pieces between, after conversion.
uint64_t Loader::SampleHash() const {
  constexpr size_t kPiece = 2048, kPieces = 10;
  uint64_t hash = 0;
  for (const auto& [name, slot] : slots_) {
    hash = base::Xxh3(std::as_bytes(std::span(name)), hash);
    hash = base::Xxh3(std::as_bytes(std::span(slot.shape)), hash);
    size_t elements = 1;
    for (const uint64_t dim : slot.shape) elements *= dim;
    const std::span<const uint16_t> all(*slot.target, elements);
    if (elements <= kPiece * kPieces) {
      hash = base::Xxh3(std::as_bytes(all), hash);
      continue;
    }
    for (size_t i = 0; i < kPieces; ++i) {
      const size_t at = (elements - kPiece) / (kPieces - 1) * i;
      hash = base::Xxh3(std::as_bytes(all.subspan(i + 1 == kPieces ? elements - kPiece : at, kPiece)), hash);
    }
  }
  return hash;
}

}  // namespace

uint64_t ModelFingerprint(const ModelConfig& config, const Weights& weights) {
  const std::string identity = StrCat(config.Canonical(), "weights=", weights.sample_hash, "\n");
  return base::Sha256Prefix(std::as_bytes(std::span(identity))).hi;
}

absl::StatusOr<std::unique_ptr<Weights>> LoadWeights(const std::string& dir, const ModelConfig& config,
                                                     const std::function<void(const LoadProgress&)>& progress,
                                                     ReadFiles read) {
  auto weights = std::make_unique<Weights>();
  AS_RETURN_IF_ERROR(Loader(config, progress, read, weights.get()).Load(dir));
  return weights;
}

}  // namespace agentserve::model
