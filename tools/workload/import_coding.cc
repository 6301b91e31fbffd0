// Coding-agent sessions. See ../../docs/scheduling_results.md for what is kept and what is changed.
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/rng.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "tools/workload/import.h"
#include "tools/workload/lines.h"

namespace agentserve::workload {
namespace {

using base::StrCat;
using nlohmann::json;

constexpr uint32_t kTraceBlock = 64;

// Block ids as runs of consecutive ones.
using Runs = std::vector<std::pair<uint64_t, uint32_t>>;

Runs Head(const Runs& runs, uint32_t blocks) {
  Runs out;
  for (const auto& [first, count] : runs) {
    if (blocks == 0) break;
    out.emplace_back(first, std::min(count, blocks));
    blocks -= out.back().second;
  }
  return out;
}

uint32_t CommonBlocks(const Runs& a, const Runs& b) {
  uint32_t common = 0;
  size_t i = 0, j = 0;
  uint32_t ai = 0, bj = 0;
  while (i < a.size() && j < b.size()) {
    if (a[i].first + ai != b[j].first + bj) break;
    const uint32_t n = std::min(a[i].second - ai, b[j].second - bj);
    common += n;
    ai += n, bj += n;
    if (ai == a[i].second) ++i, ai = 0;
    if (bj == b[j].second) ++j, bj = 0;
  }
  return common;
}

// One session being read.
class Session {
 public:
  Session(const json& source, const CodingOptions& options, Workload* w) : s_(source), o_(options), w_(w) {}

  absl::Status Read() {
    const json& calls = s_.at("calls");
    ids_.resize(calls.size());
    piece_of_.assign(calls.size(), 0);
    place_.assign(calls.size(), 0);
    Begin();
    for (size_t i = 0; i < calls.size(); ++i) AS_RETURN_IF_ERROR(ReadCall(calls[i], i));
    return absl::OkStatus();
  }

 private:
  void Begin() {
    Program p;
    p.id = StrCat(s_.at("program_id").get<std::string>(), o_.jobs_per_session == 0 ? "" : StrCat(".", pieces_));
    p.workflow = w_->ClassOf("coding");
    if (o_.share_system) {
      const uint32_t tools = s_.value("tool_tokens", 0u), system = s_.value("system_tokens", 0u);
      p.prefix_tokens = (tools + system) / o_.divide;
      p.prefix_id = base::SplitMix64(uint64_t{tools} << 32 | system).Next();
    }
    w_->programs.push_back(std::move(p));
    ++pieces_;
    jobs_ = 0;
    last_of_agent_.clear();
  }

  double Wait(const json& row, const char* key, double cap_s) const {
    const double ms = row.value(key, 0.0) * o_.gap_scale;
    return cap_s > 0 ? std::min(ms, cap_s * 1000) : ms;
  }

  absl::Status ReadCall(const json& row, size_t index) {
    const uint32_t agent = row.value("agent", 0u);
    const bool user = agent == 0 && (row.contains("think_ms") || last_of_agent_.count(0) == 0);
    if (user && o_.jobs_per_session > 0 && jobs_ >= o_.jobs_per_session) Begin();
    jobs_ += user;
    ReadIds(row, index);
    Program& p = w_->programs.back();
    Call c;
    c.in = std::max(1u, row.at("in").get<uint32_t>() / o_.divide);
    c.out = std::clamp(row.at("out").get<uint32_t>(), 1u, o_.out_cap);
    c.user_turn = user;
    ReadWaits(row, index, agent, &c);
    if (p.calls.empty()) c.wait_for.clear(), c.wait_ms = 0;
    ReadShared(index, &c);
    piece_of_[index] = pieces_;
    place_[index] = static_cast<uint32_t>(p.calls.size());
    last_of_agent_[agent] = index;
    p.calls.push_back(std::move(c));
    return absl::OkStatus();
  }

