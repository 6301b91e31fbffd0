// Reads a peer's pool through KvTransferService.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <climits>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include "agentserve/kvstore/v1/kvstore.grpc.pb.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "kvstore/transport/call_pool.h"
#include "kvstore/transport/peer_pool_impl.h"
#include "kvstore/transport/peer_proto.h"
#include "kvstore/transport/transfer_service.h"

namespace agentserve::kvstore {
namespace {

using SteadyClock = std::chrono::steady_clock;
using Stub = v1::KvTransferService::Stub;

absl::Status FromGrpc(const PeerEndpoint& peer, const grpc::Status& s) {
  const std::string what =
      base::StrCat("KV stream from ", peer.worker_id, " at ", peer.grpc_address, ": ", s.error_message());
  return absl::Status(static_cast<absl::StatusCode>(s.error_code()), base::ToAbsl(what));
}

// Follows one progress slot. Owned jointly by the pool and the running call.
class ProgressWatch final : public grpc::ClientReadReactor<v1::WatchProgressResponse>,
                            public std::enable_shared_from_this<ProgressWatch> {
 public:
  void Start(Stub* stub, const v1::WatchProgressRequest& request) {
    self_ = shared_from_this();
    request_ = request;
    stub->async()->WatchProgress(&context_, &request_, this);
    StartRead(&response_);
    StartCall();
  }
  void Cancel() { context_.TryCancel(); }
  // Latest word (zero before the first), or the end of the stream.
  absl::StatusOr<engine::PrefillProgress> Load(const PeerEndpoint& peer) {
    std::lock_guard lock(mu_);
    return LoadLocked(peer);
  }
  absl::StatusOr<engine::PrefillProgress> Wait(const PeerEndpoint& peer, engine::PrefillProgress last,
                                               std::chrono::microseconds timeout) {
    std::unique_lock lock(mu_);
    const bool changed = cv_.wait_for(lock, timeout, [&] { return done_ || latest_ != last; });
    if (!changed) return absl::DeadlineExceededError("no progress");
    return LoadLocked(peer);
  }
  void WaitDone() {
    std::unique_lock lock(mu_);
    cv_.wait(lock, [&] { return done_; });
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    {
      std::lock_guard lock(mu_);
      latest_ = engine::PrefillProgress::Unpack(response_.progress());
    }
    cv_.notify_all();
    StartRead(&response_);
  }
  void OnDone(const grpc::Status& status) override {
    std::shared_ptr<ProgressWatch> last = std::move(self_);
    {
      std::lock_guard lock(mu_);
      done_ = true;
      status_ = status;
    }
    cv_.notify_all();
  }

 private:
  absl::StatusOr<engine::PrefillProgress> LoadLocked(const PeerEndpoint& peer) {
    if (!done_) return latest_;
    if (status_.ok()) return absl::NotFoundError(base::StrCat("progress slot of ", peer.worker_id, " was released"));
    return FromGrpc(peer, status_);
  }

  grpc::ClientContext context_;
  v1::WatchProgressRequest request_;
  v1::WatchProgressResponse response_;
  std::shared_ptr<ProgressWatch> self_;
  std::mutex mu_;  // guards below
  std::condition_variable cv_;
  engine::PrefillProgress latest_;
  bool done_ = false;
  grpc::Status status_;
};

class StreamPeer final : public PeerPool {
 public:
  StreamPeer(const PeerEndpoint& peer, const PeerOptions& options)
      : PeerPool(peer, options), calls_(LinksFor(options)) {}
  ~StreamPeer() override {
    for (auto& [key, watch] : watches_) watch->Cancel();
    for (auto& [key, watch] : watches_) watch->WaitDone();
  }

  absl::Status Open() {
    if (peer_.grpc_address.empty()) {
      return absl::InvalidArgumentError(base::StrCat("KV pool of ", peer_.worker_id, " offers no gRPC address"));
    }
    const auto until = std::chrono::system_clock::now() + std::chrono::milliseconds(options_.connect_timeout_ms);
    for (size_t i = 0; i < calls_.width(); ++i) {
      Link link;
      link.channel = grpc::CreateCustomChannel(peer_.grpc_address, grpc::InsecureChannelCredentials(), ChannelArgs());
      if (!link.channel->WaitForConnected(until)) {
        return absl::UnavailableError(base::StrCat("KV stream from ", peer_.worker_id, ": no connection to ",
                                                   peer_.grpc_address, " within ", options_.connect_timeout_ms, " ms"));
      }
      link.stub = v1::KvTransferService::NewStub(link.channel);
      links_.push_back(std::move(link));
    }
    if (options_.memory != nullptr) AS_RETURN_IF_ERROR(options_.memory->WarmUp(links_.size()));
    return Probe();
  }

  std::string_view transport() const override { return "stream"; }

  bool PeerAlive() override {
    if (gone_.load(std::memory_order_relaxed)) return false;
    // The channel never idles by itself, so anything else than READY is a lost connection.
    return links_[0].channel->GetState(false) == GRPC_CHANNEL_READY;
  }

