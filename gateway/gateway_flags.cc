#include "gateway/gateway_flags.h"

#include <cstdio>
#include <fstream>
#include <sstream>

#include "base/flags.h"
#include "base/strings.h"

namespace agentserve::gateway {
namespace {

// Flags are given in human units and kept here until they are checked.
struct RawFlags {
  int64_t max_body_mib = 16;
  int64_t max_inflight_body_mib = 1024;
  int64_t max_header_kib = 32;
  int64_t max_connections = 4096;
  int64_t max_outbound_kib = 1024;
  int64_t header_timeout_s = 10;
  int64_t body_timeout_s = 60;
  int64_t idle_timeout_s = 75;
  int64_t write_timeout_s = 60;
  int64_t request_timeout_s = 600;
  int64_t ping_s = 15;
  int64_t drain_timeout_s = 30;
  int64_t max_n = 16;
  int64_t max_prompts = 64;
  int64_t metrics_port = 0;
  std::string api_key_file;
};

void AddFlags(base::FlagSet& flags, GatewayOptions* out, RawFlags* raw) {
  GatewayConfig& c = out->config;
  flags.Add("host", &c.host, "address to listen on", "Network");
  flags.Add("port", &c.port, "port to listen on; 0 = any free one", "Network");
  flags.Add("router", &c.router, "HOST:PORT of agentserve-router", "Network");
  flags.Add("router-channels", &c.router_channels, "HTTP/2 connections to the router", "Network");
  flags.Add("metrics-port", &raw->metrics_port, "ignored: /metrics is served on --port", "Network");
  flags.Add("io-threads", &c.io_threads, "threads that serve HTTP", "Network");
  flags.Add("cors-origin", &c.cors_origin, "value of access-control-allow-origin; empty = no CORS", "Network");
  flags.Add("api-key", &c.api_keys, "key that clients must send; repeat for several; none = open", "Security");
  flags.Add("api-key-file", &raw->api_key_file,
            "file with one key per line, and after a blank the tenant it stands for", "Security");
  flags.Add("max-body-mib", &raw->max_body_mib, "largest request body, MiB", "Limits");
  flags.Add("max-inflight-body-mib", &raw->max_inflight_body_mib, "all request bodies at once, MiB", "Limits");
  flags.Add("max-header-kib", &raw->max_header_kib, "request line and headers, KiB", "Limits");
  flags.Add("max-connections", &raw->max_connections, "open client connections", "Limits");
  flags.Add("max-outbound-kib", &raw->max_outbound_kib, "unsent bytes of a stream before a slow client is cut off, KiB",
            "Limits");
  flags.Add("max-n", &raw->max_n, "largest n of a request", "Limits");
  flags.Add("max-prompts", &raw->max_prompts, "prompts in one /v1/completions request", "Limits");
  flags.Add("header-timeout", &raw->header_timeout_s, "seconds for the headers of a request", "Timeouts");
  flags.Add("body-timeout", &raw->body_timeout_s, "seconds for the body of a request", "Timeouts");
  flags.Add("idle-timeout", &raw->idle_timeout_s, "seconds a connection may wait for its next request", "Timeouts");
  flags.Add("write-timeout", &raw->write_timeout_s, "seconds a client may read nothing while bytes wait", "Timeouts");
  flags.Add("request-timeout", &raw->request_timeout_s, "seconds for a whole request", "Timeouts");
  flags.Add("ping-interval", &raw->ping_s, "seconds of silence before a comment on a stream; 0 = never", "Timeouts");
  flags.Add("drain-timeout", &raw->drain_timeout_s, "seconds that running requests get after SIGTERM", "Timeouts");
  flags.Add("log-level", &out->log_level, "debug, info, warn or error", "Logging");
  flags.Add("log-json", &out->log_json, "log lines as JSON", "Logging");
}

std::string CheckRange(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return "";
  return base::StrCat("--", name, " is ", value, "; must be from ", least, " to ", most);
}

std::string Convert(const RawFlags& raw, GatewayConfig* c) {
  for (const auto& error :
       {CheckRange("port", c->port, 0, 65535), CheckRange("router-channels", c->router_channels, 1, 64),
        CheckRange("io-threads", c->io_threads, 1, 64), CheckRange("max-body-mib", raw.max_body_mib, 1, 1024),
        CheckRange("max-inflight-body-mib", raw.max_inflight_body_mib, raw.max_body_mib, 1 << 20),
        CheckRange("max-header-kib", raw.max_header_kib, 4, 1024),
        CheckRange("max-connections", raw.max_connections, 1, 1'000'000),
        CheckRange("max-outbound-kib", raw.max_outbound_kib, 64, 1 << 20), CheckRange("max-n", raw.max_n, 1, 128),
        CheckRange("max-prompts", raw.max_prompts, 1, 1024),
        CheckRange("header-timeout", raw.header_timeout_s, 1, 3600),
        CheckRange("body-timeout", raw.body_timeout_s, 1, 3600),
        CheckRange("idle-timeout", raw.idle_timeout_s, 1, 86400),
        CheckRange("write-timeout", raw.write_timeout_s, 1, 3600),
        CheckRange("request-timeout", raw.request_timeout_s, 1, 86400),
        CheckRange("ping-interval", raw.ping_s, 0, 3600), CheckRange("drain-timeout", raw.drain_timeout_s, 0, 3600)}) {
    if (!error.empty()) return error;
  }
  c->http.body_bytes = static_cast<size_t>(raw.max_body_mib) << 20;
  c->http.inflight_body_bytes = static_cast<size_t>(raw.max_inflight_body_mib) << 20;
  c->http.header_bytes = static_cast<size_t>(raw.max_header_kib) << 10;
  c->http.connections = static_cast<size_t>(raw.max_connections);
  c->http.outbound_bytes = static_cast<size_t>(raw.max_outbound_kib) << 10;
  c->http.header_timeout_ms = raw.header_timeout_s * 1000;
  c->http.body_timeout_ms = raw.body_timeout_s * 1000;
  c->http.idle_timeout_ms = raw.idle_timeout_s * 1000;
  c->http.write_timeout_ms = raw.write_timeout_s * 1000;
  c->request_timeout_ms = raw.request_timeout_s * 1000;
  c->ping_ms = raw.ping_s * 1000;
  c->drain_timeout_ms = raw.drain_timeout_s * 1000;
  c->request.n = static_cast<uint32_t>(raw.max_n);
  c->request.prompts = static_cast<uint32_t>(raw.max_prompts);
  if (raw.api_key_file.empty()) return "";
  std::ifstream file(raw.api_key_file);
  if (!file) return base::StrCat("--api-key-file: cannot read ", raw.api_key_file);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string key, tenant, more;
    words >> key >> tenant >> more;
    if (key.empty()) continue;
    if (!more.empty() || tenant.size() > 128) {
      return base::StrCat("--api-key-file: line ", c->api_keys.size() + 1, " of ", raw.api_key_file,
                          " must hold a key and, if wanted, a tenant of at most 128 bytes");
    }
    c->api_key_names.resize(c->api_keys.size());
    c->api_keys.push_back(key);
    c->api_key_names.push_back(tenant);
  }
  return c->api_keys.empty() ? base::StrCat("--api-key-file: ", raw.api_key_file, " holds no key") : "";
}

}  // namespace

std::optional<int> ParseGatewayFlags(int argc, const char* const* argv, GatewayOptions* out) {
  base::FlagSet flags("agentserve-gateway", "Serves the OpenAI HTTP API in front of agentserve-router.");
  RawFlags raw;
  AddFlags(flags, out, &raw);
  if (const auto rc = flags.ParseOrExit(argc, argv)) return rc;
  std::string error = Convert(raw, &out->config);
  for (const auto& key : out->config.api_keys) {
    if (key.empty()) error = "--api-key is empty; leave it out to serve without keys";
  }
  if (error.empty()) return std::nullopt;
  std::fprintf(stderr, "agentserve-gateway: %s\n", error.c_str());
  return base::kExitConfig;
}

}  // namespace agentserve::gateway
