// Helpers shared by the transport's tests and benches.
#pragma once

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/rng.h"
#include "base/strings.h"
#include "kvstore/transport/digest.h"
#include "kvstore/transport/kv_pool.h"
#include "kvstore/transport/peer_pool.h"
#include "kvstore/transport/pool_exporter.h"
#include "kvstore/transport/transfer_service.h"

namespace agentserve::kvstore {

// 4 layers, 2 heads, 64: 16 KiB blocks of 16 tokens (4 KiB per layer).
inline engine::KvLayout TinyLayout() { return {4, 2, 16, 16, engine::KvDtype::kFp32, 77}; }
// Llama 3.2 1B: 512 KiB.
inline engine::KvLayout OneBLayout() { return {16, 8, 64, 16, engine::KvDtype::kBf16, 78}; }

// Removes the folder and its files at the end.
class TempDir {
 public:
  TempDir() {
    char name[] = "/tmp/kvtest.XXXXXX";
    path_ = mkdtemp(name);
  }
  ~TempDir() { [[maybe_unused]] const int rc = std::system(("rm -rf " + path_).c_str()); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline void FillRandom(const engine::KvPoolView& view, uint32_t block, uint64_t seed) {
  base::SplitMix64 rng(seed);
  auto* words = reinterpret_cast<uint64_t*>(view.Block(block));
  for (size_t i = 0; i < view.layout.BlockBytes() / 8; ++i) words[i] = rng.Next();
}

// Plain memory of the reader.
class LocalPool {
 public:
  LocalPool(const engine::KvLayout& layout, uint32_t blocks)
      : memory_(layout.BlockBytes() * blocks), view_{memory_.data(), blocks, layout} {}
  const engine::KvPoolView& view() const { return view_; }

 private:
  std::vector<std::byte> memory_;
  engine::KvPoolView view_;
};

// gRPC 1.51 aborts now and then (ref_counted.h, prior > 0) when the last user of its callback queue goes while a new
// one comes, as between two tests. A server that stays prevents it.
inline void KeepCallbackQueue() {
  [[maybe_unused]] static const grpc::Server* const kept = [] {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials());
    builder.RegisterCallbackGenericService(new grpc::CallbackGenericService());
    return builder.BuildAndStart().release();
  }();
}

// A worker's exporting side: pool, socket and gRPC server in this process.
class Owner {
 public:
  explicit Owner(const engine::KvLayout& layout, uint32_t blocks = 64, uint64_t incarnation = 11,
                 const std::string& id = "prefill-0", uint32_t slots = 8,
                 std::unique_ptr<BlockMemory> memory = nullptr) {
    KeepCallbackQueue();
    auto pool = KvPool::Create({layout, blocks, slots, incarnation, id, false}, std::move(memory));
    AS_CHECK(pool.ok()) << pool.status().message();
    pool_ = *std::move(pool);
    auto exporter = PoolExporter::Start(pool_.get(), {dir_.path() + "/kv.sock", 4});
    AS_CHECK(exporter.ok()) << exporter.status().message();
    exporter_ = *std::move(exporter);
    service_ = std::make_unique<TransferService>(pool_.get());
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    AS_CHECK(server_ != nullptr);
    address_ = base::StrCat("127.0.0.1:", port);
  }
  ~Owner() {
    service_->Stop();
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
    server_->Wait();
  }

  PeerEndpoint endpoint() const {
    return {pool_->options().worker_id,    pool_->options().incarnation, exporter_->socket_path(), address_,
            pool_->layout().Fingerprint(), pool_->options().num_blocks};
  }
  // Fills and seals a block with a new epoch.
  BlockRef Write(uint32_t block, uint32_t epoch, uint64_t seed, uint32_t tokens = 0) {
    if (tokens == 0) tokens = pool_->layout().block_tokens;
    pool_->SetBlockEpoch(engine::BlockId(block), engine::Epoch(epoch));
    Fill(block, seed);
    pool_->SealBlock(engine::BlockId(block), tokens);
    return {block, epoch, tokens, pool_->Digest(engine::BlockId(block), tokens)};
  }
  KvPool& pool() { return *pool_; }
  PoolExporter& exporter() { return *exporter_; }
  TransferService& service() { return *service_; }
  void StopExporter() { exporter_.reset(); }

 private:
  void Fill(uint32_t block, uint64_t seed) {
    if (pool_->memory().facts().kind == MemoryKind::kHost) return FillRandom(pool_->view(), block, seed);
    LocalPool content(pool_->layout(), 1);
    FillRandom(content.view(), 0, seed);
    const PieceIn piece{block, 0, pool_->layout().BlockBytes(), content.view().Block(0)};
    AS_CHECK(pool_->memory().CopyIn({&piece, 1}).ok());
  }

  TempDir dir_;
  std::unique_ptr<KvPool> pool_;
  std::unique_ptr<PoolExporter> exporter_;
  std::unique_ptr<TransferService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

inline std::vector<engine::BlockId> BlockIds(uint32_t first, uint32_t count) {
  std::vector<engine::BlockId> ids;
  for (uint32_t i = 0; i < count; ++i) ids.emplace_back(first + i);
  return ids;
}

}  // namespace agentserve::kvstore