  absl::StatusOr<engine::PrefillProgress> LoadProgress(uint32_t slot, uint64_t tag) override {
    AS_ASSIGN_OR_RETURN(const auto watch, FindWatch(slot, tag));
    return Ended(slot, tag, watch->Load(peer_));
  }

  absl::StatusOr<engine::PrefillProgress> WaitProgress(uint32_t slot, uint64_t tag, engine::PrefillProgress last,
                                                       std::chrono::microseconds timeout) override {
    AS_ASSIGN_OR_RETURN(const auto watch, FindWatch(slot, tag));
    return Ended(slot, tag, watch->Wait(peer_, last, timeout));
  }

  // Shared by the connections.
  size_t bytes_per_read() const override { return links_.size() * (2 << 20); }

  void EndProgress(uint32_t slot, uint64_t tag) override {
    std::lock_guard lock(mu_);
    const auto it = watches_.find({slot, tag});
    if (it == watches_.end()) return;
    it->second->Cancel();
    watches_.erase(it);
  }

 protected:
  absl::Status DoRead(std::span<const BlockRef> refs, LayerRange layers, BlockMemory& local,
                      std::span<const engine::BlockId> dst_blocks, std::span<uint64_t> sums) override {
    const size_t bytes = refs.size() * layers.count * options_.layout.LayerBytes();
    const size_t parts = std::clamp<size_t>(bytes / kPartBytes, 1, std::min(links_.size(), refs.size()));
    AS_RETURN_IF_ERROR(InParts(parts, [&](Stub* stub, size_t i) {
      const size_t begin = refs.size() * i / parts, end = refs.size() * (i + 1) / parts;
      return ReadPart(stub, refs.subspan(begin, end - begin), layers, local, dst_blocks.subspan(begin, end - begin));
    }));
    return SumCopies(refs, layers, local, dst_blocks, sums);
  }

  // The owner compared epochs around each copy, and the digest of the copy decides: nothing is left to ask.
  ReadOutcome CheckEpoch(const BlockRef&, std::string*) override { return ReadOutcome::kOk; }

  absl::StatusOr<size_t> ProbeOnce(std::span<std::byte> scratch) override {
    const size_t block_bytes = options_.layout.BlockBytes();
    const size_t blocks = scratch.size() / block_bytes, parts = std::min(links_.size(), blocks);
    AS_RETURN_IF_ERROR(InParts(parts, [&](Stub* stub, size_t part) {
      const size_t begin = blocks * part / parts, end = blocks * (part + 1) / parts;
      v1::ReadRequest request;
      request.set_probe(true);
      for (size_t i = begin; i < end; ++i) request.add_blocks()->set_index(static_cast<uint32_t>(i));
      const auto store = [&](std::vector<PieceIn>& pieces) {
        for (const PieceIn& p : pieces) {
          std::memcpy(scratch.data() + (begin + p.block) * block_bytes + p.offset, p.host, p.bytes);
        }
        return absl::OkStatus();
      };
      return Stream(stub, &request, block_bytes, store);
    }));
    return blocks * block_bytes;
  }

 private:
  // One connection moves 1 to 2 GB/s, as its bytes pass through one thread at each end; several share the cores.
  static constexpr size_t kMostLinks = 8;
  // Less is not worth a call.
  static constexpr size_t kPartBytes = 256 << 10;
  struct Link {
    std::shared_ptr<grpc::Channel> channel;
    std::unique_ptr<Stub> stub;
  };

  static size_t LinksFor(const PeerOptions& options) {
    if (options.stream_connections > 0) return static_cast<size_t>(options.stream_connections);
    return std::clamp<size_t>(std::thread::hardware_concurrency() / 2, 1, kMostLinks);
  }

  static grpc::ChannelArguments ChannelArgs() {
    grpc::ChannelArguments args;
    args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
    args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
    args.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    args.SetInt(GRPC_ARG_CLIENT_IDLE_TIMEOUT_MS, INT_MAX);
    args.SetMaxReceiveMessageSize(4 << 20);
    // A connection of its own: bulk bytes must not queue before the commands of another link.
    args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return args;
  }

  // read(stub, i) for each part, each on a connection of its own; the first error.
  absl::Status InParts(size_t parts, const std::function<absl::Status(Stub*, size_t)>& read) {
    std::vector<absl::Status> statuses(parts);
    calls_.Run(parts, [&](size_t i) { statuses[i] = read(links_[i].stub.get(), i); });
    for (const absl::Status& s : statuses) AS_RETURN_IF_ERROR(s);
    return absl::OkStatus();
  }

