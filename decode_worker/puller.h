// Copies KV out of peers' pools beside the step loop. One thread per peer, so that a peer that hangs delays only its
// own pulls.
//
// A pull follows the owner's progress word: whole layers of blocks are copied as they become final, while the owner
// computes the next ones; Finish brings the digests, what is missing is copied, and everything is validated.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "decode_worker/core/core.h"
#include "kvstore/transport/kv_pool.h"
#include "kvstore/transport/layer_pull.h"
#include "kvstore/transport/peer_pool.h"

namespace agentserve::decode_worker {

// Result of connecting a peer.
struct PeerStatus {
  std::string worker_id;
  uint64_t incarnation = 0;
  std::string transport;  // empty: no path works
  double gb_per_s = 0;
  std::string problem;
};

struct PullerCallbacks {
  std::function<void(PullEnded)> on_ended;         // once per Start
  std::function<void(PeerStatus)> on_peer_status;  // once per thread made
};

// The pulls from one peer. Thread-safe; callbacks come on its thread. Destruction ends all pulls as aborted.
class PeerPuller {
 public:
  PeerPuller(const kvstore::PeerEndpoint& peer, const kvstore::PeerOptions& options, kvstore::KvPool* pool,
             PullerCallbacks callbacks);
  ~PeerPuller();

  void Start(StartPull pull);
  void Finish(FinishPull pull);
  void Abort(engine::SeqId seq);
  // Answers with on_peer_status again; connects first if there is no live connection.
  void Announce();
  uint64_t incarnation() const { return peer_.incarnation; }

 private:
  struct Job {
    StartPull start;
    kvstore::LayerPull pull;
    bool final = false;  // the references are complete, with digests
    bool abort = false;
    bool bad_handle = false;  // the final handle names other blocks than the first one
    bool following = true;    // the progress word is worth looking at
  };

  void Run();
  void Connect();
  void TellStatus();
  // Takes over what other threads posted. False: stop.
  bool Collect(bool wait);
  // Sleeps until something is posted, or it is time to look at the progress words again.
  void Sleep(std::unique_lock<std::mutex>& lock);
  bool Posted() const;
  // True if it copied something (and so should be asked again at once).
  bool Follow(Job* job);
  void FinishJob(Job* job);
  void FlipFirstByte(engine::BlockId block);  // a planned fault
  void End(Job* job, PullOutcome outcome);

  const kvstore::PeerEndpoint peer_;
  const kvstore::PeerOptions options_;
  kvstore::KvPool* const pool_;
  const PullerCallbacks callbacks_;

  std::unique_ptr<kvstore::PeerPool> remote_;  // own thread only; null = not connected
  std::map<engine::SeqId, Job> jobs_;          // own thread only
  std::string problem_;                        // own thread only
  int quiet_rounds_ = 0;                       // own thread only
  kvstore::PullPace pace_;                     // own thread only

  std::mutex mu_;  // guards below
  std::condition_variable cv_;
  bool stop_ = false, announce_ = false;
  std::vector<StartPull> starts_;
  std::vector<FinishPull> finishes_;
  std::vector<engine::SeqId> aborts_;
  std::thread thread_;
};

// All peers of this worker. Used by the loop thread only; callbacks come on peers' threads.
class Pullers {
 public:
  // Prefill workers known at once; each costs a thread. Beyond that the one without pulls that is oldest goes.
  static constexpr size_t kMaxPeers = 64;

  Pullers(kvstore::PeerOptions options, kvstore::KvPool* pool, PullerCallbacks callbacks)
      : options_(std::move(options)), pool_(pool), callbacks_(std::move(callbacks)) {}
  ~Pullers();

  // Connects, or reconnects if it is another incarnation; answers with on_peer_status.
  void ConnectPeer(const kvstore::PeerEndpoint& peer);
  void Start(StartPull pull);
  void Finish(FinishPull pull);
  void Abort(engine::SeqId seq);
  // The pull ended (on_ended was called).
  void Forget(engine::SeqId seq);

 private:
  const kvstore::PeerOptions options_;
  kvstore::KvPool* const pool_;
  const PullerCallbacks callbacks_;
  std::map<std::string, std::shared_ptr<PeerPuller>> peers_;     // by worker id
  std::map<engine::SeqId, std::shared_ptr<PeerPuller>> by_seq_;  // pulls that run; keep a replaced peer alive
  // Ends peers off the loop thread, since their threads may be inside a read.
  void Retire(std::shared_ptr<PeerPuller> peer);
  std::vector<std::thread> retiring_;
};

}  // namespace agentserve::decode_worker