  void ReadIds(const json& row, size_t index) {
    const uint32_t lcp = row.value("lcp", 0u);
    if (lcp > 0) {
      const size_t ref = row.value("ref", index - 1);
      if (ref < index) ids_[index] = Head(ids_[ref], lcp);
    }
    if (!row.contains("new")) return;
    const json& fresh = row["new"];
    for (size_t k = 0; k + 1 < fresh.size(); k += 2) {
      ids_[index].emplace_back(fresh[k].get<uint64_t>(), fresh[k + 1].get<uint32_t>());
    }
  }

  bool InPiece(size_t index) const { return piece_of_[index] == pieces_; }

  void ReadWaits(const json& row, size_t index, uint32_t agent, Call* c) {
    const auto previous = last_of_agent_.find(agent);
    const bool think = row.contains("think_ms");
    c->wait_ms = think ? Wait(row, "think_ms", o_.think_cap_s) : Wait(row, "tool_ms", o_.tool_cap_s);
    if (!think && row.contains("tool_ms")) c->tool = w_->ToolOf("tool");
    if (agent != 0) c->background = Background(agent);
    if (previous != last_of_agent_.end()) {
      c->wait_for.push_back(place_[previous->second]);
    } else if (agent != 0) {
      const size_t parent = row.value("parent", size_t{0});
      c->wait_for.push_back(parent < index && InPiece(parent) ? place_[parent] : 0);
      c->wait_ms = 0;
    }
    if (!row.contains("join")) return;
    bool joined = false;
    for (const json& id : row["join"]) {
      const auto last = last_of_agent_.find(id.get<uint32_t>());
      if (last == last_of_agent_.end()) continue;
      c->wait_for.push_back(place_[last->second]);
      joined = true;
    }
    if (joined) c->wait_ms = Wait(row, "join_ms", o_.tool_cap_s);
  }

  bool Background(uint32_t agent) const {
    if (!s_.contains("agents")) return false;
    for (const json& a : s_["agents"]) {
      if (a.value("id", 0u) == agent) return a.value("status", "") == "async_launched";
    }
    return false;
  }

  // The earlier call of this piece with the longest common prefix.
  void ReadShared(size_t index, Call* c) {
    uint32_t best = 0;
    for (size_t k = index; k-- > 0 && InPiece(k);) {
      const uint32_t common = CommonBlocks(ids_[index], ids_[k]);
      if (common <= best) continue;
      best = common;
      c->ref = place_[k];
      if (best == Blocks(ids_[index])) break;
    }
    const Program& p = w_->programs.back();
    c->lcp = best * kTraceBlock / o_.divide;
    if (c->ref == kNone) return;
    const Call& r = p.calls[c->ref];
    c->lcp = std::min({c->lcp, c->in, r.in});
    // The head of the prompt belongs to the shared prefix either way; a shorter match would hide it.
    if (c->lcp <= std::min(p.prefix_tokens, c->in)) c->ref = kNone, c->lcp = 0;
  }

  static uint32_t Blocks(const Runs& runs) {
    uint32_t n = 0;
    for (const auto& [first, count] : runs) n += count;
    return n;
  }

  const json& s_;
  const CodingOptions& o_;
  Workload* w_;
  std::vector<Runs> ids_;
  std::vector<uint32_t> piece_of_, place_;  // by index in the trace: piece (from 1), place in it
  std::map<uint32_t, size_t> last_of_agent_;
  uint32_t pieces_ = 0, jobs_ = 0;
};

}  // namespace

absl::StatusOr<Workload> ImportCoding(const std::string& file, const CodingOptions& options) {
  if (options.divide < 1 || options.out_cap < 1) return absl::InvalidArgumentError("divide and out_cap must be >= 1");
  AS_ASSIGN_OR_RETURN(const std::string text, ReadMaybeGzip(file));
  Workload w;
  w.name = "coding";
  AS_RETURN_IF_ERROR(ForEachLine(file, text, [&](std::string_view line) {
    const json source = json::parse(line);
    return Session(source, options, &w).Read();
  }));
  if (absl::Status s = Validate(w); !s.ok()) return s;
  return w;
}

}  // namespace agentserve::workload
