#include "router/service/worker_link.h"

#include <deque>
#include <mutex>
#include <utility>

#include "agentserve/decode/v1/decode.grpc.pb.h"
#include "agentserve/prefill/v1/prefill.grpc.pb.h"
#include "router/service/convert.h"

namespace agentserve::router {
namespace {

// Commands not yet written. A worker this far behind does not read; the link is reset and its sequences move on.
constexpr size_t kMaxQueuedCommands = 65'536;
constexpr uint32_t kMaxOutstandingMessages = 64;

std::shared_ptr<grpc::Channel> NewChannel(const std::string& address) {
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  args.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // A channel of its own: a dead one's back-off must not delay its successor.
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetMaxReceiveMessageSize(8 << 20);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), args);
}

struct PrefillTraits {
  using Service = prefill::v1::PrefillService;
  using Request = prefill::v1::RunRequest;
  using Response = prefill::v1::RunResponse;
  static void Fill(const Command& c, const common::v1::KvEndpoint*, Request* out) { FillCommand(c, out); }
};
struct DecodeTraits {
  using Service = decode::v1::DecodeService;
  using Request = decode::v1::RunRequest;
  using Response = decode::v1::RunResponse;
  static void Fill(const Command& c, const common::v1::KvEndpoint* peer, Request* out) { FillCommand(c, peer, out); }
};

template <typename T>
class LinkImpl final : public WorkerLink,
                       public grpc::ClientBidiReactor<typename T::Request, typename T::Response>,
                       public std::enable_shared_from_this<LinkImpl<T>> {
 public:
  LinkImpl(const std::string& address, LinkCallbacks callbacks)
      : callbacks_(std::move(callbacks)), channel_(NewChannel(address)), stub_(T::Service::NewStub(channel_)) {}

  void Start(uint64_t router_incarnation, uint64_t worker_incarnation) {
    self_ = this->shared_from_this();
    auto hello = std::make_unique<typename T::Request>();
    hello->mutable_hello()->set_incarnation(router_incarnation);
    hello->mutable_hello()->set_peer_incarnation(worker_incarnation);
    std::lock_guard lock(mu_);
    stub_->async()->Run(&context_, this);
    this->AddHold();  // for writes, which start outside of reactions; dropped when reading ends
    queue_.push_back(std::move(hello));
    NextLocked();
    this->StartRead(&reading_);
    this->StartCall();
  }

  void Send(const Command& command, const common::v1::KvEndpoint* peer) override {
    auto request = std::make_unique<typename T::Request>();
    T::Fill(command, peer, request.get());
    bool overflow = false;
    {
      std::lock_guard lock(mu_);
      if (closed_) return;
      queue_.push_back(std::move(request));
      overflow = queue_.size() > kMaxQueuedCommands;
      if (!writing_) NextLocked();
    }
    if (overflow) Close();
  }

  void Processed() override {
    std::lock_guard lock(mu_);
    --outstanding_;
    if (read_paused_ && !closed_ && outstanding_ < kMaxOutstandingMessages / 2) {
      read_paused_ = false;
      this->StartRead(&reading_);
    }
  }

  void Close() override {
    context_.TryCancel();
    std::lock_guard lock(mu_);
    // A paused read has no reaction that would notice the end.
    if (read_paused_) CloseLocked();
  }

  void OnWriteDone(bool ok) override {
    std::lock_guard lock(mu_);
    writing_ = false;
    current_.reset();
    if (ok && !closed_) NextLocked();
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      std::lock_guard lock(mu_);
      CloseLocked();
      return;
    }
    auto message = std::make_shared<WorkerMessage>(std::in_place_type<typename T::Response>);
    std::get<typename T::Response>(*message).Swap(&reading_);
    {
      std::lock_guard lock(mu_);
      ++outstanding_;
    }
    callbacks_.on_message(std::move(message));
    // Only now, so that messages reach the loop in order.
    std::lock_guard lock(mu_);
    if (closed_) return;
    if (outstanding_ >= kMaxOutstandingMessages) {
      read_paused_ = true;  // Processed goes on
    } else {
      this->StartRead(&reading_);
    }
  }

  void OnDone(const grpc::Status& status) override {
    std::shared_ptr<LinkImpl> last;
    {
      std::lock_guard lock(mu_);
      last = std::move(self_);
    }
    callbacks_.on_down(status);
  }

 private:
  void NextLocked() {
    if (queue_.empty()) return;
    current_ = std::move(queue_.front());
    queue_.pop_front();
    writing_ = true;
    this->StartWrite(current_.get());
  }
  void CloseLocked() {
    if (closed_) return;
    closed_ = true;
    queue_.clear();
    this->RemoveHold();
  }

  const LinkCallbacks callbacks_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<typename T::Service::Stub> stub_;
  grpc::ClientContext context_;
  typename T::Response reading_;  // owned by the read in flight
  std::mutex mu_;
  // All below guarded by mu_.
  std::deque<std::unique_ptr<typename T::Request>> queue_;
  std::unique_ptr<typename T::Request> current_;
  uint32_t outstanding_ = 0;
  bool writing_ = false, closed_ = false, read_paused_ = false;
  std::shared_ptr<LinkImpl> self_;
};

template <typename T>
std::shared_ptr<WorkerLink> OpenAs(const std::string& address, uint64_t mine, uint64_t theirs, LinkCallbacks cb) {
  auto link = std::make_shared<LinkImpl<T>>(address, std::move(cb));
  link->Start(mine, theirs);
  return link;
}

}  // namespace

std::shared_ptr<WorkerLink> WorkerLink::Open(Role role, const std::string& address, uint64_t router_incarnation,
                                             uint64_t worker_incarnation, LinkCallbacks callbacks) {
  return role == Role::kPrefill
             ? OpenAs<PrefillTraits>(address, router_incarnation, worker_incarnation, std::move(callbacks))
             : OpenAs<DecodeTraits>(address, router_incarnation, worker_incarnation, std::move(callbacks));
}

}  // namespace agentserve::router
