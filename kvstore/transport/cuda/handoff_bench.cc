// What a hand-off between two processes costs: the owner writes progress words as a prefill of a given speed would and
// digests its layers, the reader pulls behind it, layer by layer, as a decode worker does.
//
//   kv_handoff_bench [--reader-gpu N] [--tries N] [--json FILE]      the owner is on GPU 0
//
// exposed: from the owner's last layer to the end of the reader's validation against the digests that the owner has put
// into its control page, i.e. what the overlap did not hide. whole: everything at once, when nothing was pulled before.
// Prints a table and one JSON line a row; --json also writes the lines to a file.
#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "base/check.h"
#include "base/flags.h"
#include "base/log.h"
#include "base/strings.h"
#include "kvstore/transport/cuda/owner_process_for_test.h"
#include "kvstore/transport/device_memory.h"
#include "kvstore/transport/layer_pull.h"
#include "kvstore/transport/peer_pool_impl.h"

namespace agentserve::kvstore::cuda {
namespace {

using engine::BlockId;

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}
double Us(int64_t ns) { return static_cast<double>(ns) / 1e3; }

struct Shape {
  const char* name;
  engine::KvLayout layout;
  double prefill_ms[3];  // of 1k, 8k and 32k tokens: what the kernels aim at
};
constexpr uint32_t kPrompts[3] = {1024, 8192, 32768};
constexpr uint32_t kChunk = 8192;

// Nanoseconds from the owner's last layer on.
struct Result {
  int64_t exposed = 0;  // valid
  int64_t seen = 0;     // the reader has seen the word of the last layer
  int64_t copied = 0;   // all layers are copied and summed
  int64_t sealed = 0;   // the owner has stored its digests
  int64_t digests = 0;  // the reader has them
  int64_t copy = 0;     // inside reads, all layers; not from the last one on
  int64_t host = 0;     // of the owner's thread for telling and digesting, all layers
};

class Reader {
 public:
  Reader(OwnerProcess* owner, PeerPool* peer, BlockMemory* memory, uint32_t blocks)
      : owner_(*owner), peer_(*peer), memory_(*memory) {
    for (uint32_t i = 0; i < blocks; ++i) to_.emplace_back((i * 7919) % blocks);  // blocks is a power of two
  }

  Result Follow(std::vector<BlockRef> refs, uint32_t chunks, uint32_t layer_us) {
    const size_t n = refs.size();
    LayerPull pull(memory_.view().layout, {refs, {to_.begin(), to_.begin() + static_cast<ptrdiff_t>(n)}, 0});
    PullPace pace;
    const ProgressRef slot = owner_.Prefill(0, static_cast<uint32_t>(n), chunks, layer_us);
    int64_t seen = 0;
    while (!pull.complete()) {
      const auto progress = peer_.LoadProgress(slot.slot, slot.tag);
      AS_CHECK(progress.ok()) << progress.status().message();
      seen = NowNs();
      const uint64_t before = pull.bytes();
      AS_CHECK(pull.Advance(peer_, memory_.view(), *progress).ok());
      if (pull.bytes() != before) {
        pace.Came(seen);
      } else if (const int64_t sleep = pace.SleepNs(seen); sleep > 0) {
        std::this_thread::sleep_for(std::chrono::nanoseconds(sleep));
      }
    }
    const int64_t copied = NowNs();
    for (BlockRef& ref : refs) {
      while ((ref.digest = peer_.SealedDigest(ref)) == 0) {
      }
    }
    const int64_t digests = NowNs();
    AS_CHECK(pull.SetFinal(refs));
    const ValidateResult valid = pull.Validate(peer_, memory_.view());
    const int64_t end = NowNs();
    AS_CHECK(valid.ok()) << valid.detail;
    const OwnerProcess::Ended owner = owner_.PrefillEnd();
    const auto last = static_cast<int64_t>(owner.last_layer_ns);
    return {end - last,
            seen - last,
            copied - last,
            static_cast<int64_t>(owner.seal_ns),
            digests - last,
            pull.copy_ns(),
            static_cast<int64_t>(owner.host_ns)};
  }

  int64_t Whole(const std::vector<BlockRef>& refs) {
    const int64_t begin = NowNs();
    AS_CHECK(peer_.ReadBlocks(refs, memory_.view(), std::span<const BlockId>(to_).first(refs.size())).ok());
    return NowNs() - begin;
  }

