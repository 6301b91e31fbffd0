#include "router/core/worker_table.h"

#include <algorithm>

#include "base/check.h"
#include "base/strings.h"

namespace agentserve::router {
namespace {

std::string Hex(uint64_t v) { return base::StrCat("0x", absl::Hex(v, absl::kZeroPad16)); }

}  // namespace

absl::Status WorkerTable::Acceptable(const WorkerInfo& info) const {
  if (info.name.empty() || info.name.size() > 128) {
    return absl::InvalidArgumentError("endpoint.worker_id must have 1 to 128 bytes");
  }
  if (info.incarnation == 0) return absl::InvalidArgumentError("endpoint.incarnation must not be 0");
  if (info.address.empty()) return absl::InvalidArgumentError("address must be host:port of the worker's service");
  if (info.block_tokens == 0 || info.block_tokens > 4096) {
    return absl::InvalidArgumentError("endpoint.layout.block_tokens must be 1 to 4096");
  }
  if (info.max_batch == 0) return absl::InvalidArgumentError("max_batch must be at least 1");
  for (const auto& [name, incarnation] : superseded_) {
    if (name == info.name && incarnation == info.incarnation) {
      return absl::FailedPreconditionError(base::StrCat("worker \"", info.name, "\" incarnation ", Hex(incarnation),
                                                        " was replaced by a newer process with the same --worker-id; "
                                                        "stop one of them or give it another id"));
    }
  }
  for (const auto& [id, w] : workers_) {
    if (w.info.name == info.name) continue;  // replaced or refreshed
    if (w.info.model_fingerprint != info.model_fingerprint) {
      return absl::FailedPreconditionError(base::StrCat(
          "worker \"", info.name, "\" serves model \"", info.model_id, "\" with fingerprint ", info.model_fingerprint,
          ", but this cluster serves \"", w.info.model_id, "\" with fingerprint ", w.info.model_fingerprint,
          " (first seen on worker \"", w.info.name, "\"); start it with the same --model folder"));
    }
    if (w.info.layout_fingerprint != info.layout_fingerprint || w.info.block_tokens != info.block_tokens) {
      return absl::FailedPreconditionError(
          base::StrCat("worker \"", info.name, "\" has KV layout ", Hex(info.layout_fingerprint), " with ",
                       info.block_tokens, " tokens a block, but the cluster uses ", Hex(w.info.layout_fingerprint),
                       " with ", w.info.block_tokens, "; start it with the same --block-tokens and dtype"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<WorkerTable::Registered> WorkerTable::Register(const WorkerInfo& info, TimeNs now) {
  if (absl::Status s = Acceptable(info); !s.ok()) return s;
  Registered out;
  if (Worker* old = FindByName(info.name); old != nullptr) {
    if (old->info.incarnation == info.incarnation) {
      old->lease_until = now + config_.lease;
      old->info.draining = info.draining;
      old->info.prefill_tokens_per_s = info.prefill_tokens_per_s;
      out.id = old->id;
      return out;
    }
    out.replaced = old->id;
    if (superseded_.size() >= config_.max_superseded) superseded_.pop_front();
    superseded_.emplace_back(old->info.name, old->info.incarnation);
  } else if (workers_.size() >= config_.max_workers) {
    return absl::ResourceExhaustedError(
        base::StrCat("the router already knows ", workers_.size(), " workers, its most"));
  }
  Worker w;
  w.id = WorkerId(next_id_++);
  w.info = info;
  w.lease_until = now + config_.lease;
  w.last_message = now;
  w.retry_at = now;
  out.id = w.id;
  out.fresh = true;
  by_name_.insert_or_assign(info.name, w.id);
  workers_.emplace(w.id, std::move(w));
  return out;
}

void WorkerTable::Remove(WorkerId id) {
  auto it = workers_.find(id);
  AS_CHECK(it != workers_.end());
  AS_CHECK(it->second.sequences.empty()) << "worker removed with live sequences";
  auto name = by_name_.find(it->second.info.name);
  if (name != by_name_.end() && name->second == id) by_name_.erase(name);
  for (auto& [other, w] : workers_) w.peers.erase(id);
  workers_.erase(it);
}

Worker* WorkerTable::Find(WorkerId id) {
  auto it = workers_.find(id);
  return it == workers_.end() ? nullptr : &it->second;
}

const Worker* WorkerTable::Find(WorkerId id) const {
  auto it = workers_.find(id);
  return it == workers_.end() ? nullptr : &it->second;
}

Worker* WorkerTable::FindByName(std::string_view name) {
  auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : Find(it->second);
}

const Worker* WorkerTable::FindByName(std::string_view name) const {
  auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : Find(it->second);
}

bool WorkerTable::AnyDecode() const {
  return std::any_of(workers_.begin(), workers_.end(), [](const auto& e) {
    return e.second.info.role == Role::kDecode && e.second.phase != WorkerPhase::kDraining;
  });
}

bool WorkerTable::AnyReadyDecode() const {
  return std::any_of(workers_.begin(), workers_.end(),
                     [](const auto& e) { return e.second.info.role == Role::kDecode && e.second.ready(); });
}

void WorkerTable::Book(Worker* w, SeqId seq, const Booking& b) {
  AS_CHECK(w->sequences.insert(seq).second) << "sequence " << seq << " booked twice on " << w->info.name;
  w->unreflected_blocks += b.unreflected;
  w->growth_blocks += b.growth;
}

void WorkerTable::Unbook(Worker* w, SeqId seq, const Booking& b) {
  AS_CHECK_EQ(w->sequences.erase(seq), 1u);
  w->reserved_since_load.erase(seq);
  w->unreflected_blocks -= b.unreflected;
  w->growth_blocks -= b.growth;
}

void WorkerTable::CheckInvariants() const {
  AS_CHECK_LE(workers_.size(), config_.max_workers + 1);
  for (const auto& [name, id] : by_name_) {
    auto it = workers_.find(id);
    AS_CHECK(it != workers_.end()) << name;
    AS_CHECK(it->second.info.name == name);
  }
  for (const auto& [id, w] : workers_) {
    AS_CHECK(w.id == id);
    AS_CHECK_GE(w.unreflected_blocks, 0);
    AS_CHECK_GE(w.growth_blocks, 0);
    for (SeqId s : w.reserved_since_load) AS_CHECK(w.sequences.count(s) == 1);
    if (w.phase == WorkerPhase::kReady) AS_CHECK(w.linked);
  }
}

}  // namespace agentserve::router
