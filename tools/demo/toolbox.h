// The tools that the demo agent offers and really executes.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace agentserve::tools {

// What a call gave back.
struct ToolOutcome {
  std::string content;                // goes to the model
  std::vector<std::string> mentions;  // what an answer that uses the result must contain
};

// Single-threaded.
class Toolbox {
 public:
  // `files_root`: existing directory that list_files sees as "/".
  explicit Toolbox(std::string files_root);

  // The `tools` field of a chat request; key order as written.
  const nlohmann::ordered_json& schemas() const { return schemas_; }

  // Checks the arguments against the schema of the tool and runs it. INVALID_ARGUMENT says what the model got wrong
  // (unknown tool, bad JSON, missing, unknown or wrongly typed argument); NOT_FOUND that a city or folder is unknown.
  absl::StatusOr<ToolOutcome> Execute(const std::string& name, const std::string& arguments_json) const;

 private:
  using Arguments = nlohmann::json;
  using Run = std::function<absl::StatusOr<ToolOutcome>(const Arguments&)>;
  void Add(const std::string& name, const std::string& description, nlohmann::ordered_json properties,
           std::vector<std::string> required, Run run);
  absl::StatusOr<ToolOutcome> ListFiles(const std::string& path) const;

  const std::string files_root_;
  nlohmann::ordered_json schemas_ = nlohmann::ordered_json::array();
  std::vector<Run> runs_;  // in the order of schemas_
};

}  // namespace agentserve::tools
