// Request traces and published benchmark descriptions.
#include "tools/workload/import.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "base/rng.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "tools/workload/lines.h"

namespace agentserve::workload {

using base::StrCat;
using nlohmann::json;

absl::Status ForEachLine(const std::string& file, std::string_view text,
                         const std::function<absl::Status(std::string_view line)>& one) {
  size_t number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = text.substr(at, end - at);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    at = end + 1;
    ++number;
    if (line.empty()) continue;
    absl::Status s;
    try {
      s = one(line);
    } catch (const json::exception& e) {
      s = absl::InvalidArgumentError(e.what());
    }
    if (!s.ok()) {
      return absl::InvalidArgumentError(base::ToAbsl(StrCat(file, ":", number, ": ", base::MessageOf(s))));
    }
  }
  return absl::OkStatus();
}

namespace {

// Signals that enough was read.
absl::Status Enough() { return absl::OutOfRangeError("enough"); }

absl::Status UnlessEnough(const absl::Status& s, bool enough) { return enough ? absl::OkStatus() : s; }

constexpr uint32_t kMooncakeBlock = 512;

}  // namespace

absl::StatusOr<Workload> ImportMooncake(const std::string& file, size_t most) {
  AS_ASSIGN_OR_RETURN(const std::string text, ReadMaybeGzip(file));
  Workload w;
  w.name = "mooncake";
  w.timed = true;
  const uint16_t chat = w.ClassOf("chat");
  std::unordered_map<uint64_t, uint32_t> first_owner;  // block id -> program that had it first
  bool enough = false;
  const absl::Status s = ForEachLine(file, text, [&](std::string_view line) {
    if (most > 0 && w.programs.size() >= most) {
      enough = true;
      return Enough();
    }
    const json row = json::parse(line);
    const auto number = static_cast<uint32_t>(w.programs.size());
    Program p;
    p.id = StrCat("mooncake-", number);
    p.workflow = chat;
    p.arrival_s = row.at("timestamp").get<double>() / 1000;
    Call c;
    c.in = std::max(1u, row.at("input_length").get<uint32_t>());
    c.out = std::max(1u, row.at("output_length").get<uint32_t>());
    uint32_t blocks = 0;
    for (const json& id : row.at("hash_ids")) {
      const auto [it, fresh] = first_owner.try_emplace(id.get<uint64_t>(), number);
      if (fresh || it->second == number) continue;
      ++blocks;
      c.ref_program = it->second;
      c.ref = 0;
    }
    if (c.ref != kNone) c.lcp = std::min({blocks * kMooncakeBlock, c.in, w.programs[c.ref_program].calls[0].in});
    p.calls.push_back(c);
    w.programs.push_back(std::move(p));
    return absl::OkStatus();
  });
  AS_RETURN_IF_ERROR(UnlessEnough(s, enough));
  AS_RETURN_IF_ERROR(Validate(w));
  return w;
}

absl::StatusOr<Workload> ImportAzure(const std::string& file, const std::string& class_name, size_t most) {
  AS_ASSIGN_OR_RETURN(const std::string text, ReadMaybeGzip(file));
  Workload w;
  w.name = StrCat("azure-", class_name);
  w.timed = true;
  const uint16_t workflow = w.ClassOf(class_name);
  double first = -1;
  bool enough = false, header = true;
  const absl::Status s = ForEachLine(file, text, [&](std::string_view line) {
    if (header) {
      header = false;
      if (line.starts_with("TIMESTAMP")) return absl::OkStatus();
    }
    if (most > 0 && w.programs.size() >= most) {
      enough = true;
      return Enough();
    }
    int day = 0, hour = 0, minute = 0, in = 0, out = 0;
    double second = 0;
    const std::string row(line);
    if (std::sscanf(row.c_str(), "%*d-%*d-%d %d:%d:%lf,%d,%d", &day, &hour, &minute, &second, &in, &out) != 6) {
      return absl::InvalidArgumentError("expected YYYY-MM-DD HH:MM:SS.F,IN,OUT");
    }
    const double at = ((day * 24.0 + hour) * 60 + minute) * 60 + second;
    if (first < 0) first = at;
    Program p;
    p.id = StrCat(w.name, "-", w.programs.size());
    p.workflow = workflow;
    p.arrival_s = std::max(0.0, at - first);
    Call c;
    c.in = static_cast<uint32_t>(std::max(1, in));
    c.out = static_cast<uint32_t>(std::max(1, out));
    p.calls.push_back(c);
    w.programs.push_back(std::move(p));
    return absl::OkStatus();
  });
  AS_RETURN_IF_ERROR(UnlessEnough(s, enough));
  AS_RETURN_IF_ERROR(Validate(w));
  return w;
}

