// A second process that owns a pool in GPU memory, for tests and benches of this folder.
//
// The program starts itself again (a process that has used CUDA cannot fork): its main calls RunOwnerIfAsked first.
#pragma once

#include <string>
#include <vector>

#include "base/unix_fd.h"
#include "kvstore/transport/kv_pool.h"
#include "kvstore/transport/peer_pool.h"

namespace agentserve::kvstore::cuda {

struct OwnerSpec {
  int device = 0;
  engine::KvLayout layout;
  uint32_t num_blocks = 64;
};

// In the child: serves and exits the process. In the parent: returns.
void RunOwnerIfAsked();

// The parent's side. Destruction ends the child. Commands wait for the child's answer and check that it succeeded.
class OwnerProcess {
 public:
  explicit OwnerProcess(const OwnerSpec& spec);
  ~OwnerProcess();
  OwnerProcess(const OwnerProcess&) = delete;

  const PeerEndpoint& endpoint() const { return endpoint_; }
  // Fills blocks [first, first + count) with random content of `seed` (0: leaves what is there), seals them at `epoch`.
  std::vector<BlockRef> Write(uint32_t first, uint32_t count, uint32_t epoch, uint64_t seed, uint32_t tokens);
  // Gives all blocks the same random bytes, which is fast; the seals are then wrong.
  void Fill(uint64_t seed);
  // Flips one byte of a block after its seal.
  void Corrupt(uint32_t block, size_t offset);
  // Pretends a prefill of blocks [first, first + count) in `chunks` chunks of layers that take `layer_us` each: opens
  // the blocks again, tells and digests layer by layer as a worker does, and seals. Their bytes stay what they are.
  // Answers at once, runs beside.
  ProgressRef Prefill(uint32_t first, uint32_t count, uint32_t chunks, uint32_t layer_us);
  // Waits for the last Prefill.
  struct Ended {
    uint64_t last_layer_ns = 0;  // steady clock, when it stored the word of its last layer
    uint64_t seal_ns = 0;        // how long it then took until the last block was sealed
    uint64_t host_ns = 0;        // of the owner's thread, all layers: telling and launching
  };
  Ended PrefillEnd();
  // SIGKILL.
  void Kill();

 private:
  std::string Ask(const std::string& command);

  std::string dir_;
  PeerEndpoint endpoint_;
  base::UniqueFd to_, from_;
  std::string buffered_;
  int pid_ = -1;
};

// The content that Write gives block `block`.
std::vector<std::byte> ContentOf(const engine::KvLayout& layout, uint32_t block, uint64_t seed);

}  // namespace agentserve::kvstore::cuda
