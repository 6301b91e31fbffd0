// Which program a call belongs to when nobody says: the one whose prompt it continues.
//
// Agents resend their whole history, so the prompt of a later call begins with (nearly) all of the prompt before it.
// Marks at some depths of each prompt's block chain remember whose it was; a new prompt's deepest mark names a
// candidate:
//   1. The candidate's prompt is wholly a prefix of the new one (checked to the token): it is the same program.
//   2. Else at least two blocks and half of the candidate's prompt are shared, and nobody else has that prefix: the
//   same
//      program, with an edited end (reminders at the end of each prompt, results cut short).
//   3. Else another program: equal system prompts and tools alone do not make two agents one.
// A prompt that holds no answer of the model begins a program, whatever it shares.
//
// Pure, single-threaded, bounded. Cost of a call: prompt blocks / 16 + 16 look-ups.
#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/hash.h"
#include "router/core/types.h"

namespace agentserve::router {

// What is known of a call's prompt. `chain` names its full blocks; chains of different tenants never meet.
struct PromptView {
  std::string_view tenant;
  std::span<const base::Hash128> chain;
  std::span<const TokenId> tokens;
  uint32_t block_tokens = 0;
  Turn turn = Turn::kUnknown;
};

class ProgramFinder {
 public:
  // Shared blocks below which nothing is inferred: one block is a greeting.
  static constexpr uint32_t kMinBlocks = 2;
  // Depth of marks: every 16th block (256 tokens of 16-token blocks), and all blocks after the last of these.
  static constexpr uint32_t kStride = 16;

  // A mark takes about 100 bytes, a program about 300; a 16k-token prompt has some 70 marks.
  struct Limits {
    size_t marks = 131'072;
    size_t programs = 16'384;
  };
  explicit ProgramFinder(Limits limits) : limits_(limits) {}

  struct Found {
    std::string program;
    uint32_t blocks = 0;  // shared with it
    bool exact = false;   // rule 1
  };
  std::optional<Found> Find(const PromptView& prompt) const;
  // The prompt was the latest of `program`.
  void Record(const PromptView& prompt, std::string_view program);
  // The program is over: what continues it later is a new one.
  void Forget(std::string_view tenant, std::string_view program);

  size_t marks() const { return marks_.size(); }
  size_t programs() const { return owners_.size(); }
  void CheckInvariants() const;

 private:
  // Latest prompts of one program; several, for its calls may run side by side.
  static constexpr size_t kTips = 4;
  struct Tip {
    base::Hash128 last;         // name of the last full block
    uint32_t blocks = 0;        // full blocks
    std::vector<TokenId> tail;  // tokens after them, fewer than a block
    uint64_t key = 0;           // TipKey
  };
  struct Owner {
    std::string tenant, program;
    std::deque<Tip> tips;  // newest first
    std::list<uint64_t>::iterator place;
  };
  struct Mark {
    base::Hash128 hash;
    uint64_t owner = 0;
    bool shared = false;  // several programs have this prefix
  };

  const Mark* MarkAt(const base::Hash128& hash) const;
  // Depth of the deepest mark, 0 = none.
  uint32_t Deepest(std::span<const base::Hash128> chain, const Mark** mark) const;
  // Names a whole prompt: its last full block and the tokens after it. Agents with one system prompt and short
  // questions differ only in the latter.
  static uint64_t TipKey(const base::Hash128& last, std::span<const TokenId> tail);
  // The program one of whose prompts is the beginning of this one and ends in or right after block `depth`.
  const Owner* Continued(const PromptView& prompt, uint32_t depth) const;
  void DropTip(uint64_t owner, const Tip& tip);
  uint64_t OwnerOf(std::string_view tenant, std::string_view program);
  void PutMark(const base::Hash128& hash, uint64_t owner);
  void DropOwner(uint64_t id);

  const Limits limits_;
  uint64_t next_owner_ = 1;  // never reused: a mark of a forgotten program finds nobody
  std::unordered_map<uint64_t, Owner> owners_;
  std::unordered_map<std::string, uint64_t> by_name_;  // tenant, 0 byte, program
  std::list<uint64_t> owner_lru_;                      // most recent first
  std::unordered_map<uint64_t, uint64_t> tips_;        // TipKey -> latest owner
  std::list<Mark> mark_lru_;                           // most recent first
  std::unordered_map<base::Hash128, std::list<Mark>::iterator, base::Hash128Hasher> marks_;
};

}  // namespace agentserve::router
