#include "tools/cli/bench/agents.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <csignal>
#include <deque>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>  // before Asio, see sse_client.h

#include "base/status_macros.h"
#include "base/strings.h"
#include "tools/cli/bench/record.h"
#include "tools/cli/http/sse_client.h"
#include "tools/sim/content.h"

namespace agentserve::tools {

namespace asio = boost::asio;
using asio::awaitable;
using base::StrCat;
using base::TimeNs;

namespace {

constexpr auto kProgressInterval = std::chrono::milliseconds(250);

class AgentsRun {
 public:
  AgentsRun(const AgentsConfig& config, const workload::Workload& w, const sim::StepModel& model,
            const std::vector<uint32_t>& pool, asio::ip::tcp::endpoint server,
            const std::function<void(const AgentsProgress&)>& on_progress)
      : c_(config),
        w_(w),
        pool_(pool),
        server_(server),
        on_progress_(on_progress),
        replay_(&w, &model, Options(config)),
        gaps_(config.arrivals, config.rate, config.seed * 31 + 9) {}

  sim::RunRecords Run() {
    begin_ = clock_.Now();
    asio::signal_set signals(io_, SIGINT, SIGTERM);
    signals.async_wait([this](const boost::system::error_code& ec, int) {
      if (!ec) io_.stop();
    });
    order_.resize(w_.programs.size());
    for (uint32_t i = 0; i < order_.size(); ++i) order_[i] = i;
    base::SplitMix64 rng(c_.seed * 77 + 5);  // the simulator's order
    for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[rng.Below(i)]);
    if (c_.arrivals == workload::ArrivalKind::kClosed) {
      for (uint32_t i = 0; i < c_.population; ++i) StartSession();
    } else {
      PlanArrival();
    }
    Tick();
    io_.run();
    return std::move(replay_.records());
  }

 private:
  static sim::Replay::Options Options(const AgentsConfig& c) {
    sim::Replay::Options o;
    o.count_from = static_cast<TimeNs>(c.warmup_s * 1e9);
    o.count_to = static_cast<TimeNs>(c.duration_s * 1e9);
    o.wait_scale = c.wait_scale;
    return o;
  }
  TimeNs Now() const { return clock_.Now() - begin_; }
  bool Arriving() const { return Now() < static_cast<TimeNs>(c_.duration_s * 1e9); }

  template <typename Action>
  void At(TimeNs at, Action action) {
    auto timer = std::make_shared<asio::steady_timer>(io_);
    timer->expires_after(std::chrono::nanoseconds(std::max<TimeNs>(0, at - Now())));
    timer->async_wait([timer, action](const boost::system::error_code& ec) {
      if (!ec) action();
    });
  }

  void PlanArrival() {
    next_arrival_ += static_cast<TimeNs>(gaps_.Next() * 1e9);
    if (next_arrival_ >= static_cast<TimeNs>(c_.duration_s * 1e9)) return;
    At(next_arrival_, [this] {
      StartSession();
      PlanArrival();
    });
  }

  void StartSession() {
    const uint64_t n = next_program_++;
    replay_.Start(order_[n % order_.size()], n / order_.size(), Now());
    PlanReady();
  }

  void PlanReady() {
    for (const sim::Replay::Ready& r : replay_.TakeReady()) {
      At(r.at, [this, r] {
        waiting_.push_back(r);
        Pump();
      });
    }
  }

  void Pump() {
    while (!waiting_.empty() && in_flight_ < c_.most_calls) {
      const sim::Replay::Ready r = waiting_.front();
      waiting_.pop_front();
      ++in_flight_;
      replay_.Sent(r.session, r.call, Now());
      asio::co_spawn(io_, One(r.session, r.call), asio::detached);
    }
  }

  std::string Body(const sim::Replay::Session& s, const workload::Call& c, uint32_t call) const {
    nlohmann::json prompt = nlohmann::json::array();
    for (engine::TokenId t : sim::Tokens(workload::Spans(w_, s.program, call, s.instance), c.in)) {
      prompt.push_back(pool_[t % pool_.size()]);
    }
    return nlohmann::json{{"model", c_.model},
                          {"prompt", std::move(prompt)},
                          {"max_tokens", c.out},
                          {"ignore_eos", true},
                          {"temperature", 0},
                          {"stream", true},
                          {"stream_options", {{"include_usage", true}}}}
        .dump();
  }

