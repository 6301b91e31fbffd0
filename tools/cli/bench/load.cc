#include "tools/cli/bench/load.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <csignal>
#include <nlohmann/json.hpp>
#include <utility>  // before Asio, see sse_client.h

#include "base/status_macros.h"
#include "base/strings.h"
#include "tools/cli/http/sse_client.h"

namespace agentserve::tools {

namespace asio = boost::asio;
using asio::awaitable;
using base::StrCat;
using nlohmann::json;

namespace {

constexpr auto kProgressInterval = std::chrono::milliseconds(100);
constexpr base::TimeNs kQuestionTimeout = 10 * base::kNsPerSecond;

std::string ErrorKind(const HttpOutcome& outcome) {
  if (absl::IsDeadlineExceeded(outcome.transport)) return "timeout";
  if (!outcome.transport.ok()) return outcome.status == 0 ? "connect" : "broken";
  return StrCat("http_", outcome.status);
}

// One load test. Everything runs on io_'s single thread.
class LoadRun {
 public:
  LoadRun(const LoadConfig& config, const Workload& workload, asio::ip::tcp::endpoint server,
          const std::function<void(const LoadProgress&)>& on_progress)
      : config_(config), workload_(workload), server_(server), on_progress_(on_progress) {}

  std::vector<RequestRecord> Run() {
    // Not counted: first requests pay for connections, caches and page faults.
    counting_ = false;
    limit_ = config_.warmup;
    Phase(std::min<int64_t>(config_.concurrency, config_.warmup), false);
    counting_ = true;
    next_ = 0;
    limit_ = config_.requests;
    progress_ = {};
    progress_.planned = config_.requests;
    if (config_.duration_s > 0) deadline_ = clock_.Now() + static_cast<base::TimeNs>(config_.duration_s * 1e9);
    Phase(config_.concurrency, config_.rate > 0);
    return std::move(records_);
  }

 private:
  void Phase(int64_t clients, bool open_loop) {
    if (interrupted_ || clients <= 0) return;
    io_.restart();
    begin_ = clock_.Now();
    asio::signal_set signals(io_, SIGINT, SIGTERM);
    signals.async_wait([this](const boost::system::error_code& ec, int) {
      if (ec) return;
      interrupted_ = true;
      io_.stop();
    });
    asio::steady_timer ticker(io_);
    if (counting_ && on_progress_) Tick(ticker);
    const auto finished = [&](std::exception_ptr error) {
      if (error) std::rethrow_exception(error);
      if (--actors_ > 0) return;
      signals.cancel();
      ticker.cancel();
    };
    actors_ = open_loop ? 1 : clients;
    for (int64_t i = 0; i < (open_loop ? 0 : clients); ++i) asio::co_spawn(io_, Client(), finished);
    if (open_loop) asio::co_spawn(io_, Arrivals(finished), finished);
    io_.run();
    if (counting_ && on_progress_) Report();
  }

  bool MoreToStart() const {
    if (limit_ > 0 && next_ >= static_cast<uint64_t>(limit_)) return false;
    return !counting_ || deadline_ == 0 || clock_.Now() < deadline_;
  }

  awaitable<void> Client() {
    while (MoreToStart()) co_await One();
  }

  template <typename Finished>
  awaitable<void> Arrivals(Finished finished) {
    PoissonGaps gaps(config_.rate, config_.seed);
    asio::steady_timer timer(io_);
    // Times are planned ahead of the clock, so that a late wake-up does not lower the rate.
    auto at = std::chrono::steady_clock::now();
    boost::system::error_code ec;
    while (MoreToStart()) {
      if (progress_.running >= config_.concurrency) {
        RefuseOne();
      } else {
        ++actors_;
        asio::co_spawn(io_, One(), finished);
      }
      at += std::chrono::nanoseconds(gaps.Next());
      timer.expires_at(at);
      co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ec));
    }
  }

  void RefuseOne() {
    ++next_;
    ++progress_.started;
    RequestRecord record;
    record.start = record.end = clock_.Now();
    record.error = "client_limit";
    Keep(std::move(record));
  }

  void Keep(RequestRecord record) {
    ++progress_.ended;
    progress_.tokens += record.completion_tokens;
    if (!record.ok()) ++progress_.failed;
    if (counting_) records_.push_back(std::move(record));
  }

