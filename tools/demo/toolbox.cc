#include "tools/demo/toolbox.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/status_macros.h"
#include "base/strings.h"
#include "tools/demo/expression.h"

namespace agentserve::tools {
namespace {

using base::StrCat;
using nlohmann::json;
using nlohmann::ordered_json;

constexpr size_t kMaxListed = 32;  // names returned by one listing

// Up to 10 significant digits, integers without a point.
std::string NumberText(double value) {
  char text[40];
  if (value == std::floor(value) && std::fabs(value) < 1e15) {
    std::snprintf(text, sizeof(text), "%.0f", value);
  } else {
    std::snprintf(text, sizeof(text), "%.10g", value);
  }
  return text;
}

struct CityWeather {
  const char* city;
  int celsius;
  const char* condition;
};
// A made-up table: the demo must not depend on the network or on today.
constexpr std::array<CityWeather, 6> kWeather = {{{"Lisbon", 27, "sunny"},
                                                  {"Oslo", 14, "rainy"},
                                                  {"Paris", 21, "cloudy"},
                                                  {"Tokyo", 30, "clear"},
                                                  {"Nairobi", 24, "windy"},
                                                  {"Toronto", 18, "foggy"}}};

absl::StatusOr<ToolOutcome> Weather(const json& arguments) {
  const std::string city = arguments["city"].get<std::string>();
  for (const CityWeather& w : kWeather) {
    if (city != w.city) continue;
    const ordered_json result = {{"temperature", w.celsius}, {"condition", w.condition}};
    return ToolOutcome{result.dump(), {StrCat(w.celsius), w.condition}};
  }
  return absl::NotFoundError(StrCat("get_weather knows no city '", city, "'"));
}

bool HasType(const json& value, const std::string& type) {
  if (type == "number") return value.is_number();
  if (type == "string") return value.is_string();
  return false;
}

absl::Status CheckArguments(const ordered_json& function, const json& arguments) {
  const std::string name = function["name"].get<std::string>();
  const ordered_json& parameters = function["parameters"];
  if (!arguments.is_object()) return absl::InvalidArgumentError(StrCat(name, ": the arguments are no JSON object"));
  for (const auto& key : parameters["required"]) {
    if (!arguments.contains(key.get<std::string>())) {
      return absl::InvalidArgumentError(StrCat(name, ": argument '", key.get<std::string>(), "' is missing"));
    }
  }
  for (const auto& [key, value] : arguments.items()) {
    if (!parameters["properties"].contains(key)) {
      return absl::InvalidArgumentError(StrCat(name, ": there is no argument '", key, "'"));
    }
    const std::string type = parameters["properties"][key]["type"].get<std::string>();
    if (!HasType(value, type)) {
      return absl::InvalidArgumentError(
          StrCat(name, ": argument '", key, "' must be a ", type, ", not ", value.dump()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

Toolbox::Toolbox(std::string files_root) : files_root_(std::move(files_root)) {
  Add("calculator", "Evaluate an arithmetic expression",
      {{"expression", {{"type", "string"}, {"description", "Arithmetic expression, e.g. 2 + 3"}}}}, {"expression"},
      [](const Arguments& a) -> absl::StatusOr<ToolOutcome> {
        AS_ASSIGN_OR_RETURN(const double value, EvaluateExpression(a["expression"].get<std::string>()));
        return ToolOutcome{NumberText(value), {NumberText(value)}};
      });
  Add("get_weather", "Get the current weather for a city",
      {{"city", {{"type", "string"}, {"description", "The name of the city, e.g. Rome"}}}}, {"city"}, Weather);
  Add("list_files", "List the files in a directory",
      {{"path", {{"type", "string"}, {"description", "Directory path"}}}}, {"path"},
      [this](const Arguments& a) { return ListFiles(a["path"].get<std::string>()); });
}

void Toolbox::Add(const std::string& name, const std::string& description, ordered_json properties,
                  std::vector<std::string> required, Run run) {
  const ordered_json parameters = {{"type", "object"}, {"properties", std::move(properties)}, {"required", required}};
  const ordered_json function = {{"name", name}, {"description", description}, {"parameters", parameters}};
  schemas_.push_back(ordered_json{{"type", "function"}, {"function", function}});
  runs_.push_back(std::move(run));
}

absl::StatusOr<ToolOutcome> Toolbox::Execute(const std::string& name, const std::string& arguments_json) const {
  const json arguments = json::parse(arguments_json, nullptr, false);
  for (size_t i = 0; i < runs_.size(); ++i) {
    const ordered_json& function = schemas_[i]["function"];
    if (function["name"] != name) continue;
    if (arguments.is_discarded()) {
      return absl::InvalidArgumentError(StrCat(name, ": the arguments are no JSON: ", arguments_json.substr(0, 200)));
    }
    AS_RETURN_IF_ERROR(CheckArguments(function, arguments));
    return runs_[i](arguments);
  }
  return absl::InvalidArgumentError(StrCat("there is no tool '", name.substr(0, 100), "'"));
}

absl::StatusOr<ToolOutcome> Toolbox::ListFiles(const std::string& path) const {
  namespace fs = std::filesystem;
  const fs::path inside = fs::path(path).relative_path().lexically_normal();
  if (!inside.empty() && *inside.begin() == "..") {
    return absl::InvalidArgumentError(StrCat("list_files: '", path, "' leaves the demo's folder"));
  }
  std::error_code ec;
  std::vector<std::string> names;
  for (fs::directory_iterator it(fs::path(files_root_) / inside, ec), end; !ec && it != end; it.increment(ec)) {
    if (names.size() < kMaxListed) names.push_back(it->path().filename().string());
  }
  if (ec) return absl::NotFoundError(StrCat("list_files: cannot list '", path, "': ", ec.message()));
  std::sort(names.begin(), names.end());  // directory order differs between file systems
  ToolOutcome out{"", names};
  for (const std::string& n : names) base::StrAppend(&out.content, out.content.empty() ? "" : ", ", n);
  return out;
}

}  // namespace agentserve::tools
