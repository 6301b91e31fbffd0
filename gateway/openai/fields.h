// Reads the members of one JSON object with types and ranges, remembers the first error and which members were asked
// for.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "gateway/api_error.h"
#include "gateway/json_util.h"

namespace agentserve::gateway {

// Single-threaded; `object` must outlive it. After the first error every getter returns nullopt. Null counts as absent.
class Fields {
 public:
  // `prefix` is put before field names in errors, e.g. "messages[3].".
  explicit Fields(const Json& object, std::string prefix = "");

  std::optional<double> Number(const std::string& key, double least, double most);
  // As Number, and the value must be above `least`.
  std::optional<double> NumberAbove(const std::string& key, double least, double most);
  // Also takes 5.0 for 5.
  std::optional<int64_t> Integer(const std::string& key, int64_t least, int64_t most);
  std::optional<bool> Bool(const std::string& key);
  std::optional<std::string> String(const std::string& key, size_t most_bytes);
  // The member, or null when absent or JSON null; counts as asked for.
  const Json* Take(const std::string& key);
  // As Take, of a given kind.
  const Json* Object(const std::string& key);
  const Json* Array(const std::string& key, size_t most);

  // Records an error about `key` unless there is one already.
  void Fail(const std::string& key, std::string message, std::string code = "");
  void Fail(ApiError error);
  bool ok() const { return !error_.has_value(); }
  std::optional<ApiError> error() const { return error_; }
  // Members that nobody asked for, in order of name.
  std::vector<std::string> Unknown() const;

 private:
  std::optional<double> AnyNumber(const std::string& key);
  void Range(const std::string& key, std::string_view what, double least, double most, bool above);

  const Json& object_;
  std::string prefix_;
  std::set<std::string> asked_;
  std::optional<ApiError> error_;
};

}  // namespace agentserve::gateway
