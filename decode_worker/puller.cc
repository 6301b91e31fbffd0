#include "decode_worker/puller.h"

#include <sys/prctl.h>

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
  prctl(PR_SET_TIMERSLACK, 1000);  // sleeps end within a microsecond; by default 50 late, much against a layer's time
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

bool PeerPuller::Posted() const {
  return stop_ || announce_ || !starts_.empty() || !finishes_.empty() || !aborts_.empty();
}

void PeerPuller::Sleep(std::unique_lock<std::mutex>& lock) {
  const bool following = std::any_of(jobs_.begin(), jobs_.end(), [](const auto& j) { return j.second.following; });
  if (!following || !remote_) return cv_.wait(lock, [this] { return Posted(); });
  std::chrono::nanoseconds sleep = quiet_rounds_ < kQuietRounds ? remote_->poll_every() : kFollowQuietly;
  if (remote_->poll_every().count() == 0) {
    sleep = std::chrono::nanoseconds(pace_.SleepNs(base::MonotonicClock().Now()));
    if (sleep.count() == 0) return;
  }
  cv_.wait_for(lock, sleep, [this] { return Posted(); });
}

bool PeerPuller::Collect(bool wait) {
  std::unique_lock lock(mu_);
  quiet_rounds_ = wait ? quiet_rounds_ + 1 : 0;
  if (wait) Sleep(lock);
  for (StartPull& start : starts_) {
    Job job;
    job.pull = kvstore::LayerPull(pool_->layout(), {RefsOf(start.kv), start.blocks, start.first});
    job.start = std::move(start);
    jobs_.emplace(job.start.seq, std::move(job));
  }
  starts_.clear();
  for (FinishPull& finish : finishes_) {
    const auto it = jobs_.find(finish.seq);
    if (it == jobs_.end()) continue;
    Job& job = it->second;
    job.bad_handle = !job.pull.SetFinal(RefsOf(finish.kv));
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
  const RemoteKv& kv = job->start.kv;
  absl::StatusOr<engine::PrefillProgress> progress = remote_->LoadProgress(kv.progress_slot, kv.progress_tag);
  if (!progress.ok()) {
    job->following = false;  // released or gone; Finish or Abort will come
    return false;
  }
  const base::TimeNs now = base::MonotonicClock().Now();
  const uint64_t before = job->pull.bytes();
  // What is missing is tried again at the end.
  if (!job->pull.Advance(*remote_, pool_->view(), *progress).ok() || job->pull.complete()) job->following = false;
  const bool came = job->pull.bytes() != before;
  if (came) pace_.Came(now);
  return came;
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
  if (absl::Status s = job->pull.Finish(*remote_, pool_->view()); !s.ok()) {
    AS_LOG(kWarn, "pull.failed") << Field("peer", peer_.worker_id) << Field("error", base::MessageOf(s))
                                 << Field("then", "recompute");
    return End(job, s.code() == absl::StatusCode::kAborted ? PullOutcome::kInvalid : PullOutcome::kFailed);
  }
  const size_t first = job->start.first;
  if (first < job->start.blocks.size() && base::FailpointFires("xf.corrupt")) {
    FlipFirstByte(job->start.blocks[first]);
    job->pull.ForgetSums();
  }
  const kvstore::ValidateResult valid = job->pull.Validate(*remote_, pool_->view());
  if (!valid.ok()) {
    AS_LOG(kWarn, "pull.invalid") << Field("peer", peer_.worker_id)
                                  << Field("outcome", kvstore::ToString(valid.outcome))
                                  << Field("block", valid.position) << Field("detail", valid.detail)
                                  << Field("then", "recompute");
  }
  const bool gone = valid.outcome == kvstore::ReadOutcome::kPeerGone;
  End(job, valid.ok() ? PullOutcome::kOk : gone ? PullOutcome::kFailed : PullOutcome::kInvalid);
}

void PeerPuller::End(Job* job, PullOutcome outcome) {
  if (remote_) remote_->EndProgress(job->start.kv.progress_slot, job->start.kv.progress_tag);
  PullEnded ended;
  ended.seq = job->start.seq;
  ended.outcome = outcome;
  if (remote_) ended.transport = std::string(remote_->transport());
  ended.bytes = job->pull.bytes();
  ended.copy_ns = job->pull.copy_ns();
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
