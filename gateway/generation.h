// One generation request from the parsed body to the last byte: calls the router, feeds the reply, pings, retries, and
// cancels when the client leaves. Ends in exactly one way: a complete reply, one error, or silence to a lost client.
#pragma once

#include <boost/asio/steady_timer.hpp>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "gateway/config.h"
#include "gateway/http/exchange.h"
#include "gateway/metrics.h"
#include "gateway/model_watcher.h"
#include "gateway/openai/reply_assembler.h"
#include "gateway/router_client.h"

namespace agentserve::gateway {

// What a generation needs from its surroundings; all outlive it.
struct GenerationDeps {
  const GatewayConfig* config = nullptr;
  RouterClient* router = nullptr;
  ModelWatcher* model = nullptr;
  GatewayMetrics* metrics = nullptr;
  const base::Clock* clock = nullptr;
};

struct GenerationStart {
  ParsedGeneration parsed;  // agent context, trace and budget are filled
  std::string route;        // label
  std::string request_id;   // x-request-id
  std::string model;        // shown in the reply
  HeaderList headers;       // of the reply: x-request-id, CORS
  Metadata metadata;        // to the router
  int64_t budget_ms = 0;
  base::TimeNs received_ns = 0;
};

// Single-threaded on exchange->executor().
class Generation final : public ActiveRequest, public std::enable_shared_from_this<Generation> {
 public:
  Generation(const GenerationDeps& deps, GenerationStart start, std::shared_ptr<Exchange> exchange);
  ~Generation() override;
  void Start();
  void OnClientGone() override;

 private:
  // One prompt's stream.
  struct Source {
    std::shared_ptr<GenerateCall> call;
    int attempts = 0;
    bool accepted = false;
    bool emitted = false;  // output was received: a second try would repeat it
    bool over = false;
    bool waits_for_router = false;  // lost its router, retried when it is back
    base::TimeNs status_until = 0;  // events ended; when the status is overdue
  };

  void Prepare();
  void PrepareTokenIds(size_t prompt);
  void PrepareEcho(size_t prompt);
  void OnPrepared();
  void Launch(size_t source);
  void OnSource(size_t source);
  bool OnEvent(size_t source, const pb::GenerateResponse& event, std::string* out);
  void OnStatus(size_t source, const grpc::Status& status, std::string* out);
  void OnAccepted(const pb::Accepted& accepted);
  void ReportToolCall();
  void ObserveDelta(size_t source, const pb::Delta& delta);
  void CommitHeaders(std::string* out);
  void WriteOut(std::string_view bytes);
  void Succeed(std::string* out);
  void Fail(const ApiError& error);
  void Finish(int status, std::string_view reason);
  void CancelCalls();
  void RetryLost(base::TimeNs now);
  void ArmTimer();
  void OnTimer();
  int64_t RemainingMs() const;
  base::TimeNs HardDeadline() const;

  GenerationDeps deps_;
  GenerationStart start_;
  std::shared_ptr<Exchange> exchange_;
  boost::asio::steady_timer timer_;
  ReplyAssembler assembler_;
  std::vector<Source> sources_;
  std::vector<std::shared_ptr<UnaryHandle>> preparing_;
  std::string router_request_id_;  // of the first prompt
  size_t prepare_open_ = 0;
  bool committed_ = false;
  bool over_ = false;
  base::TimeNs retry_until_ = 0;
  base::TimeNs last_write_ = 0;
  base::TimeNs first_output_ = 0;
  std::vector<base::TimeNs> last_output_;  // per choice
};

}  // namespace agentserve::gateway
