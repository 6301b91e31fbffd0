#include "kvstore/transport/cuda/owner_process_for_test.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <thread>

#include "base/check.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/strings.h"
#include "kvstore/transport/device_memory.h"
#include "kvstore/transport/pool_exporter.h"

namespace agentserve::kvstore::cuda {
namespace {

constexpr char kEnv[] = "AGENTSERVE_TEST_OWNER";

uint64_t NowNs() {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
          .count());
}

// The child.
class Server {
 public:
  Server(const std::string& socket, int device, const engine::KvLayout& layout, uint32_t blocks) {
    auto memory = NewDeviceMemory(device, layout, blocks);
    AS_CHECK(memory.ok()) << memory.status().message();
    auto pool = KvPool::Create({layout, blocks, 8, 11, "owner", false}, *std::move(memory));
    AS_CHECK(pool.ok()) << pool.status().message();
    pool_ = *std::move(pool);
    auto exporter = PoolExporter::Start(pool_.get(), {socket, 4});
    AS_CHECK(exporter.ok()) << exporter.status().message();
    exporter_ = *std::move(exporter);
  }
  ~Server() {
    if (prefill_.joinable()) prefill_.join();
  }

  std::string Write(std::istringstream& in) {
    uint32_t first = 0, count = 0, epoch = 0, tokens = 0;
    uint64_t seed = 0;
    in >> first >> count >> epoch >> seed >> tokens;
    std::vector<engine::SealRequest> seals;
    for (uint32_t b = first; b < first + count; ++b) {
      pool_->SetBlockEpoch(engine::BlockId(b), engine::Epoch(epoch));
      if (seed != 0) {
        const auto content = ContentOf(pool_->layout(), b, seed);
        const PieceIn piece{b, 0, content.size(), content.data()};
        AS_CHECK(pool_->memory().CopyIn({&piece, 1}).ok());
      }
      seals.push_back({engine::SeqId(1), engine::BlockId(b), b, tokens});
    }
    const auto digests = pool_->Digests(seals);
    AS_CHECK(digests.ok()) << digests.status().message();
    std::string out = "ok";
    for (size_t i = 0; i < seals.size(); ++i) {
      pool_->SealBlock(seals[i].block, tokens, (*digests)[i]);
      base::StrAppend(&out, " ", (*digests)[i]);
    }
    return out;
  }

  std::string Corrupt(std::istringstream& in) {
    uint32_t block = 0;
    size_t offset = 0;
    in >> block >> offset;
    std::byte value{};
    const PieceOut out{block, offset, 1, &value};
    AS_CHECK(pool_->memory().CopyOut({&out, 1}).ok());
    value ^= std::byte{4};
    const PieceIn back{block, offset, 1, &value};
    AS_CHECK(pool_->memory().CopyIn({&back, 1}).ok());
    return "ok";
  }

  std::string Prefill(std::istringstream& in) {
    uint32_t first = 0, count = 0, chunks = 0, layer_us = 0;
    in >> first >> count >> chunks >> layer_us;
    if (prefill_.joinable()) prefill_.join();
    if (ref_.tag != 0) pool_->ReleaseProgress(ref_);
    ref_ = *pool_->AcquireProgress();
    for (uint32_t b = first; b < first + count; ++b) pool_->ReopenBlock(engine::BlockId(b));
    prefill_ = std::thread([this, first, count, chunks, layer_us] {
      const uint32_t block = pool_->layout().block_tokens;
      uint64_t next = NowNs() + 2'000'000;  // the reader has set out by then
      ended_ = {};
      for (uint32_t c = 0; c < chunks; ++c) {
        const uint32_t begin = count * c / chunks, end = count * (c + 1) / chunks;
        std::vector<engine::SealRequest> seals;
        for (uint32_t b = first + begin; b < first + end; ++b) {
          seals.push_back({engine::SeqId(1), engine::BlockId(b), b, block});
        }
        Chunk(seals, {begin * block, end * block, 0}, layer_us, &next);
      }
    });
    return base::StrCat("ok ", ref_.slot, " ", ref_.tag);
  }

