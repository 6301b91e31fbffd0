// Service, publishing client and directory mirror together, over real gRPC in one process.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/metrics.h"
#include "base/rng.h"
#include "base/strings.h"
#include "kvstore/client/directory_mirror.h"
#include "kvstore/client/kv_store_client.h"
#include "kvstore/convert.h"
#include "kvstore/core/core_test_util.h"
#include "kvstore/service.h"

namespace agentserve::kvstore {
namespace {

using namespace std::chrono_literals;

// A kvstore process; a second one on the same port is its restart.
class Server {
 public:
  explicit Server(uint64_t incarnation, int port = 0, const CoreLimits& limits = {}, size_t max_watchers = 4)
      : metrics_(base::Labels{}), service_({limits, incarnation, max_watchers, 3}, &clock_, &metrics_) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(base::StrCat("127.0.0.1:", port), grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    AS_CHECK(server_ != nullptr) << "port " << port;
  }
  ~Server() {
    service_.Stop();
    server_->Shutdown(std::chrono::system_clock::now() + 200ms);
    server_->Wait();
  }
  int port() const { return port_; }
  std::string address() const { return base::StrCat("127.0.0.1:", port_); }
  std::string metrics() const { return metrics_.Render(); }
  std::unique_ptr<v1::KvStoreService::Stub> stub() const {
    return v1::KvStoreService::NewStub(grpc::CreateChannel(address(), grpc::InsecureChannelCredentials()));
  }
  v1::AuditResponse Audit() const {
    grpc::ClientContext context;
    v1::AuditResponse response;
    AS_CHECK(stub()->Audit(&context, {}, &response).ok());
    return response;
  }

