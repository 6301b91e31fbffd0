// Routes and their handlers: the OpenAI surface in front of a router.
#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "gateway/auth.h"
#include "gateway/generation.h"
#include "gateway/http/exchange.h"

namespace agentserve::gateway {

// Thread-safe. `config` and `clock` must outlive it.
class Gateway final : public RequestHandler {
 public:
  Gateway(boost::asio::io_context& io, const GatewayConfig& config, const base::Clock* clock);
  ~Gateway() override;

  // Begins to watch the router.
  void Start();
  // /ready and /health answer 503 from now on.
  void BeginDrain();
  // After the I/O threads stopped: waits for the last calls.
  void Stop();

  GatewayMetrics& metrics() { return metrics_; }
  ModelWatcher& model() { return *model_; }

  std::optional<HttpReply> CheckHead(const HttpRequest& head) override;
  std::shared_ptr<ActiveRequest> Handle(HttpRequest request, std::shared_ptr<Exchange> exchange) override;
  HttpReply ProtocolError(int status, const std::string& detail) override;

 private:
  // What every handler gets.
  struct Call {
    HttpRequest request;
    std::shared_ptr<Exchange> exchange;
    std::string route;
    std::string request_id;
    std::string tenant;
    HeaderList headers;
  };
  using Active = std::shared_ptr<ActiveRequest>;

  Active Generate(Call call, bool chat);
  Active Tokenize(Call call);
  Active Detokenize(Call call);
  // agent_api.cc
  std::string TenantOf(const Call& call) const;
  template <typename Response, typename Begin>
  Active AskRouter(Call call, Begin begin, std::function<std::optional<ApiError>(const Response&, std::string*)> reply);
  Active Decision(Call call);
  Active Decisions(Call call);
  Active Program(Call call);
  Active ProgramTool(Call call);

  void Models(Call call);
  void Health(Call call);
  void Ready(Call call);
  void Index(Call call);
  void Reply(Call& call, HttpReply reply);
  void ReplyJson(Call& call, int status, std::string body);
  void ReplyError(Call& call, const ApiError& error);
  // Parses the body; replies and returns nullopt if it is bad.
  std::optional<nlohmann::json> Body(Call& call);
  ModelFacts Facts() const { return model_->Get().facts; }
  Metadata MetadataFor(const Call& call) const;
  HeaderList BaseHeaders(const std::string& request_id) const;

  const GatewayConfig& config_;
  const base::Clock* clock_;
  GatewayMetrics metrics_;
  Authenticator auth_;
  RouterClient router_;
  std::shared_ptr<ModelWatcher> model_;
  std::atomic<bool> draining_{false};
};

}  // namespace agentserve::gateway
