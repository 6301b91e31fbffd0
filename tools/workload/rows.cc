// Rows on disk: one JSON object a line.
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "base/status_macros.h"
#include "base/strings.h"
#include "tools/workload/workload.h"

namespace agentserve::workload {

using base::StrCat;
using nlohmann::json;

absl::Status WriteRows(const Workload& w, const std::string& file) {
  std::ofstream out(file);
  out << json{{"workload", w.name}, {"timed", w.timed}, {"programs", w.programs.size()}, {"calls", w.calls()}}.dump()
      << "\n";
  for (const Program& p : w.programs) {
    for (size_t i = 0; i < p.calls.size(); ++i) {
      const Call& c = p.calls[i];
      json row = {{"program", p.id}, {"call", i},   {"tenant", w.tenants[p.tenant]}, {"class", w.classes[p.workflow]},
                  {"in", c.in},      {"out", c.out}};
      if (!c.wait_for.empty()) row["wait_for"] = c.wait_for;
      if (c.wait_ms > 0) row[c.user_turn ? "think_ms" : "tool_wait_ms"] = c.wait_ms;
      if (c.user_turn) row["user_turn"] = true;
      if (c.background) row["background"] = true;
      if (c.ref != kNone) row["ref"] = c.ref;
      if (c.ref_program != kNone) row["ref_program"] = w.programs[c.ref_program].id;
      if (c.lcp > 0) row["lcp"] = c.lcp;
      if (c.tool > 0) row["tool"] = w.tools[c.tool];
      if (c.label > 0) row["label"] = w.labels[c.label - 1];
      if (i == 0) {
        if (p.prefix_tokens > 0) row["prefix"] = {{"id", p.prefix_id}, {"tokens", p.prefix_tokens}};
        if (p.arrival_s > 0) row["arrival_s"] = p.arrival_s;
        if (p.deadline_s > 0) row["deadline_s"] = p.deadline_s;
      }
      out << row.dump() << "\n";
    }
  }
  out.close();
  if (out.good()) return absl::OkStatus();
  return absl::PermissionDeniedError(base::ToAbsl(StrCat("cannot write ", file, ": ", strerror(errno))));
}

namespace {

class RowReader {
 public:
  explicit RowReader(Workload* w) : w_(w) { w_->tenants.clear(); }

  absl::Status Header(const json& row) {
    w_->name = row.value("workload", "rows");
    w_->timed = row.value("timed", false);
    return absl::OkStatus();
  }
  absl::Status Row(const json& row) {
    const std::string id = row.at("program").get<std::string>();
    const auto [it, fresh] = by_id_.try_emplace(id, static_cast<uint32_t>(w_->programs.size()));
    if (fresh) Begin(id, row);
    if (it->second + 1 != w_->programs.size()) return absl::InvalidArgumentError("rows of a program must be together");
    Program& p = w_->programs[it->second];
    if (row.value("call", p.calls.size()) != p.calls.size()) {
      return absl::InvalidArgumentError("calls of a program must be in order, from 0");
    }
    Call c;
    c.in = row.at("in").get<uint32_t>();
    c.out = row.at("out").get<uint32_t>();
    c.wait_for = row.value("wait_for", std::vector<uint32_t>());
    c.user_turn = row.value("user_turn", row.contains("think_ms"));
    c.wait_ms = row.value("think_ms", row.value("tool_wait_ms", 0.0));
    c.background = row.value("background", false);
    c.ref = row.value("ref", kNone);
    c.lcp = row.value("lcp", 0u);
    if (row.contains("ref_program")) {
      const auto other = by_id_.find(row["ref_program"].get<std::string>());
      if (other == by_id_.end()) return absl::InvalidArgumentError("ref_program is not an earlier program");
      c.ref_program = other->second;
    }
    if (row.contains("tool")) c.tool = w_->ToolOf(row["tool"].get<std::string>());
    if (row.contains("label")) c.label = Label(row["label"].get<std::string>());
    p.calls.push_back(std::move(c));
    return absl::OkStatus();
  }

 private:
  void Begin(const std::string& id, const json& row) {
    Program p;
    p.id = id;
    p.workflow = w_->ClassOf(row.value("class", "agent"));
    p.tenant = Place(row.value("tenant", "default"), &w_->tenants);
    if (row.contains("prefix")) {
      p.prefix_id = row["prefix"].value("id", uint64_t{0});
      p.prefix_tokens = row["prefix"].value("tokens", 0u);
    }
    p.arrival_s = row.value("arrival_s", 0.0);
    p.deadline_s = row.value("deadline_s", 0.0);
    w_->programs.push_back(std::move(p));
  }
  static uint16_t Place(const std::string& name, std::vector<std::string>* names) {
    for (size_t i = 0; i < names->size(); ++i) {
      if ((*names)[i] == name) return static_cast<uint16_t>(i);
    }
    names->push_back(name);
    return static_cast<uint16_t>(names->size() - 1);
  }
  uint16_t Label(const std::string& name) { return static_cast<uint16_t>(Place(name, &w_->labels) + 1); }

  Workload* w_;
  std::map<std::string, uint32_t> by_id_;
};

}  // namespace

absl::Status ReadRows(const std::string& file, Workload* w) {
  std::ifstream in(file);
  if (!in) return absl::NotFoundError(base::ToAbsl(StrCat("cannot read ", file, ": ", strerror(errno))));
  *w = {};
  RowReader reader(w);
  size_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (line.empty()) continue;
    absl::Status s;
    try {
      const json row = json::parse(line);
      s = number == 1 && row.contains("workload") ? reader.Header(row) : reader.Row(row);
    } catch (const json::exception& e) {
      s = absl::InvalidArgumentError(e.what());
    }
    if (!s.ok()) {
      return absl::InvalidArgumentError(base::ToAbsl(StrCat(file, ":", number, ": ", base::MessageOf(s))));
    }
  }
  return Validate(*w);
}

}  // namespace agentserve::workload
