#include "kvstore/service.h"

#include <optional>

#include "base/log.h"
#include "base/rng.h"
#include "base/strings.h"
#include "kvstore/convert.h"
#include "kvstore/watch_reactor.h"

namespace agentserve::kvstore {

using base::Field;

namespace {

// Work is dated by the same thread that ends leases: a tenth of a lease keeps expiry within 10 % of its time.
constexpr int kTicksPerLease = 10;

}  // namespace

// Takes the batches of one Publish stream, one at a time.
class KvStoreServiceImpl::PublishReactor final : public grpc::ServerReadReactor<v1::PublishRequest> {
 public:
  PublishReactor(KvStoreServiceImpl* service, v1::PublishResponse* response) : service_(service), response_(response) {
    StartRead(&request_);
  }
  void OnReadDone(bool ok) override {
    if (!ok) {  // the client has sent everything, or is gone
      service_->Count("Publish", absl::OkStatus());
      Finish(grpc::Status::OK);
      return;
    }
    const std::vector<SealedBlock> sealed = SealedListFromProto(request_.sealed());
    const std::vector<BlockRef> dropped = RefsFromProto(request_.dropped());
    absl::StatusOr<uint32_t> applied = 0;
    {
      std::lock_guard lock(service_->core_mu_);
      applied = service_->core_.Publish({request_.worker_id(), request_.incarnation()}, sealed, dropped,
                                        service_->clock_->Now());
      service_->LogMayHaveGrown();
    }
    if (!applied.ok()) {
      service_->Count("Publish", applied.status());
      Finish(ToGrpc(applied.status()));
      return;
    }
    response_->set_applied(response_->applied() + *applied);
    StartRead(&request_);
  }
  void OnDone() override { delete this; }

