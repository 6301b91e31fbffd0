#include "gateway/model_watcher.h"

#include <boost/asio/post.hpp>

#include "base/log.h"
#include "base/strings.h"

namespace agentserve::gateway {
namespace {

using base::Field;

constexpr int64_t kDeadlineMs = 2'000;
constexpr auto kWhileReady = std::chrono::milliseconds(1'000);
constexpr auto kWhileNotReady = std::chrono::milliseconds(100);

}  // namespace

ModelWatcher::ModelWatcher(boost::asio::io_context& io, RouterClient* router, GatewayMetrics* metrics)
    : strand_(boost::asio::make_strand(io)), timer_(strand_), router_(router), metrics_(metrics) {
  state_.problem = "the router has not answered yet";
}

void ModelWatcher::Start() {
  boost::asio::post(strand_, [self = shared_from_this()] { self->Ask(); });
}

void ModelWatcher::Stop() {
  boost::asio::post(strand_, [self = shared_from_this()] {
    self->stopped_ = true;
    self->timer_.cancel();
  });
}

void ModelWatcher::Poke() {
  boost::asio::post(strand_, [self = shared_from_this()] { self->Ask(); });
}

ModelState ModelWatcher::Get() const {
  std::lock_guard lock(mutex_);
  return state_;
}

void ModelWatcher::Ask() {
  if (asking_ || stopped_) return;
  asking_ = true;
  timer_.cancel();
  router_->GetModel(kDeadlineMs, [weak = weak_from_this()](const grpc::Status& status, const pb::GetModelResponse& r) {
    auto self = weak.lock();
    if (!self) return;
    boost::asio::post(self->strand_, [self, status, r] { self->OnAnswer(status, r); });
  });
}

void ModelWatcher::OnAnswer(const grpc::Status& status, const pb::GetModelResponse& response) {
  asking_ = false;
  bool changed = false, ready = false;
  std::string problem;
  {
    std::lock_guard lock(mutex_);
    const bool was_ready = state_.ready;
    state_.reachable = status.ok();
    state_.ready = status.ok() && response.ready();
    if (status.ok()) {
      state_.facts = {response.model_id(), response.context_length(), response.vocab_size(), response.created_unix_s()};
      state_.problem = state_.ready ? "" : "no worker is ready to serve the model";
    } else {
      state_.problem = base::StrCat("the router does not answer: ", status.error_message());
    }
    ready = state_.ready;
    changed = was_ready != ready;
    problem = state_.problem;
  }
  metrics_->router_ready.Set(ready ? 1 : 0);
  if (changed && ready) {
    AS_LOG(kInfo, "router.ready") << Field("model", response.model_id());
  } else if (changed) {
    AS_LOG(kWarn, "router.not_ready") << Field("problem", problem);
  }
  if (stopped_) return;
  timer_.expires_after(ready ? kWhileReady : kWhileNotReady);
  timer_.async_wait([self = shared_from_this()](boost::system::error_code ec) {
    if (!ec) self->Ask();
  });
}

}  // namespace agentserve::gateway