  void AddHeaders(const sim::Replay::Session& s, const workload::Call& c, uint32_t call, HttpRequest* request) const {
    if (!c_.hints) return;
    const workload::Program& p = w_.programs[s.program];
    auto& h = request->headers;
    // Names differ between runs against one cluster: it must not take them for each other's.
    h.emplace_back("x-agentserve-program-id", StrCat(p.id, "#", s.number, "-", begin_));
    h.emplace_back("x-agentserve-workflow-class", w_.classes[p.workflow]);
    h.emplace_back("x-agentserve-step-index", StrCat(s.plan->calls[call].step));
    if (c.tool > 0) h.emplace_back("x-agentserve-tool-name", w_.tools[c.tool]);
    if (c.background) h.emplace_back("x-agentserve-blocking", "false");
  }

  awaitable<void> One(uint64_t session, uint32_t call) {
    HttpRequest request;
    const sim::Replay::Session& s = replay_.session(session);
    const workload::Call& c = w_.programs[s.program].calls[call];
    request.target = "/v1/completions";
    request.body = Body(s, c, call);
    request.api_key = c_.api_key;
    request.timeout = static_cast<TimeNs>(c_.timeout_s * 1e9);
    AddHeaders(s, c, call, &request);
    RequestRecord record;
    StreamReader reader(&record);
    record.start = clock_.Now();
    const HttpOutcome outcome =
        co_await Exchange(server_, c_.url, std::move(request),
                          [this, &reader](std::string_view data) { return reader.OnEvent(data, clock_.Now()); });
    reader.OnEnd(clock_.Now());
    if (!outcome.ok() && errors_++ < 3) std::fprintf(stderr, "a call failed: %s\n", outcome.Explain().c_str());
    sim::Replay::Outcome o;
    o.ok = outcome.ok() && record.ok();
    o.ttft_s = record.ttft_ms() / 1000;
    o.e2e_s = record.e2e_ms() / 1000;
    o.cached = record.cached_tokens;
    --in_flight_;
    const bool over = replay_.Ended(session, call, o, Now());
    if (over && c_.arrivals == workload::ArrivalKind::kClosed && Arriving()) StartSession();
    PlanReady();
    Pump();
    if (!Arriving() && replay_.counted_open() == 0) io_.stop();
  }

  void Tick() {
    At(Now() + std::chrono::nanoseconds(kProgressInterval).count(), [this] {
      AgentsProgress p;
      p.seconds = static_cast<double>(Now()) / 1e9;
      p.sessions = replay_.sessions();
      p.in_flight = in_flight_;
      p.waiting = waiting_.size();
      p.jobs = replay_.jobs_done();
      p.failed = replay_.records().failed;
      if (on_progress_) on_progress_(p);
      if (!Arriving() && replay_.counted_open() == 0) {
        io_.stop();
      } else {
        Tick();
      }
    });
  }

  const AgentsConfig& c_;
  const workload::Workload& w_;
  const std::vector<uint32_t>& pool_;
  const asio::ip::tcp::endpoint server_;
  const std::function<void(const AgentsProgress&)>& on_progress_;
  base::MonotonicClock clock_;
  TimeNs begin_ = 0, next_arrival_ = 0;
  sim::Replay replay_;
  workload::ArrivalGaps gaps_;
  std::vector<uint32_t> order_;
  uint64_t next_program_ = 0;
  std::deque<sim::Replay::Ready> waiting_;
  uint32_t in_flight_ = 0;
  size_t errors_ = 0;
  asio::io_context io_{1};
};

}  // namespace

absl::StatusOr<sim::RunRecords> RunAgents(const AgentsConfig& config, const workload::Workload& w,
                                          const sim::StepModel& model, const std::vector<uint32_t>& token_pool,
                                          const std::function<void(const AgentsProgress&)>& on_progress) {
  if (token_pool.empty()) return absl::UnavailableError("the server has no /tokenize, so prompts cannot be made");
  AS_ASSIGN_OR_RETURN(const asio::ip::tcp::endpoint server, ResolveUrl(config.url));
  return AgentsRun(config, w, model, token_pool, server, on_progress).Run();
}

}  // namespace agentserve::tools