 private:
  KvStoreServiceImpl* const service_;
  v1::PublishResponse* const response_;
  v1::PublishRequest request_;
};

KvStoreServiceImpl::KvStoreServiceImpl(const ServiceOptions& options, const base::Clock* clock, base::Metrics* metrics)
    : options_(options), clock_(clock), metrics_(metrics), core_(options.limits), loop_([this] { Loop(); }) {}

KvStoreServiceImpl::~KvStoreServiceImpl() {
  Stop();
  loop_.join();
  std::unique_lock lock(watch_mu_);
  watch_ended_.wait(lock, [this] { return watches_.empty(); });
}

void KvStoreServiceImpl::Stop() {
  {
    std::lock_guard lock(watch_mu_);
    refuse_watches_ = true;
  }
  std::lock_guard lock(core_mu_);
  stopped_ = true;
  changed_.notify_all();
}

void KvStoreServiceImpl::LogMayHaveGrown() {
  if (core_.log().last_sequence() != announced_) changed_.notify_one();
}

void KvStoreServiceImpl::Loop() {
  const auto tick = std::chrono::nanoseconds(options_.limits.lease / kTicksPerLease);
  std::vector<std::shared_ptr<WatchReactor>> watches;
  TimeNs last_tick = clock_->Now();
  ExportMetrics();
  for (bool stop = false; !stop;) {
    bool ticked = false;
    {
      std::unique_lock lock(core_mu_);
      changed_.wait_for(lock, tick, [this] { return stopped_ || core_.log().last_sequence() != announced_; });
      stop = stopped_;
      const TimeNs now = clock_->Now();
      if (now - last_tick >= tick.count()) {
        core_.Tick(now);
        last_tick = now;
        ticked = true;
      }
      announced_ = core_.log().last_sequence();
    }
    {
      std::lock_guard lock(watch_mu_);
      watches = watches_;
    }
    for (const auto& w : watches) {
      if (stop) {
        w->End({grpc::StatusCode::UNAVAILABLE, "the kvstore is shutting down; watch again elsewhere or later"});
      } else {
        w->Poke();
      }
    }
    watches.clear();
    if (ticked || stop) ExportMetrics();
  }
}

void KvStoreServiceImpl::Count(const char* method, const absl::Status& status) {
  metrics_
      ->Counter("agentserve_kvstore_rpcs_total", "Finished calls by method and status code.",
                {{"method", method}, {"code", absl::StatusCodeToString(status.code())}})
      .Increment();
}

void KvStoreServiceImpl::ExportMetrics() {
  CoreCounters now;
  size_t watchers = 0;
  {
    std::lock_guard lock(watch_mu_);
    watchers = watches_.size();
  }
  const auto gauge = [&](const char* name, const char* help, double value) { metrics_->Gauge(name, help).Set(value); };
  {
    std::lock_guard lock(core_mu_);
    now = core_.counters();
    gauge("agentserve_kvstore_pools", "Pools with a live lease.", core_.pools());
    gauge("agentserve_kvstore_blocks", "Sealed blocks in the directory.", static_cast<double>(core_.blocks()));
    gauge("agentserve_kvstore_tickets", "Open read tickets.", core_.tickets().tickets());
    gauge("agentserve_kvstore_sequence", "Number of the last directory change.",
          static_cast<double>(core_.log().last_sequence()));
  }
  gauge("agentserve_kvstore_watchers", "Watch streams.", static_cast<double>(watchers));
  const auto counter = [&](const char* name, const char* help, uint64_t before, uint64_t after) {
    metrics_->Counter(name, help).Increment(static_cast<double>(after - before));
  };
  counter("agentserve_kvstore_blocks_sealed_total", "Sealed blocks taken.", exported_.sealed, now.sealed);
  counter("agentserve_kvstore_blocks_dropped_total", "Dropped blocks taken.", exported_.dropped, now.dropped);
  counter("agentserve_kvstore_stale_changes_total", "Repeated or late changes that were ignored.",
          exported_.stale_changes, now.stale_changes);
  counter("agentserve_kvstore_lease_expiries_total", "Pools whose lease ran out.", exported_.lease_expiries,
          now.lease_expiries);
  counter("agentserve_kvstore_replaced_pools_total", "Pools replaced by a new incarnation.", exported_.replaced_pools,
          now.replaced_pools);
  counter("agentserve_kvstore_tickets_opened_total", "Tickets opened.", exported_.tickets_opened, now.tickets_opened);
  counter("agentserve_kvstore_tickets_expired_total", "Tickets that ran out.", exported_.tickets_expired,
          now.tickets_expired);
  exported_ = now;
}

template <typename Body>
grpc::ServerUnaryReactor* KvStoreServiceImpl::Unary(grpc::CallbackServerContext* context, const char* method,
                                                    const Body& body) {
  absl::Status status;
  {
    std::lock_guard lock(core_mu_);
    status = body(core_, clock_->Now());
    LogMayHaveGrown();
  }
  Count(method, status);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status));
  return reactor;
}

grpc::ServerUnaryReactor* KvStoreServiceImpl::RegisterPool(grpc::CallbackServerContext* context,
                                                           const v1::RegisterPoolRequest* request,
                                                           v1::RegisterPoolResponse* response) {
  const PoolSpec spec = SpecFromProto(request->endpoint());
  response->set_kvstore_incarnation(options_.incarnation);
  response->set_lease_ms(static_cast<uint32_t>(options_.limits.lease / base::kNsPerMs));
  return Unary(context, "RegisterPool", [&](KvStoreCore& core, TimeNs now) {
    const absl::Status status = core.RegisterPool(spec, now);
    if (status.ok()) {
      AS_LOG(kInfo, "kvstore.pool.registered")
          << Field("worker", spec.worker_id) << Field("incarnation", spec.incarnation)
          << Field("blocks", spec.num_blocks);
    }
    return status;
  });
}

grpc::ServerUnaryReactor* KvStoreServiceImpl::Renew(grpc::CallbackServerContext* context,
                                                    const v1::RenewRequest* request, v1::RenewResponse* response) {
  response->set_kvstore_incarnation(options_.incarnation);
  response->set_lease_ms(static_cast<uint32_t>(options_.limits.lease / base::kNsPerMs));
  return Unary(context, "Renew", [&](KvStoreCore& core, TimeNs now) {
    return core.Renew({request->worker_id(), request->incarnation()}, now);
  });
}

grpc::ServerUnaryReactor* KvStoreServiceImpl::Release(grpc::CallbackServerContext* context,
                                                      const v1::ReleaseRequest* request, v1::ReleaseResponse*) {
  return Unary(context, "Release", [&](KvStoreCore& core, TimeNs) {
    core.Release({request->worker_id(), request->incarnation()});
    return absl::OkStatus();
  });
}

