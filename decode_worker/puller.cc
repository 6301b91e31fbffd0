#include "decode_worker/puller.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/failpoint.h"
#include "base/log.h"
#include "base/strings.h"

namespace agentserve::decode_worker {

using base::Field;
using engine::SeqId;

namespace {

// How long a puller sleeps when nothing changed for a while (the owner is busy with other prompts).
constexpr auto kFollowQuietly = std::chrono::microseconds(1000);
constexpr int kQuietRounds = 20;

std::vector<kvstore::BlockRef> RefsOf(const RemoteKv& kv) {
  std::vector<kvstore::BlockRef> refs;
  refs.reserve(kv.blocks.size());
  for (const RemoteBlock& b : kv.blocks) refs.push_back({b.index, b.epoch, b.tokens, b.digest});
  return refs;
}

}  // namespace

PeerPuller::PeerPuller(const kvstore::PeerEndpoint& peer, const kvstore::PeerOptions& options, kvstore::KvPool* pool,
                       PullerCallbacks callbacks)
    : peer_(peer), options_(options), pool_(pool), callbacks_(std::move(callbacks)) {
  thread_ = std::thread([this] { Run(); });
}

PeerPuller::~PeerPuller() {
  {
    const std::lock_guard lock(mu_);
    stop_ = true;
  }
  cv_.notify_all();
  thread_.join();
}

void PeerPuller::Start(StartPull pull) {
  {
    const std::lock_guard lock(mu_);
    starts_.push_back(std::move(pull));
  }
  cv_.notify_all();
}

void PeerPuller::Finish(FinishPull pull) {
  {
    const std::lock_guard lock(mu_);
    finishes_.push_back(std::move(pull));
  }
  cv_.notify_all();
}

void PeerPuller::Abort(SeqId seq) {
  {
    const std::lock_guard lock(mu_);
    aborts_.push_back(seq);
  }
  cv_.notify_all();
}

void PeerPuller::Announce() {
  {
    const std::lock_guard lock(mu_);
    announce_ = true;
  }
  cv_.notify_all();
}

void PeerPuller::Connect() {
  absl::StatusOr<std::unique_ptr<kvstore::PeerPool>> remote = kvstore::PeerPool::Connect(peer_, options_);
  if (!remote.ok()) {
    problem_ = base::MessageOf(remote.status());
    AS_LOG(kError, "peer.unreachable") << Field("peer", peer_.worker_id) << Field("problem", problem_);
    return;
  }
  remote_ = *std::move(remote);
  problem_ = remote_->problem();
  if (!problem_.empty()) {
    AS_LOG(kWarn, "peer.slower_path") << Field("peer", peer_.worker_id) << Field("why", problem_);
  }
  AS_LOG(kInfo, "peer.connected") << Field("peer", peer_.worker_id) << Field("transport", remote_->transport())
                                  << Field("gb_per_s", remote_->gb_per_s());
}

void PeerPuller::TellStatus() {
  if (!remote_ || !remote_->PeerAlive()) Connect();
  PeerStatus status;
  status.worker_id = peer_.worker_id;
  status.incarnation = peer_.incarnation;
  if (remote_) status.transport = std::string(remote_->transport());
  if (remote_) status.gb_per_s = remote_->gb_per_s();
  status.problem = problem_;
  callbacks_.on_peer_status(std::move(status));
}

void PeerPuller::Run() {
  TellStatus();
  bool busy = false;
  while (Collect(/*wait=*/!busy)) {
    busy = false;
    for (auto it = jobs_.begin(); it != jobs_.end();) {
      const auto job = it++;
      if (job->second.abort) {
        End(&job->second, PullOutcome::kAborted);
        jobs_.erase(job);
      } else if (!remote_ || job->second.bad_handle) {
        if (!job->second.final) continue;
        End(&job->second, remote_ ? PullOutcome::kInvalid : PullOutcome::kFailed);
        jobs_.erase(job);
      } else if (job->second.final) {
        FinishJob(&job->second);
        jobs_.erase(job);
      } else {
        busy |= Follow(&job->second);
      }
    }
  }
  for (auto& [seq, job] : jobs_) End(&job, PullOutcome::kAborted);
}

bool PeerPuller::Collect(bool wait) {
  std::unique_lock lock(mu_);
  const auto posted = [&] { return stop_ || announce_ || !starts_.empty() || !finishes_.empty() || !aborts_.empty(); };
  quiet_rounds_ = wait ? quiet_rounds_ + 1 : 0;
  const bool following = std::any_of(jobs_.begin(), jobs_.end(), [](const auto& j) { return j.second.following; });
  if (wait && following && remote_) {
    cv_.wait_for(lock, quiet_rounds_ < kQuietRounds ? remote_->poll_every() : kFollowQuietly, posted);
  } else if (wait) {
    cv_.wait(lock, posted);
  }
  for (StartPull& start : starts_) {
    Job job;
    job.refs = RefsOf(start.kv);
    job.copied.assign(start.blocks.size(), 0);
    job.digests.assign(start.blocks.size(), 0);
    job.pull = std::move(start);
    jobs_.emplace(job.pull.seq, std::move(job));
  }
  starts_.clear();
  for (FinishPull& finish : finishes_) {
    const auto it = jobs_.find(finish.seq);
    if (it == jobs_.end()) continue;
    Job& job = it->second;
    const std::vector<kvstore::BlockRef> refs = RefsOf(finish.kv);
    job.bad_handle = !std::equal(refs.begin(), refs.end(), job.refs.begin(), job.refs.end(),
                                 [](const auto& a, const auto& b) { return a.index == b.index && a.epoch == b.epoch; });
    for (size_t i = 0; i < job.digests.size() && !job.bad_handle; ++i) {
      if (refs[i].tokens != job.refs[i].tokens) job.digests[i] = 0;
    }
    job.refs = refs;
    job.final = true;
  }
  finishes_.clear();
  for (SeqId seq : aborts_) {
    if (const auto it = jobs_.find(seq); it != jobs_.end()) it->second.abort = true;
  }
  aborts_.clear();
  const bool announce = std::exchange(announce_, false);
  if (stop_) return false;
  lock.unlock();
  if (announce) TellStatus();
  return true;
}

bool PeerPuller::Follow(Job* job) {
  if (!job->following) return false;
  const RemoteKv& kv = job->pull.kv;
  absl::StatusOr<engine::PrefillProgress> progress = remote_->LoadProgress(kv.progress_slot, kv.progress_tag);
  if (!progress.ok()) {
    job->following = false;  // released or gone; Finish or Abort will come
    return false;
  }
  const uint64_t before = job->bytes;
  // What is missing is tried again at the end.
  if (!CopyReady(job, *progress).ok() || !DigestReady(job).ok()) job->following = false;
  return job->bytes != before;
}

// Digests the blocks that are complete, so that little is left to do when the owner's digests come.
absl::Status PeerPuller::DigestReady(Job* job) {
  std::vector<size_t> ready;
  std::vector<kvstore::BlockRef> refs;
  std::vector<engine::BlockId> blocks;
  for (size_t i = job->pull.first; i < job->refs.size(); ++i) {
    if (job->copied[i] != pool_->layout().num_layers || job->digests[i] != 0) continue;
    ready.push_back(i);
    refs.push_back(job->refs[i]);
    blocks.push_back(job->pull.blocks[i]);
  }
  if (ready.empty()) return absl::OkStatus();
  std::vector<uint64_t> digests(ready.size());
  absl::Status status = remote_->DigestCopies(refs, pool_->view(), blocks, digests);
  for (size_t i = 0; status.ok() && i < ready.size(); ++i) job->digests[ready[i]] = digests[i];
  return status;
}

// Copies what is final at `progress`, in runs of blocks that lack the same layers.
absl::Status PeerPuller::CopyReady(Job* job, const engine::PrefillProgress& progress) {
  const engine::KvLayout& layout = pool_->layout();
  const auto ready_layers = [&](size_t i) -> uint32_t {
    const size_t end = i * layout.block_tokens + job->refs[i].tokens;
    if (end <= progress.complete) return layout.num_layers;
    return end <= progress.chunk_end ? std::min(progress.layers, layout.num_layers) : 0;
  };
  const size_t n = job->refs.size();
  for (size_t i = job->pull.first; i < n;) {
    const uint32_t ready = ready_layers(i);
    if (ready <= job->copied[i]) {
      ++i;
      continue;
    }
    const uint64_t bytes_each = (ready - job->copied[i]) * layout.LayerBytes();
    const size_t most = std::max<size_t>(1, remote_->bytes_per_read() / bytes_each);
    size_t end = i + 1;
    while (end < n && end - i < most && job->copied[end] == job->copied[i] && ready_layers(end) == ready) ++end;
    if (absl::Status s = CopyRange(job, i, end - i, ready); !s.ok()) return s;
    i = end;
  }
  return absl::OkStatus();
}

absl::Status PeerPuller::CopyRange(Job* job, size_t first, size_t count, uint32_t layers) {
  const uint32_t from = job->copied[first];
  const base::TimeNs started = base::MonotonicClock().Now();
  absl::Status status =
      remote_->ReadLayers(std::span(job->refs).subspan(first, count), from, layers - from, pool_->view(),
                          std::span<const engine::BlockId>(job->pull.blocks).subspan(first, count));
  job->copy_ns += base::MonotonicClock().Now() - started;
  if (!status.ok()) return status;
  for (size_t i = first; i < first + count; ++i) job->copied[i] = layers;
  job->bytes += count * (layers - from) * pool_->layout().LayerBytes();
  return absl::OkStatus();
}

void PeerPuller::FlipFirstByte(engine::BlockId block) {
  std::byte value{};
  const kvstore::PieceOut out{block.value, 0, 1, &value};
  absl::Status status = pool_->memory().CopyOut({&out, 1});
  value ^= std::byte{1};
  const kvstore::PieceIn in{block.value, 0, 1, &value};
  status.Update(pool_->memory().CopyIn({&in, 1}));
  AS_LOG(kWarn, "failpoint.corrupted") << Field("block", block.value) << Field("ok", status.ok());
}

void PeerPuller::FinishJob(Job* job) {
  const size_t first = job->pull.first;
  const uint32_t tokens = static_cast<uint32_t>(job->refs.size()) * pool_->layout().block_tokens;
  if (absl::Status s = CopyReady(job, {tokens, tokens, 0}); !s.ok()) {
    AS_LOG(kWarn, "pull.failed") << Field("peer", peer_.worker_id) << Field("error", base::MessageOf(s))
                                 << Field("then", "recompute");
    return End(job, s.code() == absl::StatusCode::kAborted ? PullOutcome::kInvalid : PullOutcome::kFailed);
  }
  if (first < job->refs.size() && base::FailpointFires("xf.corrupt")) {
    FlipFirstByte(job->pull.blocks[first]);
    job->digests[first] = 0;
  }
  const kvstore::ValidateResult valid =
      remote_->Validate(std::span(job->refs).subspan(first), pool_->view(),
                        std::span<const engine::BlockId>(job->pull.blocks).subspan(first),
                        std::span<const uint64_t>(job->digests).subspan(first));
  if (!valid.ok()) {
    AS_LOG(kWarn, "pull.invalid") << Field("peer", peer_.worker_id)
                                  << Field("outcome", kvstore::ToString(valid.outcome))
                                  << Field("block", first + valid.position) << Field("detail", valid.detail)
                                  << Field("then", "recompute");
  }
  const bool gone = valid.outcome == kvstore::ReadOutcome::kPeerGone;
  End(job, valid.ok() ? PullOutcome::kOk : gone ? PullOutcome::kFailed : PullOutcome::kInvalid);
}

void PeerPuller::End(Job* job, PullOutcome outcome) {
  if (remote_) remote_->EndProgress(job->pull.kv.progress_slot, job->pull.kv.progress_tag);
  PullEnded ended;
  ended.seq = job->pull.seq;
  ended.outcome = outcome;
  if (remote_) ended.transport = std::string(remote_->transport());
  ended.bytes = job->bytes;
  ended.copy_ns = job->copy_ns;
  callbacks_.on_ended(std::move(ended));
}

Pullers::~Pullers() {
  by_seq_.clear();
  peers_.clear();
  for (std::thread& t : retiring_) t.join();
}

void Pullers::Retire(std::shared_ptr<PeerPuller> peer) {
  if (peer.use_count() > 1) return;  // its pulls keep it; the last one brings it here again
  retiring_.emplace_back([p = std::move(peer)]() mutable { p.reset(); });
}

void Pullers::ConnectPeer(const kvstore::PeerEndpoint& peer) {
  const auto known = peers_.find(peer.worker_id);
  if (known != peers_.end() && known->second->incarnation() == peer.incarnation) return known->second->Announce();
  if (known != peers_.end()) {
    std::shared_ptr<PeerPuller> old = std::move(known->second);
    peers_.erase(known);
    Retire(std::move(old));
  }
  for (auto it = peers_.begin(); it != peers_.end() && peers_.size() >= kMaxPeers; ++it) {
    if (it->second.use_count() > 1) continue;  // it has pulls
    std::shared_ptr<PeerPuller> old = std::move(it->second);
    peers_.erase(it);
    Retire(std::move(old));
    break;
  }
  peers_[peer.worker_id] = std::make_shared<PeerPuller>(peer, options_, pool_, callbacks_);
}

void Pullers::Start(StartPull pull) {
  const auto it = peers_.find(pull.kv.worker_id);
  if (it == peers_.end() || it->second->incarnation() != pull.kv.incarnation) {
    AS_LOG(kWarn, "pull.unknown_peer") << Field("peer", pull.kv.worker_id) << Field("then", "recompute");
    PullEnded ended;
    ended.seq = pull.seq;
    ended.outcome = PullOutcome::kFailed;
    callbacks_.on_ended(std::move(ended));
    return;
  }
  by_seq_[pull.seq] = it->second;
  it->second->Start(std::move(pull));
}

void Pullers::Finish(FinishPull pull) {
  if (const auto it = by_seq_.find(pull.seq); it != by_seq_.end()) it->second->Finish(std::move(pull));
}

void Pullers::Abort(SeqId seq) {
  if (const auto it = by_seq_.find(seq); it != by_seq_.end()) it->second->Abort(seq);
}

void Pullers::Forget(SeqId seq) {
  const auto it = by_seq_.find(seq);
  if (it == by_seq_.end()) return;
  std::shared_ptr<PeerPuller> peer = std::move(it->second);
  by_seq_.erase(it);
  Retire(std::move(peer));
}

}  // namespace agentserve::decode_worker