 private:
  OwnerProcess& owner_;
  PeerPool& peer_;
  BlockMemory& memory_;
  std::vector<BlockId> to_;
};

struct Row {
  std::string shape, path;
  uint32_t tokens = 0;
  double bytes = 0, prefill_ms = 0, max_exposed_us = 0, whole_us = 0;
  Result median;
};

void Print(const Row& r, std::FILE* json) {
  const double share = Us(r.median.exposed) / (r.prefill_ms * 10);
  const double gb_s = r.bytes / r.whole_us / 1e3;
  std::printf("| %s %5u | %s | %6.0f | %7.1f | %6.1f (%6.1f) | %5.2f | %5.1f | %5.1f | %5.1f | %5.1f | %6.1f |\n",
              r.shape.c_str(), r.tokens, r.path.c_str(), r.bytes / 1e6, r.prefill_ms, Us(r.median.exposed),
              r.max_exposed_us, share, Us(r.median.seen), Us(r.median.copied), Us(r.median.sealed),
              Us(r.median.digests), gb_s);
  char line[1024];
  std::snprintf(line, sizeof(line),
                "{\"bench\":\"kv_handoff\",\"shape\":\"%s\",\"tokens\":%u,\"path\":\"%s\",\"bytes\":%.0f,"
                "\"prefill_ms\":%.1f,\"exposed_us\":%.1f,\"exposed_us_max\":%.1f,\"exposed_percent\":%.3f,"
                "\"seen_us\":%.1f,\"copied_us\":%.1f,\"sealed_us\":%.1f,\"digests_us\":%.1f,\"copy_us_total\":%.1f,"
                "\"owner_host_us_total\":%.1f,\"whole_us\":%.1f,\"whole_gb_s\":%.1f}\n",
                r.shape.c_str(), r.tokens, r.path.c_str(), r.bytes, r.prefill_ms, Us(r.median.exposed),
                r.max_exposed_us, share, Us(r.median.seen), Us(r.median.copied), Us(r.median.sealed),
                Us(r.median.digests), Us(r.median.copy), Us(r.median.host), r.whole_us, gb_s);
  std::fputs(line, stdout);
  std::fflush(stdout);
  if (json != nullptr) std::fputs(line, json);
}

struct Config {
  int reader_gpu = -1, tries = 5;
  std::string json_file;
};

void Run(const Shape& shape, TransportMode mode, const Config& c, std::FILE* json) {
  constexpr uint32_t kBlocks = 2048;
  OwnerProcess owner({0, shape.layout, kBlocks});
  auto memory = NewDeviceMemory(c.reader_gpu, shape.layout, kBlocks);
  AS_CHECK(memory.ok()) << memory.status().message();
  PeerOptions options;
  options.layout = shape.layout;
  options.memory = memory->get();
  options.mode = mode;
  options.probe_bytes = 64 << 20;
  auto peer = ConnectMapped(owner.endpoint(), options);
  AS_CHECK(peer.ok()) << peer.status().message();
  owner.Fill(1);
  const std::vector<BlockRef> all = owner.Write(0, kBlocks, 1, 0, 16);
  Reader reader(&owner, peer->get(), memory->get(), kBlocks);
  for (int k = 0; k < 3; ++k) {
    Row row{shape.name, std::string((*peer)->transport()), kPrompts[k], 0, shape.prefill_ms[k], 0, 0, {}};
    const uint32_t chunks = std::max(1u, row.tokens / kChunk);
    std::vector<BlockRef> refs(all.begin(), all.begin() + row.tokens / 16);
    for (BlockRef& ref : refs) ref.digest = 0;
    row.bytes = static_cast<double>(refs.size() * shape.layout.BlockBytes());
    const auto layer_us = static_cast<uint32_t>(row.prefill_ms * 1000 / (chunks * shape.layout.num_layers));
    std::vector<Result> results;
    std::vector<int64_t> whole;
    for (int t = 0; t < c.tries; ++t) {
      results.push_back(reader.Follow(refs, chunks, layer_us));
      whole.push_back(reader.Whole(refs));
    }
    const auto less = [](const Result& a, const Result& b) { return a.exposed < b.exposed; };
    std::sort(results.begin(), results.end(), less);
    std::sort(whole.begin(), whole.end());
    row.median = results[results.size() / 2];
    row.max_exposed_us = Us(results.back().exposed);
    row.whole_us = Us(whole[whole.size() / 2]);
    Print(row, json);
  }
}

int Main(int argc, char** argv) {
  base::InitLog("bench", base::LogLevel::kWarn, false);
  prctl(PR_SET_TIMERSLACK, 1000);  // as pulling threads do
  Config c;
  base::FlagSet flags("kv_handoff_bench", "Measures what a hand-off of KV from GPU 0 to another process costs.");
  flags.Add("reader-gpu", &c.reader_gpu, "GPU of the reader; -1 = the second one, or the only one");
  flags.Add("tries", &c.tries, "hand-offs of each kind");
  flags.Add("json", &c.json_file, "file that gets the figures, one object a line");
  if (const auto rc = flags.ParseOrExit(argc, argv)) return *rc;
  std::string why;
  const int devices = static_cast<int>(ListDevices(&why).size());
  if (c.reader_gpu < 0) c.reader_gpu = std::min(1, devices - 1);
  if (devices == 0 || c.reader_gpu >= devices) {
    std::printf("SKIPPED: %s\n", devices == 0 ? why.c_str() : "no such GPU");
    return 77;
  }
  std::FILE* json = c.json_file.empty() ? nullptr : std::fopen(c.json_file.c_str(), "w");
  AS_CHECK(c.json_file.empty() || json != nullptr) << "cannot write " << c.json_file;
  const Shape shapes[] = {{"1B", {16, 8, 64, 16, engine::KvDtype::kBf16, 1}, {3.2, 33, 200}},
                          {"3B", {28, 8, 128, 16, engine::KvDtype::kBf16, 2}, {8.8, 86, 480}}};
  std::printf("owner GPU 0, reader GPU %d; us from the owner's last layer on\n", c.reader_gpu);
  std::printf(
      "| shape, tokens | path | MB | prefill ms | exposed us (max) | %% of prefill | seen | copied | sealed | digests "
      "| "
      "GB/s whole |\n|---|---|---|---|---|---|---|---|---|---|---|\n");
  for (const Shape& shape : shapes) Run(shape, TransportMode::kAuto, c, json);
  c.tries = 1;
  Run(shapes[0], TransportMode::kStaged, c, json);
  if (json != nullptr) std::fclose(json);
  return 0;
}

}  // namespace
}  // namespace agentserve::kvstore::cuda

int main(int argc, char** argv) {
  agentserve::kvstore::cuda::RunOwnerIfAsked();
  return agentserve::kvstore::cuda::Main(argc, argv);
}