grpc::ServerReadReactor<v1::PublishRequest>* KvStoreServiceImpl::Publish(grpc::CallbackServerContext*,
                                                                         v1::PublishResponse* response) {
  return new PublishReactor(this, response);
}

grpc::ServerUnaryReactor* KvStoreServiceImpl::Locate(grpc::CallbackServerContext* context,
                                                     const v1::LocateRequest* request, v1::LocateResponse* response) {
  const std::vector<Hash128> chain = HashesFromProto(request->chain());
  return Unary(context, "Locate", [&](KvStoreCore& core, TimeNs) {
    const auto places = core.Locate(chain, request->max_places());
    if (!places.ok()) return places.status();
    for (const Place& place : *places) {
      v1::Place* out = response->add_places();
      SpecToProto(place.pool, out->mutable_endpoint());
      for (const BlockRef& ref : place.blocks) RefToProto(ref, out->add_blocks());
    }
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* KvStoreServiceImpl::OpenTicket(grpc::CallbackServerContext* context,
                                                         const v1::OpenTicketRequest* request,
                                                         v1::OpenTicketResponse* response) {
  const TicketRequest ticket{{request->reader_id(), request->reader_incarnation()},
                             {request->worker_id(), request->incarnation()},
                             RefsFromProto(request->blocks()),
                             MsToNs(request->ttl_ms()),
                             request->idempotency_key()};
  const Hash128 fresh{base::EntropyUint64(), base::EntropyUint64()};
  return Unary(context, "OpenTicket", [&](KvStoreCore& core, TimeNs now) {
    const auto grant = core.OpenTicket(ticket, fresh, now);
    if (!grant.ok()) return grant.status();
    response->set_ticket(TicketToBytes(grant->ticket));
    response->set_ttl_ms(static_cast<uint64_t>(grant->ttl / base::kNsPerMs));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* KvStoreServiceImpl::CloseTicket(grpc::CallbackServerContext* context,
                                                          const v1::CloseTicketRequest* request,
                                                          v1::CloseTicketResponse*) {
  return Unary(context, "CloseTicket", [&](KvStoreCore& core, TimeNs) {
    core.CloseTicket(TicketFromBytes(request->ticket()));
    return absl::OkStatus();
  });
}

grpc::ServerWriteReactor<v1::WatchResponse>* KvStoreServiceImpl::Watch(grpc::CallbackServerContext*,
                                                                       const v1::WatchRequest* request) {
  std::optional<grpc::Status> refusal;
  auto watch = std::make_shared<WatchReactor>(this, *request);
  {
    std::lock_guard lock(watch_mu_);
    if (refuse_watches_) {
      refusal.emplace(grpc::StatusCode::UNAVAILABLE, "the kvstore is shutting down");
    } else if (watches_.size() >= options_.max_watchers) {
      refusal.emplace(grpc::StatusCode::RESOURCE_EXHAUSTED,
                      base::StrCat("more than ", options_.max_watchers, " watchers"));
    } else {
      watches_.push_back(watch);
    }
  }
  watch->Open(std::move(refusal));
  return watch.get();
}

grpc::ServerUnaryReactor* KvStoreServiceImpl::Audit(grpc::CallbackServerContext* context, const v1::AuditRequest*,
                                                    v1::AuditResponse* response) {
  {
    std::lock_guard lock(watch_mu_);
    response->set_watchers(static_cast<uint32_t>(watches_.size()));
  }
  return Unary(context, "Audit", [&](KvStoreCore& core, TimeNs now) {
    const AuditReport report = core.Audit(now);
    response->set_pools(report.pools);
    response->set_blocks(report.blocks);
    response->set_host_blocks(report.host_blocks);
    response->set_tickets(report.tickets);
    response->set_ticketed_blocks(report.ticketed_blocks);
    response->set_sequence(report.sequence);
    response->set_kvstore_incarnation(options_.incarnation);
    for (const std::string& v : report.violations) response->add_violations(v);
    return absl::OkStatus();
  });
}

}  // namespace agentserve::kvstore
