#include "model/safetensors.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_set>

#include "base/status_macros.h"
#include "base/strings.h"

namespace agentserve::model {
namespace {

using base::StrCat;
using nlohmann::json;

std::string Shown(std::string_view name) { return std::string(name.substr(0, 120)); }

// Fills tensors from JSON events, so that repeated keys and odd values are seen rather than merged. Nesting deeper than
// the format's is refused at once.
class HeaderReader : public nlohmann::json_sax<json> {
 public:
  HeaderReader(std::string origin, std::vector<TensorInfo>* out) : origin_(std::move(origin)), out_(out) {}

  absl::Status status() const { return status_; }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_integer(number_integer_t) override { return Unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return Unexpected("a fraction"); }
  bool binary(binary_t&) override { return Unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t v) override {
    if (state_ != State::kList) return Unexpected("a number");
    const size_t most = field_ == "shape" ? kMaxTensorDims : 2;
    if (list_.size() == most) return FieldError(StrCat("more than ", most, " numbers"));
    list_.push_back(v);
    return true;
  }

  bool string(string_t& v) override {
    if (state_ == State::kMetadata) return true;
    if (state_ != State::kTensor || field_ != "dtype") return Unexpected("a string");
    if (v == "BF16") {
      dtype_ = WeightDtype::kBf16;
    } else if (v == "F16") {
      dtype_ = WeightDtype::kF16;
    } else if (v == "F32") {
      dtype_ = WeightDtype::kF32;
    } else {
      return FieldError(StrCat("\"", Shown(v), "\" is not supported; BF16, F16 and F32 are"));
    }
    return true;
  }

  bool start_object(std::size_t) override {
    if (state_ == State::kStart) {
      state_ = State::kTop;
    } else if (state_ == State::kTop) {
      state_ = tensor_ == "__metadata__" ? State::kMetadata : State::kTensor;
      fields_seen_ = 0;
    } else {
      return Unexpected("an object");
    }
    return true;
  }

  bool key(string_t& k) override {
    if (state_ == State::kTop) {
      if (k.empty() || k.size() > kMaxTensorName) {
        return Error(StrCat("tensor name of ", k.size(), " bytes; 1 to ", kMaxTensorName, " are allowed"));
      }
      if (!names_.insert(k).second) return Error(StrCat("tensor \"", Shown(k), "\" appears twice"));
      if (names_.size() > kMaxTensors + 1) return Error(StrCat("more than ", kMaxTensors, " tensors"));
      tensor_ = k;
      return true;
    }
    if (state_ == State::kMetadata) return true;
    field_ = k;
    const int bit = k == "dtype" ? 1 : k == "shape" ? 2 : k == "data_offsets" ? 4 : 0;
    if (bit == 0) return FieldError("is not a field of a tensor");
    if ((fields_seen_ & bit) != 0) return FieldError("appears twice");
    fields_seen_ |= bit;
    return true;
  }

  bool end_object() override {
    if (state_ == State::kTensor) return FinishTensor();
    state_ = state_ == State::kMetadata ? State::kTop : State::kEnd;
    return true;
  }

  bool start_array(std::size_t) override {
    if (state_ != State::kTensor || (field_ != "shape" && field_ != "data_offsets")) return Unexpected("a list");
    state_ = State::kList;
    list_.clear();
    return true;
  }

  bool end_array() override {
    (field_ == "shape" ? shape_ : offsets_) = list_;
    state_ = State::kTensor;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& e) override {
    return Error(StrCat("header is not valid JSON at byte ", position, ": ", std::string_view(e.what())));
  }

 private:
  enum class State { kStart, kTop, kMetadata, kTensor, kList, kEnd };

  bool Error(std::string_view what) {
    status_ = absl::InvalidArgumentError(StrCat(origin_, ": ", what));
    return false;
  }
  bool TensorError(std::string_view what) { return Error(StrCat("tensor \"", Shown(tensor_), "\": ", what)); }
  bool FieldError(std::string_view what) { return TensorError(StrCat("field \"", Shown(field_), "\" ", what)); }
  bool Unexpected(std::string_view got) {
    if (state_ == State::kStart) return Error(StrCat("header must be an object, not ", got));
    if (state_ == State::kTop) return TensorError(StrCat("must be an object, not ", got));
    if (state_ == State::kMetadata) return Error(StrCat("__metadata__ may only hold strings, not ", got));
    return FieldError(StrCat("must not hold ", got));
  }

