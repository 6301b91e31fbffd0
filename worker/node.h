// What a worker process has besides its loop: pool memory and its export, gRPC server, metrics, registration.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "agentserve/common/v1/common.pb.h"
#include "base/flags.h"
#include "base/metrics.h"
#include "engine/batch.h"
#include "engine/kv_layout.h"
#include "engine/planner.h"
#include "kvstore/transport/kv_pool.h"
#include "kvstore/transport/peer_proto.h"
#include "kvstore/transport/pool_exporter.h"
#include "kvstore/transport/transfer_service.h"
#include "worker/host_store.h"
#include "worker/pool_sizing.h"
#include "worker/registrar.h"

namespace agentserve::worker {

enum class Role { kPrefill, kDecode };

// One field per flag; see AddFlags for the meaning.
struct NodeOptions {
  std::string host = "127.0.0.1";
  int port = 0;
  std::string advertise_host;
  int metrics_port = 0;
  std::string log_level = "info";
  bool log_json = false;
  std::string model;
  std::string model_id;
  std::string device = "cpu";
  bool batch_invariant = false;
  int threads = 0;
  std::string router;
  std::string kvstore;
  std::string worker_id;
  std::string run_dir;
  int64_t kv_blocks = 0;
  int64_t kv_memory_mib = 0;
  int64_t host_kv_mib = -1;
  double gpu_memory_utilization = 0.9;
  int block_tokens = 16;
  int max_batch = 0;
  int step_tokens = 0;
  std::string pipeline_steps = "auto";
  std::string kv_transport = "auto";
  bool prefix_cache = true;
  int drain_timeout_s = 30;
};
void AddFlags(base::FlagSet* flags, NodeOptions* options);
// Values that contradict each other or that are out of range.
absl::Status CheckOptions(const NodeOptions& options);
// Fills in --max-batch and --step-tokens where they are 0.
void SetBatchDefaults(Role role, bool on_gpu, NodeOptions* options);

// The model as a node needs it.
struct ModelInfo {
  engine::KvLayout layout;  // with the wanted block_tokens
  uint32_t vocab_size = 0;
  uint32_t context_length = 0;
  std::vector<engine::TokenId> end_tokens;
  std::string fingerprint_hex;
  // The GPU whose memory the pool must be in; -1 = the host.
  int cuda_device = -1;
  // With a GPU: its memory as of now. The utilization is filled in by the node.
  std::function<absl::StatusOr<DeviceBudget>()> device_budget;
  std::function<absl::StatusOr<std::unique_ptr<engine::Executor>>(const engine::KvPoolView&)> new_executor;
};

// Not thread-safe; made and used by main (or a test).
class Node {
 public:
  static absl::StatusOr<std::unique_ptr<Node>> Create(const NodeOptions& options, const ModelInfo& model, Role role);
  ~Node();

  const NodeOptions& options() const { return options_; }
  const ModelInfo& model() const { return model_; }
  uint64_t incarnation() const { return incarnation_; }
  uint32_t context_length() const { return sizing_.context_length; }
  kvstore::KvPool* pool() { return pool_.get(); }
  engine::Executor* executor() { return executor_.get(); }
  base::Metrics* metrics() { return &metrics_; }
  // What both cores are built from.
  engine::Planner::Options PlannerOptions() const;
  engine::KvTiers::Options TierOptions() const;
  // The memory below the pool, for the loop that copies to it; null if there is none. Once.
  std::unique_ptr<HostStore> TakeHostStore() { return std::move(host_store_); }
  // How peers reach the pool. The address is known after Listen.
  agentserve::common::v1::KvEndpoint Endpoint() const;
  std::string address() const { return address_; }
  int port() const { return port_; }
  int metrics_port() const { return metrics_port_; }

  // Opens the ports and serves `service`, the KV data plane, health and reflection.
  absl::Status Listen(grpc::Service* service);
  // Begins to register with the router, if there is one.
  void Register(std::function<double()> prefill_tokens_per_s, std::function<void(const std::string&)> on_refused);
  Registrar* registrar() { return registrar_.get(); }
  // Ends registration and the server; streams that are still open are cut after a short grace.
  void Shutdown();

 private:
  Node(const NodeOptions& options, const ModelInfo& model, Role role);
  absl::Status OpenPool();
  absl::Status OpenHostStore();

  const NodeOptions options_;
  const ModelInfo model_;
  const Role role_;
  const uint64_t incarnation_;
  base::Metrics metrics_;
  PoolSizing sizing_;
  std::string address_;
  int port_ = 0, metrics_port_ = -1;
  std::unique_ptr<kvstore::KvPool> pool_;
  std::unique_ptr<HostStore> host_store_;
  uint32_t host_slots_ = 0;
  std::unique_ptr<engine::Executor> executor_;
  std::unique_ptr<kvstore::PoolExporter> exporter_;
  std::unique_ptr<kvstore::TransferService> transfer_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Registrar> registrar_;
};

}  // namespace agentserve::worker
