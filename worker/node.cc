#include "worker/node.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "base/log.h"
#include "base/rng.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "kvstore/transport/device_memory.h"
#include "worker/threaded_executor.h"

namespace agentserve::worker {

using base::Field;
using base::StrCat;

void AddFlags(base::FlagSet* flags, NodeOptions* o) {
  flags->Add("model", &o->model, "folder of a Llama 3.x model in Hugging Face layout", "Model");
  flags->Add("model-id", &o->model_id, "name clients use; empty = name of the folder", "Model");
  flags->Add("device", &o->device, "cpu, cuda (= cuda:0), cuda:N, or auto: a GPU if there is one", "Model");
  flags->Add("batch-invariant", &o->batch_invariant,
             "tokens do not depend on what else runs, bit for bit; always so on the CPU, costs some speed on a GPU",
             "Model");
  flags->Add("threads", &o->threads, "compute threads; 0 = one per core", "Model");
  flags->Add("host", &o->host, "address to listen on", "Network");
  flags->Add("port", &o->port, "gRPC port; 0 = any free one", "Network");
  flags->Add("advertise-host", &o->advertise_host, "host that others connect to; empty = --host", "Network");
  flags->Add("metrics-port", &o->metrics_port, "Prometheus port; 0 = any free one, -1 = off", "Network");
  flags->Add("router", &o->router, "host:port of the router; empty = serve whoever connects", "Cluster");
  flags->Add("kvstore", &o->kvstore, "host:port of the kvstore; empty = none", "Cluster");
  flags->Add("worker-id", &o->worker_id, "unique in the cluster; empty = role and process id", "Cluster");
  flags->Add("run-dir", &o->run_dir, "folder for unix sockets; empty = KV is only streamed", "Cluster");
  flags->Add("kv-blocks", &o->kv_blocks, "blocks in the KV pool; 0 = from --kv-memory-mib", "KV cache");
  flags->Add(
      "kv-memory-mib", &o->kv_memory_mib,
      "KV pool size; 0 = on the CPU 8 sequences at full context, within 64..1024 and a quarter of free memory; on "
      "a GPU what --gpu-memory-utilization leaves",
      "KV cache");
  flags->Add("gpu-memory-utilization", &o->gpu_memory_utilization,
             "share of the GPU's memory for weights, workspaces and KV pool together; 0.05 to 1", "KV cache");
  flags->Add(
      "host-kv-mib", &o->host_kv_mib,
      "host memory for KV of agents that wait for a tool; 0 = none; -1 = none on prefill workers; on decode workers as "
      "much as the pool, at most 1/8 of free memory, or on a GPU 4 times the pool, at most 1/4 of free memory and 8192",
      "KV cache");
  flags->Add("block-tokens", &o->block_tokens, "tokens per KV block; equal in the whole cluster", "KV cache");
  flags->Add("prefix-cache", &o->prefix_cache, "reuse the KV of equal prompt beginnings", "KV cache");
  flags->Add("kv-transport", &o->kv_transport,
             "auto: map a peer's pool, else the next slower path and warn; mapped: map or fail; staged: between GPUs, "
             "through host memory; stream: always stream",
             "KV cache");
  flags->Add("max-batch", &o->max_batch, "most sequences per step; 0 = 64 on the CPU, 256 on a GPU", "Batching");
  flags->Add(
      "step-tokens", &o->step_tokens,
      "most tokens per step: decodes plus prompt chunks; 0 = 512 on the CPU, on a GPU 8192 (prefill) or 2048 (decode)",
      "Batching");
  flags->Add("pipeline-steps", &o->pipeline_steps,
             "auto: plan and launch the next step while one runs if the device can; off: one step at a time; on: also "
             "where the device cannot, by a thread (for tests)",
             "Batching");
  flags->Add("drain-timeout-s", &o->drain_timeout_s, "most time to finish running work after SIGTERM", "General");
  flags->Add("log-level", &o->log_level, "debug, info, warn or error", "General");
  flags->Add("log-json", &o->log_json, "log lines as JSON", "General");
}

absl::Status CheckOptions(const NodeOptions& o) {
  const auto bad = [](std::string_view flag, auto value, std::string_view want) {
    return absl::InvalidArgumentError(StrCat("--", flag, " is ", value, "; it must be ", want));
  };
  if (o.block_tokens < 1 || o.block_tokens > 1024) return bad("block-tokens", o.block_tokens, "1 to 1024");
  if (o.max_batch < 0 || o.max_batch > 4096) return bad("max-batch", o.max_batch, "0 to 4096");
  if (o.step_tokens < 0 || (o.step_tokens != 0 && o.step_tokens < o.max_batch) || o.step_tokens > (1 << 20)) {
    return bad("step-tokens", o.step_tokens,
               StrCat("0, or at least --max-batch (", o.max_batch, ") and at most 1048576"));
  }
  if (!(o.gpu_memory_utilization >= 0.05 && o.gpu_memory_utilization <= 1)) {
    return bad("gpu-memory-utilization", o.gpu_memory_utilization, "0.05 to 1");
  }
  if (o.host_kv_mib < -1) return bad("host-kv-mib", o.host_kv_mib, "-1 (automatic), 0 (none) or more");
  if (o.port < 0 || o.port > 65535) return bad("port", o.port, "0 to 65535");
  if (o.metrics_port < -1 || o.metrics_port > 65535) return bad("metrics-port", o.metrics_port, "-1 to 65535");
  if (o.drain_timeout_s < 0) return bad("drain-timeout-s", o.drain_timeout_s, "0 or more");
  if (o.pipeline_steps != "auto" && o.pipeline_steps != "on" && o.pipeline_steps != "off") {
    return bad("pipeline-steps", o.pipeline_steps, "auto, on or off");
  }
  if (o.worker_id.size() > 63) return bad("worker-id", o.worker_id, "at most 63 characters");
  return kvstore::ParseTransportMode(o.kv_transport).status();
}

void SetBatchDefaults(Role role, bool on_gpu, NodeOptions* o) {
  // A GPU needs many tokens to be busy with a prompt; a decode worker's sequences wait for each chunk (2048 tokens of
  // the 1B model take about 8 ms).
  const int step_tokens = !on_gpu ? 512 : role == Role::kPrefill ? 8192 : 2048;
  if (o->max_batch == 0) o->max_batch = std::min(on_gpu ? 256 : 64, o->step_tokens == 0 ? 256 : o->step_tokens);
  if (o->step_tokens == 0) o->step_tokens = std::max(step_tokens, o->max_batch);
}

namespace {

const char* RoleName(Role role) { return role == Role::kPrefill ? "prefill" : "decode"; }

NodeOptions WithDefaults(NodeOptions o, Role role, bool on_gpu) {
  SetBatchDefaults(role, on_gpu, &o);
  if (o.worker_id.empty()) o.worker_id = StrCat(RoleName(role), "-", ::getpid());
  if (o.advertise_host.empty()) o.advertise_host = o.host;
  if (o.model_id.empty()) {
    std::string path = o.model;
    while (path.size() > 1 && path.back() == '/') path.pop_back();
    o.model_id = path.substr(path.rfind('/') + 1);
  }
  return o;
}

uint64_t NonZeroEntropy() {
  for (;;) {
    if (const uint64_t v = base::EntropyUint64()) return v;
  }
}

}  // namespace

Node::Node(const NodeOptions& options, const ModelInfo& model, Role role)
    : options_(WithDefaults(options, role, model.cuda_device >= 0)),
      model_(model),
      role_(role),
      incarnation_(NonZeroEntropy()),
      metrics_({{"role", RoleName(role)}, {"worker", options_.worker_id}}) {}

Node::~Node() { Shutdown(); }

absl::StatusOr<std::unique_ptr<Node>> Node::Create(const NodeOptions& options, const ModelInfo& model, Role role) {
  AS_RETURN_IF_ERROR(CheckOptions(options));
  std::unique_ptr<Node> node(new Node(options, model, role));
  AS_RETURN_IF_ERROR(node->OpenPool());
  return node;
}

absl::Status Node::OpenPool() {
  PoolSizingInput sizing;
  sizing.layout = model_.layout;
  sizing.model_context = model_.context_length;
  sizing.blocks = options_.kv_blocks;
  sizing.memory_mib = options_.kv_memory_mib;
  sizing.available_bytes = AvailableMemoryBytes();
  sizing.max_batch = static_cast<uint32_t>(options_.max_batch);
  if (model_.cuda_device >= 0) {
    AS_ASSIGN_OR_RETURN(sizing.device, model_.device_budget());
    sizing.device->utilization = options_.gpu_memory_utilization;
  }
  AS_ASSIGN_OR_RETURN(sizing_, SizePool(sizing));
  AS_LOG(kInfo, "kv_pool.sized") << Field("device",
                                          model_.cuda_device < 0 ? "cpu" : StrCat("cuda:", model_.cuda_device))
                                 << Field("blocks", sizing_.num_blocks) << Field("why", sizing_.explanation);
  kvstore::KvPoolOptions pool;
  pool.layout = model_.layout;
  pool.num_blocks = sizing_.num_blocks;
  pool.incarnation = incarnation_;
  pool.worker_id = options_.worker_id;
  std::unique_ptr<kvstore::BlockMemory> device_memory;
  if (model_.cuda_device >= 0) {
    AS_ASSIGN_OR_RETURN(device_memory, kvstore::NewDeviceMemory(model_.cuda_device, model_.layout, sizing_.num_blocks));
  }
  AS_ASSIGN_OR_RETURN(pool_, kvstore::KvPool::Create(pool, std::move(device_memory)));
  AS_RETURN_IF_ERROR(OpenHostStore());
  AS_ASSIGN_OR_RETURN(executor_, model_.new_executor(pool_->view()));
  if (options_.pipeline_steps == "on" && executor_->depth() == 1) {
    executor_ = std::make_unique<ThreadedExecutor>(std::move(executor_));
  }
  if (!options_.run_dir.empty()) {
    if (::mkdir(options_.run_dir.c_str(), 0700) != 0 && errno != EEXIST) {
      return absl::InvalidArgumentError(StrCat("cannot make --run-dir ", options_.run_dir, ": ", std::strerror(errno)));
    }
    AS_ASSIGN_OR_RETURN(exporter_, kvstore::PoolExporter::Start(
                                       pool_.get(), {StrCat(options_.run_dir, "/", options_.worker_id, ".kv"), 256}));
  }
  transfer_ = std::make_unique<kvstore::TransferService>(pool_.get());
  return absl::OkStatus();
}

absl::Status Node::OpenHostStore() {
  HostTierInput in;
  in.layout = model_.layout;
  in.pool_blocks = sizing_.num_blocks;
  in.memory_mib = options_.prefix_cache ? options_.host_kv_mib : 0;
  in.available_bytes = AvailableMemoryBytes();
  in.on_gpu = model_.cuda_device >= 0;
  in.by_default = role_ == Role::kDecode;  // what a program continues is on the decode worker
  AS_ASSIGN_OR_RETURN(const HostTierSizing sizing, SizeHostTier(in));
  AS_LOG(kInfo, "host_kv.sized") << Field("blocks", sizing.slots) << Field("why", sizing.explanation);
  if (sizing.slots == 0) return absl::OkStatus();
  host_slots_ = sizing.slots;
  AS_ASSIGN_OR_RETURN(host_store_, HostStore::Create(pool_.get(), host_slots_));
  return absl::OkStatus();
}

engine::KvTiers::Options Node::TierOptions() const {
  engine::KvTiers::Options o;
  o.host_slots = host_slots_;
  o.block_tokens = model_.layout.block_tokens;
  o.block_bytes = model_.layout.BlockBytes();
  // Until copies have been measured: PCIe 5 x16 from pinned memory, or one thread's memcpy.
  o.host_bytes_per_s = model_.cuda_device >= 0 ? 40e9 : 5e9;
  // A copy of about 16 MiB: a third of a millisecond on PCIe 5, three by one thread.
  o.copy_blocks = static_cast<uint32_t>(std::clamp<uint64_t>((16 << 20) / o.block_bytes, 1, 256));
  return o;
}

engine::Planner::Options Node::PlannerOptions() const {
  engine::Planner::Options o;
  o.block_tokens = model_.layout.block_tokens;
  o.max_batch = static_cast<uint32_t>(options_.max_batch);
  o.step_tokens = static_cast<uint32_t>(options_.step_tokens);
  o.context_length = sizing_.context_length;
  o.layout_fingerprint = model_.layout.Fingerprint();
  o.end_tokens = model_.end_tokens;
  return o;
}

agentserve::common::v1::KvEndpoint Node::Endpoint() const {
  agentserve::common::v1::KvEndpoint endpoint;
  endpoint.set_worker_id(options_.worker_id);
  endpoint.set_incarnation(incarnation_);
  if (exporter_) endpoint.set_unix_socket(exporter_->socket_path());
  endpoint.set_grpc_address(address_);
  kvstore::ToProto(model_.layout, endpoint.mutable_layout());
  endpoint.set_num_blocks(sizing_.num_blocks);
  endpoint.set_host_blocks(host_slots_);
  return endpoint;
}

absl::Status Node::Listen(grpc::Service* service) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(StrCat(options_.host, ":", options_.port), grpc::InsecureServerCredentials(), &port);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  builder.SetMaxReceiveMessageSize(8 << 20);  // a prompt of 1 Mi tokens is 5 MiB
  builder.RegisterService(service);
  builder.RegisterService(transfer_.get());
  server_ = builder.BuildAndStart();
  if (!server_ || port == 0) {
    return absl::UnavailableError(StrCat("cannot listen on ", options_.host, ":", options_.port,
                                         ": is the port in use? choose another with --port"));
  }
  port_ = port;
  address_ = StrCat(options_.advertise_host, ":", port);
  if (options_.metrics_port >= 0) {
    AS_ASSIGN_OR_RETURN(metrics_port_, metrics_.Listen(options_.host, options_.metrics_port));
  }
  return absl::OkStatus();
}

void Node::Register(std::function<double()> prefill_tokens_per_s, std::function<void(const std::string&)> on_refused) {
  if (options_.router.empty()) return;
  Registrar::Options o;
  o.router = options_.router;
  o.prefill_tokens_per_s = std::move(prefill_tokens_per_s);
  o.on_refused = std::move(on_refused);
  *o.request.mutable_endpoint() = Endpoint();
  o.request.set_role(role_ == Role::kPrefill ? agentserve::router::v1::WORKER_ROLE_PREFILL
                                             : agentserve::router::v1::WORKER_ROLE_DECODE);
  o.request.set_address(address_);
  o.request.set_model_id(options_.model_id);
  o.request.set_model_fingerprint(model_.fingerprint_hex);
  o.request.set_context_length(sizing_.context_length);
  o.request.set_max_batch(static_cast<uint32_t>(options_.max_batch));
  registrar_ = std::make_unique<Registrar>(std::move(o));
}

void Node::Shutdown() {
  registrar_.reset();
  if (transfer_) transfer_->Stop();
  if (server_) {
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
    server_->Wait();
    server_.reset();
  }
  exporter_.reset();
}

}  // namespace agentserve::worker
