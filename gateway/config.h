// Everything that can be set on the gateway, filled once in main.cc. Each limit states its reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace agentserve::gateway {

struct HttpLimits {
  // A full 131,072-token context as JSON token ids is below 1 MiB and as text about 600 KiB; sixteen megabytes leave
  // room for tools, logit_bias and escaped text, while a thousand uploads still fit in `inflight_body_bytes`.
  size_t body_bytes = 16u << 20;
  // All request bodies that are being received or served at once: 64 of the largest size.
  size_t inflight_body_bytes = 1u << 30;
  // Request line and headers: the largest common proxies send is 8 KiB; cookies may double it.
  size_t header_bytes = 32u << 10;
  // Each connection costs about 10 KiB and one descriptor.
  size_t connections = 4096;
  // Bytes that one stream may have waiting for a slow client: several thousand chunks.
  size_t outbound_bytes = 1u << 20;
  // One non-streamed reply: 131,072 tokens of text fit many times; 20 logprobs for each of them do not.
  size_t reply_bytes = 64u << 20;
  // From the first byte of a request to the end of its headers.
  int64_t header_timeout_ms = 10'000;
  // From the end of the headers to the end of the body.
  int64_t body_timeout_ms = 60'000;
  // Keep-alive connection without a request.
  int64_t idle_timeout_ms = 75'000;
  // A client that takes no byte for this long is gone.
  int64_t write_timeout_ms = 60'000;
  // After an early error: how long the rest of the request is read and thrown away, so that the client sees the reply.
  int64_t linger_ms = 2'000;
};

struct RequestLimits {
  // Sequences per prompt.
  uint32_t n = 16;
  // Prompts in one /v1/completions call, and prompts times n.
  uint32_t prompts = 64;
  uint32_t sequences = 128;
  uint32_t messages = 8192;
  uint32_t tools = 128;
  size_t tools_bytes = 1u << 20;
  uint32_t stop = 16;
  size_t stop_bytes = 256;
  uint32_t stop_token_ids = 64;
  uint32_t logit_bias = 1024;
  // Nesting of the request JSON: deep JSON schemas of tools stay below 40.
  int json_depth = 64;
  // Values in the request JSON: more than any token list a model can take, small enough to parse in well under a
  // second.
  size_t json_values = 2'000'000;
};

struct GatewayConfig {
  std::string host = "127.0.0.1";
  int port = 8000;
  std::string router = "127.0.0.1:7000";
  // One HTTP/2 connection is one flow-control window and one poller, hence more than one.
  int router_channels = 2;
  // Two, so that parsing one huge body does not hold up everyone else's tokens.
  int io_threads = 2;
  std::vector<std::string> api_keys;
  // Tenants of the keys, by place; shorter or "" = named by place ("key-0").
  std::vector<std::string> api_key_names;
  // Value of access-control-allow-origin; empty = no CORS headers.
  std::string cors_origin;
  // Time budget of a request that does not ask for less.
  int64_t request_timeout_ms = 600'000;
  // Silence on a stream after which a comment is sent; 0 = never.
  int64_t ping_ms = 15'000;
  // A streamed request that is still undecided after this long gets its headers, so that pings can flow.
  int64_t commit_headers_ms = 2'000;
  // How long a request that emitted nothing waits for a lost router before its second try.
  int64_t retry_wait_ms = 3'000;
  int64_t drain_timeout_ms = 30'000;
  HttpLimits http;
  RequestLimits request;
};

}  // namespace agentserve::gateway
