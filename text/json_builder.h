// SAX handler of nlohmann-json that builds a JsonValue. Internal to text/.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <unordered_map>
#include <vector>

#include "text/json_value.h"

namespace agentserve::text {

// A derived handler may override events; it must then forward what it does not take.
class JsonBuilder : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool null() override { return Add({}); }
  bool boolean(bool v) override;
  bool number_integer(int64_t v) override;
  bool number_unsigned(uint64_t v) override;
  bool number_float(double v, const std::string& spelling) override;
  bool string(std::string& v) override;
  bool binary(nlohmann::json::binary_t&) override { return false; }
  bool start_object(size_t) override { return Open(JsonValue::Kind::kObject); }
  bool start_array(size_t) override { return Open(JsonValue::Kind::kArray); }
  bool key(std::string& k) override;
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool parse_error(size_t position, const std::string& token, const nlohmann::json::exception& e) override;

  JsonValue& root() { return root_; }
  const std::string& error() const { return error_; }
  // "model.merges[3]" of the value read last.
  std::string Path() const;

 protected:
  bool Fail(std::string message);
  size_t depth() const { return stack_.size(); }
  const std::string& key_at(size_t level) const { return stack_[level].key; }

 private:
  struct Frame {
    JsonValue value;
    std::string key;                             // of the member being read
    std::unordered_map<std::string, size_t> at;  // key -> member, objects only
  };
  bool Add(JsonValue value);
  bool Open(JsonValue::Kind kind);
  bool Close();

  JsonValue root_;
  std::vector<Frame> stack_;
  std::string error_;
  size_t values_ = 0;
};

}  // namespace agentserve::text
