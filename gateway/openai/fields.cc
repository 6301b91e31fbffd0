#include "gateway/openai/fields.h"

#include <cmath>

#include "base/strings.h"

namespace agentserve::gateway {

using base::StrCat;

Fields::Fields(const Json& object, std::string prefix) : object_(object), prefix_(std::move(prefix)) {
  if (!object_.is_object()) {
    error_ = InvalidRequest(prefix_.empty() ? StrCat("the body must be a JSON object, not ", object_.type_name())
                                            : StrCat("`", prefix_, "` must be an object, not ", object_.type_name()),
                            prefix_);
  }
}

void Fields::Fail(const std::string& key, std::string message, std::string code) {
  const std::string path = prefix_ + key;
  Fail(InvalidRequest(StrCat("`", path, "`: ", message), path, std::move(code)));
}

void Fields::Fail(ApiError error) {
  if (!error_) error_ = std::move(error);
}

const Json* Fields::Take(const std::string& key) {
  if (error_) return nullptr;
  asked_.insert(key);
  const auto it = object_.find(key);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

const Json* Fields::Object(const std::string& key) {
  const Json* v = Take(key);
  if (v != nullptr && !v->is_object()) {
    Fail(key, StrCat("must be an object, not ", v->type_name()));
    return nullptr;
  }
  return v;
}

const Json* Fields::Array(const std::string& key, size_t most) {
  const Json* v = Take(key);
  if (v == nullptr) return nullptr;
  if (!v->is_array()) {
    Fail(key, StrCat("must be an array, not ", v->type_name()));
    return nullptr;
  }
  if (v->size() > most) {
    Fail(key, StrCat("has ", v->size(), " entries; at most ", most, " are taken"));
    return nullptr;
  }
  return v;
}

std::optional<double> Fields::AnyNumber(const std::string& key) {
  const Json* v = Take(key);
  if (v == nullptr) return std::nullopt;
  if (!v->is_number()) {
    Fail(key, StrCat("must be a number, not ", v->type_name()));
    return std::nullopt;
  }
  return v->get<double>();
}

void Fields::Range(const std::string& key, std::string_view what, double least, double most, bool above) {
  Fail(key, StrCat("is ", what, "; must be ", above ? "above " : "from ", least, above ? ", at most " : " to ", most));
}

std::optional<double> Fields::Number(const std::string& key, double least, double most) {
  const auto v = AnyNumber(key);
  if (!v) return v;
  if (!(*v >= least && *v <= most)) {
    Range(key, StrCat(*v), least, most, false);
    return std::nullopt;
  }
  return v;
}

std::optional<double> Fields::NumberAbove(const std::string& key, double least, double most) {
  const auto v = AnyNumber(key);
  if (!v) return v;
  if (!(*v > least && *v <= most)) {
    Range(key, StrCat(*v), least, most, true);
    return std::nullopt;
  }
  return v;
}

std::optional<int64_t> Fields::Integer(const std::string& key, int64_t least, int64_t most) {
  const Json* v = Take(key);
  if (v == nullptr) return std::nullopt;
  const auto out_of_range = [&](const std::string& got) {
    Fail(key, StrCat("is ", got, "; must be an integer from ", least, " to ", most));
    return std::nullopt;
  };
  if (v->is_number_unsigned()) {
    const uint64_t u = v->get<uint64_t>();
    if (u > static_cast<uint64_t>(INT64_MAX)) return out_of_range(StrCat(u));
  } else if (v->is_number_float()) {
    const double d = v->get<double>();
    if (std::nearbyint(d) != d) {
      Fail(key, StrCat("must be an integer, not ", d));
      return std::nullopt;
    }
    if (!(d >= -9007199254740992.0 && d <= 9007199254740992.0)) return out_of_range(StrCat(d));
  } else if (!v->is_number_integer()) {
    Fail(key, StrCat("must be an integer, not ", v->type_name()));
    return std::nullopt;
  }
  const int64_t i = v->is_number_float() ? static_cast<int64_t>(v->get<double>()) : v->get<int64_t>();
  if (i < least || i > most) return out_of_range(StrCat(i));
  return i;
}

std::optional<bool> Fields::Bool(const std::string& key) {
  const Json* v = Take(key);
  if (v == nullptr) return std::nullopt;
  if (!v->is_boolean()) {
    Fail(key, StrCat("must be true or false, not ", v->type_name()));
    return std::nullopt;
  }
  return v->get<bool>();
}

std::optional<std::string> Fields::String(const std::string& key, size_t most_bytes) {
  const Json* v = Take(key);
  if (v == nullptr) return std::nullopt;
  if (!v->is_string()) {
    Fail(key, StrCat("must be a string, not ", v->type_name()));
    return std::nullopt;
  }
  const auto& s = v->get_ref<const std::string&>();
  if (s.size() > most_bytes) {
    Fail(key, StrCat("has ", s.size(), " bytes; at most ", most_bytes, " are taken"));
    return std::nullopt;
  }
  return s;
}

std::vector<std::string> Fields::Unknown() const {
  std::vector<std::string> out;
  if (!object_.is_object()) return out;
  for (const auto& [key, value] : object_.items()) {
    if (!asked_.contains(key)) out.push_back(key);
  }
  return out;
}

}  // namespace agentserve::gateway