  bool FinishTensor() {
    state_ = State::kTop;
    for (const auto& [bit, name] : {std::pair(1, "dtype"), std::pair(2, "shape"), std::pair(4, "data_offsets")}) {
      if ((fields_seen_ & bit) == 0) return TensorError(StrCat("field \"", std::string_view(name), "\" is missing"));
    }
    field_ = "data_offsets";
    if (offsets_.size() != 2) return FieldError("must hold two numbers");
    if (offsets_[0] > offsets_[1]) return FieldError(StrCat("begins at ", offsets_[0], " after its end ", offsets_[1]));
    uint64_t bytes = DtypeBytes(dtype_);
    for (const uint64_t dim : shape_) {
      if (__builtin_mul_overflow(bytes, dim, &bytes)) {
        field_ = "shape";
        return FieldError("overflows 64 bits");
      }
    }
    TensorInfo info = {tensor_, dtype_, shape_, offsets_[0], offsets_[1]};
    if (offsets_[1] - offsets_[0] != bytes) {
      return FieldError(
          StrCat("span ", offsets_[1] - offsets_[0], " bytes, but shape ", info.ShapeText(), " needs ", bytes));
    }
    out_->push_back(std::move(info));
    return true;
  }

  std::string origin_;
  std::vector<TensorInfo>* out_;
  absl::Status status_;
  State state_ = State::kStart;
  std::unordered_set<std::string> names_;
  std::string tensor_, field_;
  int fields_seen_ = 0;
  WeightDtype dtype_ = WeightDtype::kBf16;
  std::vector<uint64_t> list_, shape_, offsets_;
};

// Sorts by position and checks that the ranges tile [0, data_bytes); then makes them file offsets.
absl::Status CheckTiling(uint64_t data_begin, uint64_t data_bytes, const std::string& origin,
                         std::vector<TensorInfo>* tensors) {
  std::sort(tensors->begin(), tensors->end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t at = 0;
  for (TensorInfo& t : *tensors) {
    const auto error = [&](std::string_view what) {
      return absl::InvalidArgumentError(StrCat(origin, ": tensor \"", Shown(t.name), "\": field \"data_offsets\" = [",
                                               t.begin, ", ", t.end, "]: ", what));
    };
    if (t.end > data_bytes) {
      return error(StrCat("ends beyond the file's ", data_bytes, " data bytes; the file is truncated or damaged"));
    }
    if (t.begin < at) return error(StrCat("overlaps the tensor before it, which ends at ", at));
    if (t.begin > at) return error(StrCat("leaves a gap after byte ", at));
    at = t.end;
    t.begin += data_begin;
    t.end += data_begin;
  }
  if (at != data_bytes) {
    return absl::InvalidArgumentError(
        StrCat(origin, ": ", data_bytes - at, " bytes after the last tensor belong to none"));
  }
  return absl::OkStatus();
}

}  // namespace

uint64_t DtypeBytes(WeightDtype dtype) { return dtype == WeightDtype::kF32 ? 4 : 2; }

std::string TensorInfo::ShapeText() const {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) base::StrAppend(&out, i == 0 ? "" : ", ", shape[i]);
  return out + "]";
}

absl::StatusOr<std::vector<TensorInfo>> ParseSafetensors(std::span<const std::byte> file, const std::string& origin) {
  constexpr uint64_t kPrefix = 8;
  if (file.size() < kPrefix) {
    return absl::InvalidArgumentError(StrCat(origin, ": ", file.size(), " bytes is too short for a safetensors file"));
  }
  uint64_t header_bytes = 0;
  for (size_t i = 0; i < kPrefix; ++i) header_bytes |= static_cast<uint64_t>(file[i]) << (8 * i);
  if (header_bytes > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(StrCat(origin, ": header length ", header_bytes, " exceeds ", kMaxHeaderBytes,
                                             " bytes; not a safetensors file?"));
  }
  if (header_bytes > file.size() - kPrefix) {
    return absl::InvalidArgumentError(StrCat(origin, ": header length ", header_bytes, " exceeds the file of ",
                                             file.size(), " bytes; the file is truncated"));
  }
  const char* text = reinterpret_cast<const char*>(file.data()) + kPrefix;
  if (header_bytes == 0 || text[0] != '{') {
    return absl::InvalidArgumentError(StrCat(origin, ": header does not begin with '{'; not a safetensors file?"));
  }
  std::vector<TensorInfo> tensors;
  HeaderReader reader(origin, &tensors);
  const bool ok = json::sax_parse(text, text + header_bytes, &reader);
  AS_RETURN_IF_ERROR(reader.status());
  if (!ok) return absl::InvalidArgumentError(StrCat(origin, ": header is not valid JSON"));
  const uint64_t data_begin = kPrefix + header_bytes;
  AS_RETURN_IF_ERROR(CheckTiling(data_begin, file.size() - data_begin, origin, &tensors));
  return tensors;
}

}  // namespace agentserve::model