  absl::Status ReadPart(Stub* stub, std::span<const BlockRef> refs, LayerRange layers, BlockMemory& local,
                        std::span<const engine::BlockId> dst_blocks) {
    const size_t layer_bytes = options_.layout.LayerBytes();
    for (size_t i = 0; i < refs.size(); i += kMaxReadBlocks) {
      const auto part = refs.subspan(i, std::min<size_t>(kMaxReadBlocks, refs.size() - i));
      v1::ReadRequest request;
      request.set_first_layer(layers.first);
      request.set_layer_count(layers.count);
      for (const BlockRef& r : part) ToProto(r, request.add_blocks());
      const auto store = [&](std::vector<PieceIn>& pieces) {
        for (PieceIn& p : pieces) {
          p.block = dst_blocks[i + p.block].value;
          p.offset += layers.first * layer_bytes;
        }
        return local.CopyIn(pieces);
      };
      AS_RETURN_IF_ERROR(Stream(stub, &request, layers.count * layer_bytes, store));
    }
    return absl::OkStatus();
  }

  // Runs one Read; the messages must tile [0, range_bytes) of each block in order. `store` gets the pieces of a
  // message; `block` is the place in the request.
  template <typename Store>
  absl::Status Stream(Stub* stub, v1::ReadRequest* request, size_t range_bytes, const Store& store) {
    request->set_incarnation(peer_.incarnation);
    request->set_layout_fingerprint(peer_.layout_fingerprint);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(options_.read_timeout_ms));
    const auto reader = stub->Read(&context, *request);
    v1::ReadResponse chunk;
    std::vector<PieceIn> pieces;
    size_t block = 0, offset = 0;
    const auto blocks = static_cast<size_t>(request->blocks_size());
    absl::Status bad;
    while (reader->Read(&chunk)) {
      std::string_view data = chunk.data();
      const size_t left = block < blocks ? (blocks - block) * range_bytes - offset : 0;
      if (chunk.block() != block || chunk.offset() != offset || data.empty() || data.size() > left) {
        bad = absl::DataLossError(base::StrCat("KV stream from ", peer_.worker_id, ": ", data.size(),
                                               " bytes for block ", chunk.block(), " at ", chunk.offset(),
                                               ", expected block ", block, " of ", blocks, " at ", offset));
        context.TryCancel();
        break;
      }
      pieces.clear();
      while (!data.empty()) {  // a message may continue in the next blocks
        const size_t n = std::min(data.size(), range_bytes - offset);
        pieces.push_back({static_cast<uint32_t>(block), offset, n, reinterpret_cast<const std::byte*>(data.data())});
        data.remove_prefix(n);
        offset += n;
        if (offset == range_bytes) {
          offset = 0;
          ++block;
        }
      }
      if (bad = store(pieces); !bad.ok()) {
        context.TryCancel();
        break;
      }
    }
    const grpc::Status status = reader->Finish();
    if (!bad.ok()) return bad;
    if (!status.ok()) {
      // The address answers, but as another process: ours is gone for good.
      if (status.error_code() == grpc::StatusCode::FAILED_PRECONDITION) gone_.store(true, std::memory_order_relaxed);
      return FromGrpc(peer_, status);
    }
    if (block != blocks) {
      return absl::DataLossError(
          base::StrCat("KV stream from ", peer_.worker_id, " ended after ", block, " of ", blocks, " blocks"));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::shared_ptr<ProgressWatch>> FindWatch(uint32_t slot, uint64_t tag) {
    std::lock_guard lock(mu_);
    auto& watch = watches_[{slot, tag}];
    if (watch == nullptr) {
      if (watches_.size() > kMaxProgressWatches) {
        watches_.erase({slot, tag});
        return absl::ResourceExhaustedError(
            base::StrCat("more than ", kMaxProgressWatches, " prompts are followed at ", peer_.worker_id));
      }
      v1::WatchProgressRequest request;
      request.set_incarnation(peer_.incarnation);
      request.set_progress_slot(slot);
      request.set_progress_tag(tag);
      watch = std::make_shared<ProgressWatch>();
      watch->Start(links_[0].stub.get(), request);
    }
    return watch;
  }

  // Forgets a watch whose stream has ended.
  absl::StatusOr<engine::PrefillProgress> Ended(uint32_t slot, uint64_t tag,
                                                absl::StatusOr<engine::PrefillProgress> result) {
    if (!result.ok() && !absl::IsDeadlineExceeded(result.status())) {
      if (absl::IsFailedPrecondition(result.status())) gone_.store(true, std::memory_order_relaxed);
      EndProgress(slot, tag);
    }
    return result;
  }

  CallPool calls_;
  std::vector<Link> links_;  // as many as calls at once; the first also follows progress
  std::atomic<bool> gone_{false};
  std::mutex mu_;  // guards below
  std::map<std::pair<uint32_t, uint64_t>, std::shared_ptr<ProgressWatch>> watches_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PeerPool>> ConnectStream(const PeerEndpoint& peer, const PeerOptions& options) {
  auto pool = std::make_unique<StreamPeer>(peer, options);
  AS_RETURN_IF_ERROR(pool->Open());
  return pool;
}

}  // namespace agentserve::kvstore
