// Everything that configures a router process; filled once in main.
#pragma once

#include <cstdint>
#include <string>

#include "router/core/config.h"

namespace agentserve::router {

struct ServiceConfig {
  std::string host = "127.0.0.1";
  int port = 0;
  int metrics_port = 0;
  std::string model_dir;
  std::string model_id;  // empty = name of the folder
  std::string kvstore;   // host:port or empty
  std::string chat_date = "26 Jul 2024";
  CoreConfig core;

  int64_t default_budget_ms = 600'000;
  int64_t max_budget_ms = 3'600'000;
  int64_t drain_ms = 30'000;

  // Token rate is far below this; a reader 256 KiB behind (some 3,000 deltas) does not read any more.
  uint32_t stream_buffer_bytes = 256 << 10;
  // Tokenising runs at tens of MB/s per thread; two threads and 64 MiB of waiting text are under two seconds of work.
  uint32_t edge_threads = 2;
  uint32_t edge_queue = 2'048;
  uint64_t edge_queue_bytes = 64ull << 20;
  // Prompts over this many bytes per context token are refused unread: real text has 3 to 5.
  uint32_t max_bytes_per_token = 16;
  uint32_t max_watchers = 64;
  // 128k token ids take 0.6 MiB; chats of a full context about 1 MiB.
  int max_message_bytes = 8 << 20;
};

}  // namespace agentserve::router