namespace {

uint32_t DrawSize(const json& range, base::SplitMix64* rng) {
  const double least = range.at("min").get<double>(), most = range.at("max").get<double>();
  return static_cast<uint32_t>(least + rng->Uniform() * (most - least + 1) * 0.999999);
}

// All trajectories are queued at time 0, template by template; a step is queued when the one before it ends. Steps
// share no prompt.
absl::Status ReadTrajectories(const json& d, bool characters, Workload* w) {
  const json& t = d.at("trajectory_workload");
  w->name = "published-trajectories";
  base::SplitMix64 rng(t.at("generator_seed").get<uint64_t>());
  const int per_template = t.at("trajectories_per_template").get<int>();
  for (const char* name : {"react", "plan_execute", "reflect", "chat"}) {
    const uint16_t workflow = w->ClassOf(name);
    for (int k = 0; k < per_template; ++k) {
      Program p;
      p.id = StrCat(name, "-", k);
      p.workflow = workflow;
      p.deadline_s = t.at("deadline").at("seconds_after_start").at(name).get<double>();
      for (const json& step : t.at("templates_detail").at(name).at("steps")) {
        Call c;
        c.in = std::max(1u, DrawSize(step.at(characters ? "prompt_chars" : "prompt_llama3_bpe_tokens"), &rng));
        c.out = step.at("max_tokens").get<uint32_t>();
        if (!p.calls.empty()) c.wait_for = {static_cast<uint32_t>(p.calls.size() - 1)};
        p.calls.push_back(std::move(c));
      }
      w->programs.push_back(std::move(p));
    }
  }
  return absl::OkStatus();
}

// 100 single calls at time 0 in the published order; `label` is the class their rules gave each.
absl::Status ReadAblation(const json& d, Workload* w) {
  const json& a = d.at("ablation_workload");
  w->name = "published-ablation";
  w->labels = {"easy", "medium", "hard"};
  base::SplitMix64 rng(42);
  const uint32_t system = a.at("shared_system_prompt_llama3_bpe_tokens").get<uint32_t>();
  const uint32_t out = a.at("max_tokens_every_call").get<uint32_t>();
  for (const char letter : a.at("class_in_arrival_order").get<std::string>()) {
    const uint16_t label = letter == 'e' ? 1 : letter == 'm' ? 2 : 3;
    Program p;
    p.id = StrCat("call-", w->programs.size());
    p.workflow = w->ClassOf(w->labels[label - 1u]);
    p.prefix_tokens = system;
    p.prefix_id = 1;
    Call c;
    c.in = DrawSize(a.at("prompt_llama3_bpe_tokens").at(w->labels[label - 1u]), &rng);
    c.out = out;
    c.label = label;
    p.calls.push_back(c);
    w->programs.push_back(std::move(p));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Workload> ImportAgentServe(const std::string& file, Burst burst, bool characters) {
  AS_ASSIGN_OR_RETURN(const std::string text, ReadMaybeGzip(file));
  Workload w;
  w.timed = true;
  absl::Status s;
  try {
    const json d = json::parse(text);
    s = burst == Burst::kTrajectories ? ReadTrajectories(d, characters, &w) : ReadAblation(d, &w);
  } catch (const json::exception& e) {
    s = absl::InvalidArgumentError(base::ToAbsl(StrCat(file, ": ", e.what())));
  }
  AS_RETURN_IF_ERROR(s);
  AS_RETURN_IF_ERROR(Validate(w));
  return w;
}

}  // namespace agentserve::workload