 private:
  base::MonotonicClock clock_;
  base::Metrics metrics_;
  KvStoreServiceImpl service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

template <typename Fn>
bool Eventually(const Fn& fn, int timeout_ms = 5000) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  while (std::chrono::steady_clock::now() < until) {
    if (fn()) return true;
    std::this_thread::sleep_for(5ms);
  }
  return fn();
}

KvStoreClientOptions ClientOptions(const Server& server, const std::string& id = "a", uint64_t incarnation = 1) {
  KvStoreClientOptions o;
  o.address = server.address();
  o.pool = Spec(id, incarnation, 64);
  o.flush_ms = 1;
  o.backoff_least_ms = 10;
  o.backoff_most_ms = 100;
  return o;
}
std::unique_ptr<DirectoryMirror> StartMirror(const Server& server) {
  return DirectoryMirror::Start({server.address(), 10, 100, nullptr});
}
std::string Found(const DirectoryMirror& mirror, std::initializer_list<uint64_t> chain) {
  std::string out;
  for (const PrefixMatch& m : mirror.Lookup(Chain(chain))) {
    out += base::StrCat(m.pool.worker_id, m.pool.incarnation, ":", m.blocks, " ");
  }
  return out;
}

TEST(LinkTest, WhatIsSealedIsFoundAndWhatIsDroppedIsNot) {
  Server server(5);
  auto mirror = StartMirror(server);
  ASSERT_TRUE(mirror->WaitFor(0, 5000));
  auto a = KvStoreClient::Start(ClientOptions(server, "a"));
  auto b = KvStoreClient::Start(ClientOptions(server, "b", 2));
  a->Seal(Sealed(0, 1, 10));
  a->Seal(Sealed(1, 1, 11));
  b->Seal(Sealed(7, 3, 10));
  ASSERT_TRUE(a->Flush(5000) && b->Flush(5000));
  ASSERT_TRUE(mirror->WaitFor(server.Audit().sequence(), 5000));
  EXPECT_EQ(Found(*mirror, {10, 11, 12}), "a1:2 b2:1 ");
  a->Drop(1, 1);
  a->Drop(5, 9);  // never sealed: no message
  ASSERT_TRUE(a->Flush(5000));
  EXPECT_TRUE(Eventually([&] { return Found(*mirror, {10, 11}) == "a1:1 b2:1 "; }));
  EXPECT_EQ(a->stats().published, 3u);
  EXPECT_EQ(a->stats().sealed, 1u);
  b.reset();  // releases its pool
  EXPECT_TRUE(Eventually([&] { return Found(*mirror, {10}) == "a1:1 "; }));
  EXPECT_EQ(server.Audit().violations_size(), 0);
}

TEST(LinkTest, SnapshotOfManyBlocksThenDeltas) {
  Server server(5);
  auto a = KvStoreClient::Start(ClientOptions(server));
  for (uint32_t i = 0; i < 50; ++i) a->Seal(Sealed(i, 1, i));
  ASSERT_TRUE(a->Flush(5000));
  auto mirror = StartMirror(server);
  ASSERT_TRUE(mirror->WaitFor(50, 5000));
  EXPECT_EQ(mirror->stats().blocks, 50u);
  for (uint32_t i = 0; i < 50; ++i) a->Drop(i, 1);
  ASSERT_TRUE(a->Flush(5000));
  EXPECT_TRUE(Eventually([&] { return mirror->stats().blocks == 0; }));
}

// The kvstore is killed and comes back empty: clients republish by themselves, mirrors are empty in between.
TEST(LinkTest, RestartIsHealed) {
  auto server = std::make_unique<Server>(5);
  const int port = server->port();
  auto a = KvStoreClient::Start(ClientOptions(*server));
  auto mirror = StartMirror(*server);
  for (uint32_t i = 0; i < 10; ++i) a->Seal(Sealed(i, 1, i));
  ASSERT_TRUE(a->Flush(5000));
  ASSERT_TRUE(Eventually([&] { return mirror->stats().blocks == 10; }));
  server.reset();
  ASSERT_TRUE(Eventually([&] { return !mirror->complete() && mirror->stats().blocks == 0; }));
  a->Drop(3, 1);  // while it is away
  a->Seal(Sealed(4, 2, 40));
  a->Seal(Sealed(20, 1, 20));
  server = std::make_unique<Server>(6, port);
  ASSERT_TRUE(a->Flush(10'000));
  ASSERT_TRUE(Eventually([&] { return mirror->stats().blocks == 10; }));
  EXPECT_EQ(Found(*mirror, {3}), "");
  EXPECT_EQ(Found(*mirror, {4}), "");
  EXPECT_EQ(Found(*mirror, {40}), "a1:1 ");
  EXPECT_EQ(Found(*mirror, {20}), "a1:1 ");
  EXPECT_EQ(a->stats().registrations, 2u);
  EXPECT_EQ(server->Audit().blocks(), 10u);
}

// The worker is paused longer than its lease (its renewals cannot run): it registers again and republishes.
TEST(LinkTest, LostLeaseIsHealed) {
  CoreLimits limits;
  limits.lease = 100 * base::kNsPerMs;
  Server server(5, 0, limits);
  auto a = KvStoreClient::Start(ClientOptions(server));
  a->Seal(Sealed(0, 1, 10));
  ASSERT_TRUE(a->Flush(5000));
  std::this_thread::sleep_for(300ms);
  EXPECT_EQ(server.Audit().pools(), 1u) << "renewals keep the lease";
  EXPECT_EQ(a->stats().registrations, 1u);
  grpc::ClientContext context;
  v1::ReleaseRequest request;
  v1::ReleaseResponse response;
  request.set_worker_id("a");
  request.set_incarnation(1);
  ASSERT_TRUE(server.stub()->Release(&context, request, &response).ok());
  EXPECT_TRUE(Eventually([&] { return server.Audit().blocks() == 1 && a->stats().registrations == 2; }));
}

TEST(LinkTest, SilentWorkerIsForgotten) {
  CoreLimits limits;
  limits.lease = 100 * base::kNsPerMs;
  Server server(5, 0, limits);
  auto mirror = StartMirror(server);
  auto stub = server.stub();
  {
    grpc::ClientContext context;
    v1::RegisterPoolRequest request;
    v1::RegisterPoolResponse response;
    SpecToProto(Spec("a", 1), request.mutable_endpoint());
    ASSERT_TRUE(stub->RegisterPool(&context, request, &response).ok());
    EXPECT_EQ(response.lease_ms(), 100u);
    EXPECT_EQ(response.kvstore_incarnation(), 5u);
  }
  {
    grpc::ClientContext context;
    v1::PublishResponse response;
    auto writer = stub->Publish(&context, &response);
    v1::PublishRequest request;
    request.set_worker_id("a");
    request.set_incarnation(1);
    SealedToProto(Sealed(0, 1, 10), request.add_sealed());
    ASSERT_TRUE(writer->Write(request));
    writer->WritesDone();
    ASSERT_TRUE(writer->Finish().ok());
    EXPECT_EQ(response.applied(), 1u);
  }
  EXPECT_TRUE(Eventually([&] { return mirror->stats().blocks == 1; }));
  EXPECT_TRUE(Eventually([&] { return mirror->stats().blocks == 0; }, 1000));
  EXPECT_TRUE(mirror->complete());
  EXPECT_TRUE(Eventually([&] { return server.metrics().find("lease_expiries_total 1") != std::string::npos; }));
}

TEST(LinkTest, TicketsAndLocateOverTheWire) {
  Server server(5);
  auto a = KvStoreClient::Start(ClientOptions(server));
  a->Seal(Sealed(0, 1, 10));
  a->Seal(Sealed(1, 1, 11));
  ASSERT_TRUE(a->Flush(5000));
  auto stub = server.stub();
  v1::LocateResponse located;
  {
    grpc::ClientContext context;
    v1::LocateRequest request;
    for (const Hash128& h : Chain({10, 11, 12})) HashToProto(h, request.add_chain());
    ASSERT_TRUE(stub->Locate(&context, request, &located).ok());
    ASSERT_EQ(located.places_size(), 1);
    EXPECT_EQ(SpecFromProto(located.places(0).endpoint()), Spec("a", 1, 64));
    EXPECT_EQ(RefFromProto(located.places(0).blocks(1)), Sealed(1, 1, 11).ref);
  }
  v1::OpenTicketRequest request;
  request.set_reader_id("decode-0");
  request.set_reader_incarnation(9);
  request.set_worker_id("a");
  request.set_incarnation(1);
  *request.mutable_blocks() = located.places(0).blocks();
  request.set_ttl_ms(5000);
  request.set_idempotency_key("r1");
  std::string ticket;
  for (int i = 0; i < 2; ++i) {
    grpc::ClientContext context;
    v1::OpenTicketResponse response;
    ASSERT_TRUE(stub->OpenTicket(&context, request, &response).ok());
    EXPECT_EQ(response.ticket().size(), 16u);
    if (i == 1) {
      EXPECT_EQ(response.ticket(), ticket);
    }
    ticket = response.ticket();
  }
  EXPECT_EQ(server.Audit().ticketed_blocks(), 2u);
  for (const std::string& t : {ticket, ticket, std::string("nonsense")}) {
    grpc::ClientContext context;
    v1::CloseTicketRequest close;
    v1::CloseTicketResponse closed;
    close.set_ticket(t);
    EXPECT_TRUE(stub->CloseTicket(&context, close, &closed).ok());
  }
  EXPECT_EQ(server.Audit().tickets(), 0u);
  grpc::ClientContext context;
  v1::OpenTicketResponse response;
  request.set_incarnation(2);
  EXPECT_EQ(stub->OpenTicket(&context, request, &response).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
}

TEST(LinkTest, WatchersAreBoundedAndStaleNumbersRefused) {
  Server server(5, 0, {}, 2);
  auto one = StartMirror(server);
  auto two = StartMirror(server);
  ASSERT_TRUE(one->WaitFor(0, 5000) && two->WaitFor(0, 5000));
  auto stub = server.stub();
  const auto watch = [&](uint64_t from, uint64_t incarnation) {
    grpc::ClientContext context;
    v1::WatchRequest request;
    request.set_from_sequence(from);
    request.set_kvstore_incarnation(incarnation);
    auto reader = stub->Watch(&context, request);
    v1::WatchResponse message;
    EXPECT_FALSE(reader->Read(&message));
    return reader->Finish().error_code();
  };
  EXPECT_EQ(watch(0, 0), grpc::StatusCode::RESOURCE_EXHAUSTED);
  two.reset();
  ASSERT_TRUE(Eventually([&] { return server.Audit().watchers() == 1; }));
  EXPECT_EQ(watch(7, 5), grpc::StatusCode::OUT_OF_RANGE) << "the future";
  // A refused watch holds its place until the server has seen the end of it.
  ASSERT_TRUE(Eventually([&] { return server.Audit().watchers() == 1; }));
  EXPECT_EQ(watch(1, 4), grpc::StatusCode::OUT_OF_RANGE) << "another kvstore";
}

// A watcher continues after a number that is still in the log.
TEST(LinkTest, WatchResumes) {
  Server server(5);
  auto a = KvStoreClient::Start(ClientOptions(server));
  for (uint32_t i = 0; i < 6; ++i) a->Seal(Sealed(i, 1, i));
  ASSERT_TRUE(a->Flush(5000));
  auto stub = server.stub();
  grpc::ClientContext context;
  v1::WatchRequest request;
  request.set_from_sequence(4);
  request.set_kvstore_incarnation(5);
  auto reader = stub->Watch(&context, request);
  v1::WatchResponse message;
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_EQ(message.kind(), v1::WatchResponse::KIND_DELTA);
  EXPECT_EQ(message.sequence(), 6u);
  EXPECT_EQ(message.sealed_size(), 2);
  context.TryCancel();
}

// Two processes claim one worker id: the older one is fenced and never flaps back.
TEST(LinkTest, ReplacedWorkerStaysOut) {
  Server server(5);
  auto old = KvStoreClient::Start(ClientOptions(server, "a", 1));
  old->Seal(Sealed(0, 1, 10));
  ASSERT_TRUE(old->Flush(5000));
  auto mirror = StartMirror(server);
  auto fresh = KvStoreClient::Start(ClientOptions(server, "a", 2));
  fresh->Seal(Sealed(0, 1, 20));
  ASSERT_TRUE(fresh->Flush(5000));
  old->Seal(Sealed(1, 1, 11));
  EXPECT_TRUE(Eventually([&] { return !old->stats().connected && old->stats().failures > 2; }));
  EXPECT_TRUE(Eventually([&] { return Found(*mirror, {20}) == "a2:1 "; }));
  EXPECT_EQ(Found(*mirror, {11}), "");
  EXPECT_EQ(fresh->stats().registrations, 1u);
}

// Without a kvstore nothing blocks and nothing fails.
TEST(LinkTest, NoKvstoreCostsNothing) {
  KvStoreClientOptions o;
  o.address = "127.0.0.1:1";
  o.pool = Spec("a", 1, 64);
  const auto begin = std::chrono::steady_clock::now();
  {
    auto client = KvStoreClient::Start(o);
    auto mirror = DirectoryMirror::Start({"127.0.0.1:1", 10, 100, nullptr});
    for (uint32_t epoch = 1; epoch < 2000; ++epoch) {
      for (uint32_t i = 0; i < 64; ++i) client->Seal(Sealed(i, epoch, epoch * 64 + i));
    }
    EXPECT_EQ(client->stats().pending, 64u) << "bounded by the pool";
    EXPECT_FALSE(client->stats().connected);
    EXPECT_EQ(Found(*mirror, {64}), "");
    EXPECT_FALSE(client->Flush(20));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 3s);
}

// Random seals and drops from a simulated pool while the kvstore restarts again and again: in the end the mirror shows
// exactly what the pool holds.
TEST(LinkTest, ConvergesThroughRestarts) {
  auto server = std::make_unique<Server>(5);
  const int port = server->port();
  auto a = KvStoreClient::Start(ClientOptions(*server));
  auto mirror = StartMirror(*server);
  base::SplitMix64 rng(3);
  std::map<uint32_t, uint32_t> epochs, live;
  for (int round = 0; round < 4; ++round) {
    for (int i = 0; i < 400; ++i) {
      const auto index = static_cast<uint32_t>(rng.Below(64));
      if (const auto it = live.find(index); it != live.end()) {
        a->Drop(index, it->second);
        live.erase(it);
      } else {
        const uint32_t epoch = ++epochs[index];
        a->Seal(Sealed(index, epoch, index * 1000 + epoch));
        live[index] = epoch;
      }
      if (i % 100 == 0) std::this_thread::sleep_for(3ms);
    }
    server.reset();
    server = std::make_unique<Server>(static_cast<uint64_t>(6 + round), port);
  }
  ASSERT_TRUE(a->Flush(10'000));
  ASSERT_TRUE(Eventually([&] { return mirror->complete() && mirror->stats().blocks == live.size(); }));
  for (const auto& [index, epoch] : live) {
    EXPECT_EQ(Found(*mirror, {uint64_t{index} * 1000 + epoch}), "a1:1 ") << index;
  }
  EXPECT_EQ(server->Audit().violations_size(), 0);
}

TEST(ConvertTest, TicketsRoundTrip) {
  const Hash128 t{0x0123456789abcdef, 0xfedcba9876543210};
  EXPECT_EQ(TicketFromBytes(TicketToBytes(t)), t);
  EXPECT_TRUE(TicketFromBytes("short").zero());
  EXPECT_EQ(MsToNs(UINT64_MAX), MsToNs(1'000'000'000'000));
}

}  // namespace
}  // namespace agentserve::kvstore
