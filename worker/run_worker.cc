#include "worker/run_worker.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>

#include "base/log.h"
#include "base/strings.h"
#include "kvstore/transport/device_memory.h"
#include "model/model.h"
#include "worker/directory_link.h"

namespace agentserve::worker {

using base::Field;

namespace {

constexpr int kPollMs = 20;

sigset_t StopSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

// Waits up to `timeout_ms` for a stop signal.
bool SignalCame(const sigset_t& set, int timeout_ms) {
  const timespec timeout{timeout_ms / 1000, (timeout_ms % 1000) * 1'000'000L};
  return sigtimedwait(&set, nullptr, &timeout) > 0;
}

int Complain(const char* event, const absl::Status& status, int code) {
  AS_LOG(kError, event) << Field("error", base::MessageOf(status)) << Field("exit_code", code);
  return code;
}

// Waits for the end: drained, forced, or failed.
void Supervise(const NodeOptions& options, Node* node, Program* program, const std::atomic<bool>& refused) {
  const sigset_t set = StopSignals();
  while (!program->ended() && !refused && !SignalCame(set, kPollMs)) {
  }
  if (program->ended()) return;
  if (refused) return program->Stop();
  AS_LOG(kInfo, "service.draining") << Field("timeout_s", options.drain_timeout_s);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(options.drain_timeout_s);
  // The router must have heard of it before we call ourselves idle, or work that is on its way would be cut off.
  if (Registrar* registrar = node->registrar(); registrar && registrar->registered()) {
    registrar->SetDraining();
    const auto patience = std::chrono::steady_clock::now() + std::chrono::milliseconds(1000);
    while (!registrar->draining_known() && std::chrono::steady_clock::now() < patience) {
      if (SignalCame(set, kPollMs)) return program->Stop();
    }
  }
  program->Drain();
  while (!program->ended()) {
    const bool again = SignalCame(set, kPollMs);
    if (again || std::chrono::steady_clock::now() >= deadline) {
      AS_LOG(kWarn, "service.drain_cut_short") << Field("second_signal", again);
      return program->Stop();
    }
  }
}

}  // namespace

absl::StatusOr<ModelInfo> MakeModelInfo(const std::shared_ptr<model::Model>& model, uint32_t block_tokens) {
  ModelInfo info;
  info.layout = model->layout(block_tokens);
  info.vocab_size = model->config().vocab_size;
  info.context_length = model->config().max_position;
  info.end_tokens = model->end_tokens();
  info.fingerprint_hex = model->fingerprint_hex();
  info.new_executor = [model](const engine::KvPoolView& pool) { return model->CreateExecutor(pool); };
  const absl::StatusOr<model::DeviceMemory> memory = model->device_memory();
  if (!memory.ok()) return memory.status();
  info.cuda_device = memory->cuda_device;
  info.device_budget = [model]() -> absl::StatusOr<DeviceBudget> {
    const absl::StatusOr<model::DeviceMemory> now = model->device_memory();
    if (!now.ok()) return now.status();
    return DeviceBudget{now->name, now->total_bytes, now->free_bytes, now->weight_bytes, now->executor_bytes, 0};
  };
  return info;
}

absl::StatusOr<ModelInfo> LoadModelInfo(const NodeOptions& options) {
  model::LoadOptions load;
  load.device = options.device;
  load.threads = options.threads;
  load.batch_invariant = options.batch_invariant;
  load.limits.max_step_tokens = static_cast<uint32_t>(options.step_tokens);
  load.limits.max_sequences = static_cast<uint32_t>(options.max_batch);
  load.progress = [](const model::LoadProgress& p) {
    AS_LOG(kInfo, "model.loading") << Field("file", p.file) << Field("mib", p.bytes_done >> 20)
                                   << Field("of_mib", p.bytes_total >> 20)
                                   << Field("mib_per_s", static_cast<uint64_t>(p.bytes_per_second) >> 20)
                                   << Field("eta_s", static_cast<uint64_t>(p.eta_seconds + 0.5));
  };
  absl::StatusOr<std::unique_ptr<model::Model>> loaded = model::LoadModel(options.model, load);
  if (!loaded.ok()) return loaded.status();
  return MakeModelInfo(*std::move(loaded), static_cast<uint32_t>(options.block_tokens));
}

int RunWorker(int argc, const char* const* argv, Role role,
              const std::function<std::unique_ptr<Program>(Node*, BlockListener*)>& make_program) {
  const char* name = role == Role::kPrefill ? "agentserve-prefill-worker" : "agentserve-decode-worker";
  base::FlagSet flags(name, role == Role::kPrefill ? "Runs prompts and offers their KV to decode workers."
                                                   : "Decodes sequences in one batch; prefills short prompts itself.");
  NodeOptions options;
  AddFlags(&flags, &options);
  if (const std::optional<int> code = flags.ParseOrExit(argc, argv)) return *code;
  base::LogLevel level = base::LogLevel::kInfo;
  const bool level_known = base::ParseLogLevel(options.log_level, &level);
  base::InitLog(options.worker_id.empty() ? name : options.worker_id, level, options.log_json);
  if (!level_known) {
    return Complain("config.bad", absl::InvalidArgumentError("--log-level must be debug, info, warn or error"),
                    base::kExitConfig);
  }
  if (options.model.empty()) {
    return Complain("config.bad",
                    absl::InvalidArgumentError("--model DIR is needed: a folder with config.json and *.safetensors"),
                    base::kExitConfig);
  }
  if (absl::Status s = CheckOptions(options); !s.ok()) return Complain("config.bad", s, base::kExitConfig);
  // Before any thread exists (looking for a GPU makes some), so that all inherit it and only Supervise takes signals.
  const sigset_t set = StopSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);

  const absl::StatusOr<kvstore::Device> device = kvstore::ResolveDevice(options.device);
  if (!device.ok()) return Complain("config.bad", device.status(), base::kExitConfig);
  options.device = device->ToString();
  SetBatchDefaults(role, device->cuda, &options);

  absl::StatusOr<ModelInfo> model = LoadModelInfo(options);
  if (!model.ok()) return Complain("model.bad", model.status(), base::kExitModel);
  absl::StatusOr<std::unique_ptr<Node>> node = Node::Create(options, *model, role);
  if (!node.ok()) return Complain("config.bad", node.status(), base::kExitConfig);
  DirectoryLink directory;
  const std::unique_ptr<Program> program = make_program(node->get(), &directory);
  if (absl::Status s = (*node)->Listen(program->service()); !s.ok())
    return Complain("listen.failed", s, base::kExitConfig);
  directory.Start(options.kvstore, (*node)->Endpoint());
  program->Start();
  std::atomic<bool> refused{false};
  (*node)->Register([&] { return program->prefill_tokens_per_s(); }, [&](const std::string&) { refused = true; });
  AS_LOG(kInfo, "service.ready") << Field("port", (*node)->port()) << Field("metrics_port", (*node)->metrics_port())
                                 << Field("worker", (*node)->options().worker_id)
                                 << Field("incarnation", (*node)->incarnation())
                                 << Field("fingerprint", model->fingerprint_hex);
  Supervise(options, node->get(), program.get(), refused);
  const int code = program->Wait();
  (*node)->Shutdown();
  const int exit_code = refused ? static_cast<int>(base::kExitModel) : code;
  AS_LOG(kInfo, "service.stopped") << Field("exit_code", exit_code);
  return exit_code;
}

}  // namespace agentserve::worker
