#include "tests/integration/cluster.h"

#include <grpcpp/create_channel.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <thread>

#include "base/rng.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace agentserve::testing {
namespace rv1 = agentserve::router::v1;
namespace {

using SteadyClock = std::chrono::steady_clock;

void SleepMs(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

std::string Loopback(int port) { return base::StrCat("127.0.0.1:", port); }

bool IsWorker(const std::string& name) { return name.rfind("prefill-", 0) == 0 || name.rfind("decode-", 0) == 0; }

// Random tokens avoid the special ids at the end of the vocabulary.
constexpr uint32_t kSpecialMargin = 300;

}  // namespace

Cluster::Cluster(ClusterOptions options) : options_(std::move(options)), dir_(MakeTempDir()) {
  std::vector<std::string> names = {"router"};
  if (options_.kvstore) names.push_back("kvstore");
  if (options_.gateway) names.push_back("gateway");
  for (int i = 0; i < options_.prefill; ++i) names.push_back(base::StrCat("prefill-", i));
  for (int i = 0; i < options_.decode; ++i) names.push_back(base::StrCat("decode-", i));
  for (const std::string& name : names) ports_[name] = PickPort();
  std::filesystem::create_directory(dir_ + "/run");
  channel_ = grpc::CreateChannel(Loopback(ports_["router"]), grpc::InsecureChannelCredentials());
  stub_ = rv1::RouterService::NewStub(channel_);
}

std::vector<std::string> Cluster::CommandLine(const std::string& name) const {
  std::string program = IsWorker(name) ? name.substr(0, name.find('-')) + "-worker" : name;
  std::vector<std::string> args = {BinaryPath("agentserve-" + program), "--port", base::StrCat(ports_.at(name))};
  const auto add = [&](std::initializer_list<std::string> more) { args.insert(args.end(), more); };
  const auto append = [&](const std::vector<std::string>& more) { args.insert(args.end(), more.begin(), more.end()); };
  const std::string model = SourcePath(options_.model);
  if (name != "gateway") add({"--metrics-port", "-1"});
  if (options_.kvstore && name != "kvstore" && name != "gateway") add({"--kvstore", Loopback(ports_.at("kvstore"))});
  if (name == "router") {
    add({"--model", model, "--prefill-threshold", base::StrCat(options_.prefill_threshold)});
    append(options_.router_args);
  } else if (name == "gateway") {
    add({"--router", Loopback(ports_.at("router"))});
    append(options_.gateway_args);
  } else if (IsWorker(name)) {
    add({"--model", model, "--router", Loopback(ports_.at("router")), "--worker-id", name, "--run-dir", dir_ + "/run",
         "--kv-transport", options_.kv_transport, "--threads", "1",
         base::StrCat("--prefix-cache=", options_.prefix_cache ? "true" : "false")});
    if (options_.kv_blocks > 0) {
      add({"--kv-blocks", base::StrCat(options_.kv_blocks)});
    } else {
      add({"--kv-memory-mib", "64"});
    }
    append(options_.worker_args);
  }
  return args;
}

absl::Status Cluster::Launch(const std::string& name) {
  const auto env = options_.env.find(name);
  AS_ASSIGN_OR_RETURN(processes_[name],
                      Process::Start(CommandLine(name), base::StrCat(dir_, "/", name, ".log"),
                                     env == options_.env.end() ? std::vector<std::string>{} : env->second));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Cluster>> Cluster::Start(const ClusterOptions& options) {
  std::unique_ptr<Cluster> cluster(new Cluster(options));
  for (const auto& [name, port] : cluster->ports_) AS_RETURN_IF_ERROR(cluster->Launch(name));
  absl::Status idle = cluster->WaitIdle(30000);
  if (!idle.ok()) return absl::UnavailableError(base::StrCat(base::MessageOf(idle), "\n", cluster->Logs()));
  if (options.gateway && !cluster->process("gateway").WaitForLog("service.ready", 10000)) {
    return absl::UnavailableError(base::StrCat("gateway is not ready\n", cluster->Logs()));
  }
  return cluster;
}

Cluster::~Cluster() {
  for (auto& [name, process] : processes_) process->Signal(SIGKILL);
  RemoveTree(dir_);
}

std::vector<std::string> Cluster::names() const {
  std::vector<std::string> out;
  for (const auto& [name, port] : ports_) out.push_back(name);
  return out;
}

std::string Cluster::router_address() const { return Loopback(ports_.at("router")); }

absl::Status Cluster::Restart(const std::string& name) { return Launch(name); }

absl::StatusOr<rv1::WatchClusterResponse> Cluster::State() {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(2));
  context.set_wait_for_ready(true);
  rv1::WatchClusterRequest request;
  auto stream = stub_->WatchCluster(&context, request);
  rv1::WatchClusterResponse state;
  if (!stream->Read(&state)) {
    return absl::UnavailableError(base::StrCat("no cluster state: ", stream->Finish().error_message()));
  }
  context.TryCancel();
  stream->Finish();
  return state;
}

int Cluster::ReadyWorkers(const rv1::WatchClusterResponse& state) const {
  int ready = 0;
  for (const auto& w : state.workers()) ready += w.state() == "ready" ? 1 : 0;
  return ready;
}

absl::Status Cluster::WaitIdle(int timeout_ms) {
  const auto end = SteadyClock::now() + std::chrono::milliseconds(timeout_ms);
  std::string last = "never reached the router";
  while (SteadyClock::now() < end) {
    for (auto& [name, process] : processes_) {
      if (!process->Running()) return absl::UnavailableError(base::StrCat(name, " has ended"));
    }
    auto state = State();
    if (state.ok()) {
      const int ready = ReadyWorkers(*state);
      if (ready == options_.prefill + options_.decode && state->queued() == 0 && state->running() == 0) {
        return absl::OkStatus();
      }
      last = state->ShortDebugString();
    } else {
      last = base::MessageOf(state.status());
    }
    SleepMs(20);
  }
  return absl::DeadlineExceededError(base::StrCat("cluster is not idle after ", timeout_ms, " ms: ", last));
}

absl::Status Cluster::WaitPoolsAtBaseline(int timeout_ms) {
  const auto end = SteadyClock::now() + std::chrono::milliseconds(timeout_ms);
  std::string last;
  while (SteadyClock::now() < end) {
    AS_ASSIGN_OR_RETURN(auto state, State());
    bool all = true;
    for (const auto& w : state.workers()) {
      if (w.state() != "ready") continue;
      all = all && w.load().total_blocks() > 0 && w.load().available_blocks() == w.load().total_blocks() &&
            w.load().running() == 0 && w.load().waiting() == 0;
    }
    if (all && ReadyWorkers(state) == options_.prefill + options_.decode) return absl::OkStatus();
    last = state.ShortDebugString();
    SleepMs(50);
  }
  return absl::DeadlineExceededError(base::StrCat("pools are not at baseline: ", last));
}

absl::Status Cluster::Shutdown() {
  std::vector<std::string> order;
  for (const char* prefix : {"gateway", "router", "prefill", "decode", "kvstore"}) {
    for (const std::string& name : names()) {
      if (name.rfind(prefix, 0) == 0) order.push_back(name);
    }
  }
  for (const std::string& name : order) {
    Process& p = process(name);
    if (!p.Running()) continue;
    p.Signal(SIGTERM);
    const auto code = p.Wait(10000);
    if (!code.has_value()) return absl::DeadlineExceededError(base::StrCat(name, " ignores SIGTERM\n", p.Log()));
    if (*code != 0) return absl::InternalError(base::StrCat(name, " ended with ", *code, " on SIGTERM\n", p.Log()));
  }
  for (const auto& entry : std::filesystem::directory_iterator(dir_ + "/run")) {
    return absl::InternalError(base::StrCat("left behind: ", entry.path().string()));
  }
  return absl::OkStatus();
}

std::string Cluster::Logs() const {
  constexpr size_t kTail = 3000;
  std::string out;
  for (const auto& [name, process] : processes_) {
    std::string log = process->Log();
    if (log.size() > kTail) log = "..." + log.substr(log.size() - kTail);
    base::StrAppend(&out, "--- ", name, "\n", log, "\n");
  }
  return out;
}

Outcome Generate(rv1::RouterService::Stub& stub, const rv1::GenerateRequest& request,
                 const std::function<bool(size_t)>& on_token, int timeout_ms) {
  Outcome out;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(timeout_ms));
  auto stream = stub.Generate(&context, request);
  rv1::GenerateResponse event;
  while (stream->Read(&event)) {
    out.events_after_done += out.dones;
    if (event.has_accepted()) out.request_id = event.accepted().request_id();
    if (event.has_delta() && event.delta().index() == 0) {
      out.text += event.delta().text();
      out.tokens.insert(out.tokens.end(), event.delta().token_ids().begin(), event.delta().token_ids().end());
      if (on_token && !on_token(out.tokens.size())) context.TryCancel();
    }
    if (event.has_sequence_end() && event.sequence_end().index() == 0) {
      ++out.ends;
      out.reason = event.sequence_end().reason();
    }
    if (event.has_done()) {
      ++out.dones;
      out.done = event.done();
    }
  }
  out.status = stream->Finish();
  return out;
}

rv1::GenerateRequest RandomRequest(uint64_t which, uint32_t vocab, uint32_t prompt_tokens, uint32_t max_tokens,
                                   bool greedy) {
  base::SplitMix64 rng(which * 7919 + 17);
  rv1::GenerateRequest request;
  for (uint32_t i = 0; i < prompt_tokens; ++i) {
    request.mutable_token_ids()->add_ids(static_cast<uint32_t>(rng.Below(vocab - kSpecialMargin)));
  }
  auto* sampling = request.mutable_sampling();
  sampling->set_max_tokens(max_tokens);
  sampling->set_temperature(greedy ? 0.0f : 0.8f);
  if (!greedy) sampling->set_top_p(0.95f);
  sampling->set_seed(which + 1);
  request.set_return_token_ids(true);
  return request;
}

}  // namespace agentserve::testing
