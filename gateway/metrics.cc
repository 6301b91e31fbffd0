#include "gateway/metrics.h"

#include "base/strings.h"
#include "base/version.h"
#include "gateway/agent_context.h"

namespace agentserve::gateway {
namespace {

constexpr const char* kPrefix = "agentserve_gateway_";
std::string Name(std::string_view n) { return base::StrCat(kPrefix, n); }

// Fields of the OpenAI and vLLM surfaces that are accepted and have no effect.
constexpr std::string_view kKnownIgnored[] = {"store",
                                              "service_tier",
                                              "reasoning_effort",
                                              "verbosity",
                                              "prediction",
                                              "request_id",
                                              "stream_interval",
                                              "length_penalty",
                                              "include_reasoning",
                                              "logprob_token_ids",
                                              "thinking_token_budget",
                                              "spaces_between_special_tokens",
                                              "web_search_options",
                                              "other"};

constexpr std::string_view kFinishes[] = {"stop", "length", "tool_calls", "error", "client_gone"};

}  // namespace

GatewayMetrics::GatewayMetrics()
    : metrics_({}),
      ttft_s(
          metrics_.Histogram(Name("time_to_first_token_seconds"),
                             "From the whole request received to the first output, tokenizing and queueing included.",
                             base::TtftBuckets())),
      itl_s(metrics_.Histogram(Name("inter_token_latency_seconds"), "Between two outputs of one sequence.",
                               base::ItlBuckets())),
      e2e_s(metrics_.Histogram(Name("e2e_request_latency_seconds"), "From the whole request received to the end.",
                               base::E2eBuckets())),
      prompt_length(metrics_.Histogram(Name("request_prompt_tokens"), "Prompt tokens per finished request.",
                                       base::TokenCountBuckets())),
      output_length(metrics_.Histogram(Name("request_generation_tokens"), "Generated tokens per finished request.",
                                       base::TokenCountBuckets())),
      prompt_tokens(metrics_.Counter(Name("prompt_tokens_total"), "Prompt tokens of finished requests.")),
      generation_tokens(metrics_.Counter(Name("generation_tokens_total"), "Generated tokens of finished requests.")),
      cached_tokens(metrics_.Counter(Name("cached_tokens_total"), "Prompt tokens that came from the prefix cache.")),
      in_flight(metrics_.Gauge(Name("requests_in_flight"), "Generation requests being served.")),
      streams(metrics_.Gauge(Name("streams_open"), "Event streams being sent.")),
      connections(metrics_.Gauge(Name("connections"), "Open client connections.")),
      body_bytes(metrics_.Gauge(Name("body_bytes"), "Request bodies held, reserved size.")),
      router_ready(metrics_.Gauge(Name("router_ready"), "1 = the router answers and can serve.")),
      connections_refused(metrics_.Counter(Name("connections_refused_total"), "Connections beyond the limit.")),
      disconnects(
          metrics_.Counter(Name("client_disconnects_total"), "Clients that left before their reply was complete.")),
      slow_clients(metrics_.Counter(Name("slow_clients_total"), "Streams closed because the client did not read.")),
      retries(metrics_.Counter(Name("router_retries_total"), "Requests sent to the router a second time.")),
      client_retries(metrics_.Counter(Name("client_retries_total"), "Requests that their SDK marked as a retry.")),
      pings(metrics_.Counter(Name("pings_total"), "Keep-alive comments on silent streams.")) {
  const std::string finish_help = "Ends of sequences by reason.";
  for (const auto f : kFinishes) {
    finishes_[std::string(f)] = &metrics_.Counter(Name("finish_total"), finish_help, {{"reason", std::string(f)}});
  }
  const std::string ignored_help = "Body members that were accepted and have no effect.";
  for (const auto f : kKnownIgnored) {
    ignored_[std::string(f)] =
        &metrics_.Counter(Name("ignored_fields_total"), ignored_help, {{"field", std::string(f)}});
  }
  const std::string hint_help = "Agent hints whose value was left out, by where they came from.";
  for (const auto s : kHintSources) {
    hints_[std::string(s)] =
        &metrics_.Counter(Name("agent_hints_ignored_total"), hint_help, {{"source", std::string(s)}});
  }
  metrics_
      .Gauge(Name("info"), "Always 1; labels say which build this is.",
             {{"version", base::Version()}, {"commit", base::Commit()}})
      .Set(1);
}

void GatewayMetrics::CountRequest(std::string_view route, int status) {
  // Bounded: routes are patterns of the route table, statuses those of api_error.cc.
  metrics_
      .Counter(Name("requests_total"), "HTTP requests by route and status; 499 = the client left.",
               {{"route", std::string(route)}, {"status", base::StrCat(status)}})
      .Increment();
}

void GatewayMetrics::CountReject(std::string_view reason) {
  std::lock_guard lock(mutex_);
  auto it = reasons_.find(reason);
  if (it == reasons_.end()) {
    const std::string label(reasons_.size() < kMaxReasons ? reason : "other");
    auto& counter =
        metrics_.Counter(Name("rejects_total"), "Requests refused or failed, by reason.", {{"reason", label}});
    it = reasons_.emplace(label, &counter).first;
  }
  it->second->Increment();
}

void GatewayMetrics::CountFinish(std::string_view finish_reason) {
  const auto it = finishes_.find(finish_reason);
  (it == finishes_.end() ? finishes_.find("error") : it)->second->Increment();
}

void GatewayMetrics::CountIgnoredHint(std::string_view source) {
  if (const auto it = hints_.find(source); it != hints_.end()) it->second->Increment();
}

void GatewayMetrics::CountIgnoredField(std::string_view name) {
  const auto it = ignored_.find(name);
  (it == ignored_.end() ? ignored_.find("other") : it)->second->Increment();
}

}  // namespace agentserve::gateway