  std::string Fill(std::istringstream& in) {
    uint64_t seed = 0;
    in >> seed;
    const auto content = ContentOf(pool_->layout(), 0, seed);
    std::vector<PieceIn> pieces;
    for (uint32_t b = 0; b < pool_->view().num_blocks; ++b) pieces.push_back({b, 0, content.size(), content.data()});
    AS_CHECK(pool_->memory().CopyIn(pieces).ok());
    return "ok";
  }

  std::string PrefillEnd() {
    if (prefill_.joinable()) prefill_.join();
    return base::StrCat("ok ", ended_.last_layer_ns, " ", ended_.seal_ns, " ", ended_.host_ns);
  }

 private:
  // As the loop of a prefill worker: the word of a layer, its digests; at the end the seals.
  void Chunk(const std::vector<engine::SealRequest>& seals, engine::PrefillProgress progress, uint32_t layer_us,
             uint64_t* next) {
    SealDigests digests(&pool_->memory(), seals);
    for (progress.layers = 1; progress.layers <= pool_->layout().num_layers; ++progress.layers) {
      *next += uint64_t{layer_us} * 1000;
      while (NowNs() < *next) {  // sleeping is not exact enough
      }
      pool_->StoreProgress(ref_, progress);
      ended_.last_layer_ns = NowNs();
      digests.LayerWritten(progress.layers - 1);
      ended_.host_ns += NowNs() - ended_.last_layer_ns;
    }
    const auto sealed = digests.Finish();
    AS_CHECK(sealed.ok()) << sealed.status().message();
    for (size_t i = 0; i < seals.size(); ++i) pool_->SealBlock(seals[i].block, seals[i].tokens, (*sealed)[i]);
    pool_->StoreProgress(ref_, {progress.chunk_end, progress.chunk_end, 0});
    ended_.seal_ns = NowNs() - ended_.last_layer_ns;
  }

  std::unique_ptr<KvPool> pool_;
  std::unique_ptr<PoolExporter> exporter_;
  std::thread prefill_;
  ProgressRef ref_;
  OwnerProcess::Ended ended_;
};

}  // namespace

std::vector<std::byte> ContentOf(const engine::KvLayout& layout, uint32_t block, uint64_t seed) {
  std::vector<std::byte> bytes(layout.BlockBytes());
  base::SplitMix64 rng(seed * 1'000'003 + block);
  auto* words = reinterpret_cast<uint64_t*>(bytes.data());
  for (size_t i = 0; i < bytes.size() / 8; ++i) words[i] = rng.Next();
  return bytes;
}

void RunOwnerIfAsked() {
  const char* spec = std::getenv(kEnv);
  if (spec == nullptr) return;
  base::InitLog("owner", base::LogLevel::kWarn, false);
  std::istringstream in(spec);
  std::string socket, line, command;
  int device = 0, dtype = 0;
  uint32_t blocks = 0;
  engine::KvLayout l;
  in >> socket >> device >> blocks >> l.num_layers >> l.num_kv_heads >> l.head_dim >> l.block_tokens >> dtype >>
      l.model_fingerprint;
  l.dtype = static_cast<engine::KvDtype>(dtype);
  {
    Server server(socket, device, l, blocks);
    std::cout << "ok" << std::endl;
    while (std::getline(std::cin, line)) {
      std::istringstream args(line);
      args >> command;
      std::string answer = "bad";
      if (command == "write") answer = server.Write(args);
      if (command == "fill") answer = server.Fill(args);
      if (command == "corrupt") answer = server.Corrupt(args);
      if (command == "prefill") answer = server.Prefill(args);
      if (command == "end") answer = server.PrefillEnd();
      std::cout << answer << std::endl;
    }
  }
  std::exit(0);
}