  awaitable<void> One() {
    // Warm-up prompts come from other numbers, so that they leave nothing useful in a prefix cache.
    constexpr uint64_t kWarmupNumbers = uint64_t{1} << 40;
    const WorkItem item = workload_.Item(next_++ + (counting_ ? 0 : kWarmupNumbers));
    ++progress_.started;
    ++progress_.running;
    HttpRequest request;
    request.target = config_.chat ? "/v1/chat/completions" : "/v1/completions";
    request.body = RequestBody(config_, item);
    request.api_key = config_.api_key;
    request.timeout = static_cast<base::TimeNs>(config_.timeout_s * 1e9);
    RequestRecord record;
    StreamReader reader(&record);
    record.start = clock_.Now();
    const HttpOutcome outcome =
        co_await Exchange(server_, config_.url, std::move(request),
                          [this, &reader](std::string_view data) { return reader.OnEvent(data, clock_.Now()); });
    if (!outcome.ok()) record.error = ErrorKind(outcome);
    reader.OnEnd(clock_.Now());
    --progress_.running;
    Keep(std::move(record));
  }

  void Report() {
    progress_.seconds = static_cast<double>(clock_.Now() - begin_) / 1e9;
    on_progress_(progress_);
  }

  void Tick(asio::steady_timer& ticker) {
    ticker.expires_after(kProgressInterval);
    ticker.async_wait([this, &ticker](const boost::system::error_code& ec) {
      if (ec) return;
      Report();
      Tick(ticker);
    });
  }

  const LoadConfig& config_;
  const Workload& workload_;
  const asio::ip::tcp::endpoint server_;
  const std::function<void(const LoadProgress&)>& on_progress_;
  base::MonotonicClock clock_;
  asio::io_context io_{1};
  std::vector<RequestRecord> records_;
  LoadProgress progress_;
  uint64_t next_ = 0;
  int64_t limit_ = 0;
  int64_t actors_ = 0;
  base::TimeNs begin_ = 0;
  base::TimeNs deadline_ = 0;
  bool counting_ = false;
  bool interrupted_ = false;
};

}  // namespace

std::string RequestBody(const LoadConfig& config, const WorkItem& item) {
  json body = {{"model", config.model},
               {"stream", true},
               {"stream_options", {{"include_usage", true}}},
               {"max_tokens", item.output_tokens},
               {"temperature", config.temperature},
               {"seed", config.seed + item.number}};
  if (config.ignore_eos) body["ignore_eos"] = true;
  if (config.chat) {
    body["messages"] = json::array({{{"role", "user"}, {"content", item.prompt_text}}});
  } else if (item.prompt_ids.empty()) {
    body["prompt"] = item.prompt_text;
  } else {
    body["prompt"] = item.prompt_ids;
  }
  return body.dump();
}

absl::StatusOr<std::vector<RequestRecord>> RunLoad(const LoadConfig& config, const Workload& workload,
                                                   const std::function<void(const LoadProgress&)>& on_progress) {
  AS_ASSIGN_OR_RETURN(const asio::ip::tcp::endpoint server, ResolveUrl(config.url));
  return LoadRun(config, workload, server, on_progress).Run();
}

absl::StatusOr<std::string> FirstModel(const Url& url, const std::string& api_key) {
  HttpRequest request;
  request.method = "GET";
  request.target = "/v1/models";
  request.api_key = api_key;
  request.timeout = kQuestionTimeout;
  const HttpOutcome outcome = ExchangeBlocking(url, request, {});
  if (!outcome.ok()) return absl::UnavailableError(StrCat("GET /v1/models: ", outcome.Explain()));
  const json answer = json::parse(outcome.body, nullptr, false);
  if (!answer.is_object() || !answer.contains("data") || !answer["data"].is_array() || answer["data"].empty() ||
      !answer["data"][0].is_object() || !answer["data"][0].contains("id") || !answer["data"][0]["id"].is_string()) {
    return absl::InvalidArgumentError("GET /v1/models: the answer names no model; name one with --model");
  }
  return answer["data"][0]["id"].get<std::string>();
}

std::vector<uint32_t> FetchTokenPool(const Url& url, const std::string& api_key, const std::string& model) {
  HttpRequest request;
  request.target = "/tokenize";
  request.api_key = api_key;
  request.timeout = kQuestionTimeout;
  request.body = json{{"model", model}, {"prompt", SampleText()}, {"add_special_tokens", false}}.dump();
  const HttpOutcome outcome = ExchangeBlocking(url, request, {});
  const json answer = outcome.ok() ? json::parse(outcome.body, nullptr, false) : json();
  std::vector<uint32_t> pool;
  if (!answer.is_object() || !answer.contains("tokens") || !answer["tokens"].is_array()) return pool;
  for (const json& id : answer["tokens"]) {
    if (id.is_number_unsigned()) pool.push_back(id.get<uint32_t>());
  }
  std::sort(pool.begin(), pool.end());
  pool.erase(std::unique(pool.begin(), pool.end()), pool.end());
  return pool;
}

}  // namespace agentserve::tools