OwnerProcess::OwnerProcess(const OwnerSpec& spec) {
  char name[] = "/tmp/kvcuda.XXXXXX";
  dir_ = mkdtemp(name);
  const engine::KvLayout& l = spec.layout;
  const std::string socket = dir_ + "/kv.sock";
  int in[2], out[2];
  AS_CHECK(pipe(in) == 0 && pipe(out) == 0);
  const std::string env =
      base::StrCat(kEnv, "=", socket, " ", spec.device, " ", spec.num_blocks, " ", l.num_layers, " ", l.num_kv_heads,
                   " ", l.head_dim, " ", l.block_tokens, " ", static_cast<int>(l.dtype), " ", l.model_fingerprint);
  std::vector<char*> environment;
  for (char** e = environ; *e != nullptr; ++e) environment.push_back(*e);
  environment.push_back(const_cast<char*>(env.c_str()));
  environment.push_back(nullptr);
  char self[] = "/proc/self/exe";
  char* argv[] = {self, nullptr};
  pid_ = fork();
  AS_CHECK(pid_ >= 0);
  if (pid_ == 0) {
    dup2(in[0], 0);
    dup2(out[1], 1);
    for (int fd : {in[0], in[1], out[0], out[1]}) close(fd);
    execve(self, argv, environment.data());
    _exit(127);
  }
  close(in[0]);
  close(out[1]);
  to_.Reset(in[1]);
  from_.Reset(out[0]);
  endpoint_ = {"owner", 11, socket, "", l.Fingerprint(), spec.num_blocks};
  Ask("");
}

OwnerProcess::~OwnerProcess() {
  to_.Reset();
  if (pid_ > 0) waitpid(pid_, nullptr, 0);
  [[maybe_unused]] const int rc = std::system(("rm -rf " + dir_).c_str());
}

void OwnerProcess::Kill() {
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

// What follows "ok".
std::string OwnerProcess::Ask(const std::string& command) {
  if (!command.empty()) {
    const std::string line = command + "\n";
    AS_CHECK_EQ(write(to_.get(), line.data(), line.size()), static_cast<ssize_t>(line.size()));
  }
  for (;;) {
    if (const size_t end = buffered_.find('\n'); end != std::string::npos) {
      const std::string answer = buffered_.substr(0, end);
      buffered_.erase(0, end + 1);
      AS_CHECK(answer.starts_with("ok")) << "owner process: " << answer;
      return answer.substr(2);
    }
    char chunk[4096];
    const ssize_t n = read(from_.get(), chunk, sizeof(chunk));
    AS_CHECK_GT(n, 0) << "the owner process is gone";
    buffered_.append(chunk, static_cast<size_t>(n));
  }
}

std::vector<BlockRef> OwnerProcess::Write(uint32_t first, uint32_t count, uint32_t epoch, uint64_t seed,
                                          uint32_t tokens) {
  std::istringstream in(Ask(base::StrCat("write ", first, " ", count, " ", epoch, " ", seed, " ", tokens)));
  std::vector<BlockRef> refs(count);
  for (uint32_t i = 0; i < count; ++i) {
    refs[i] = {first + i, epoch, tokens, 0};
    in >> refs[i].digest;
  }
  return refs;
}

void OwnerProcess::Fill(uint64_t seed) { Ask(base::StrCat("fill ", seed)); }

void OwnerProcess::Corrupt(uint32_t block, size_t offset) { Ask(base::StrCat("corrupt ", block, " ", offset)); }

ProgressRef OwnerProcess::Prefill(uint32_t first, uint32_t count, uint32_t chunks, uint32_t layer_us) {
  std::istringstream in(Ask(base::StrCat("prefill ", first, " ", count, " ", chunks, " ", layer_us)));
  ProgressRef ref;
  in >> ref.slot >> ref.tag;
  return ref;
}

OwnerProcess::Ended OwnerProcess::PrefillEnd() {
  std::istringstream in(Ask("end"));
  Ended out;
  in >> out.last_layer_ns >> out.seal_ns >> out.host_ns;
  return out;
}

}  // namespace agentserve::kvstore::cuda
