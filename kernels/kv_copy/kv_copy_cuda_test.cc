// Gather and digest of KV blocks against the CPU: every byte, every digest.
#include "kernels/kv_copy/kv_copy_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

#include "kernels/cuda/device_vector.h"
#include "kernels/kv_copy/kv_digest.h"

namespace agentserve::kernels::cuda {
namespace {

std::vector<std::byte> RandomBytes(size_t n, uint64_t seed) {
  std::mt19937_64 gen(seed);
  std::vector<std::byte> out(n);
  for (size_t i = 0; i + 8 <= n; i += 8) {
    const uint64_t word = gen();
    std::memcpy(&out[i], &word, 8);
  }
  return out;
}

std::vector<uint32_t> Shuffled(uint32_t n, uint32_t take, uint32_t seed) {
  std::vector<uint32_t> out(n);
  std::iota(out.begin(), out.end(), 0u);
  std::shuffle(out.begin(), out.end(), std::mt19937(seed));
  out.resize(take);
  return out;
}

struct Shape {
  size_t block_bytes, piece_bytes, row_bytes;
};
constexpr Shape kTiny = {4 * 16 * 32, 16 * 32, 32};  // 2 pieces of K, 2 of V
constexpr Shape kLlama1B = {16 * 2 * 8 * 16 * 128, 16 * 128, 128};
constexpr Shape kLlama3B = {28 * 2 * 8 * 16 * 256, 16 * 256, 256};

constexpr int kDoneTicket = 77;

// What the host sees of sums and ends.
struct Tail {
  explicit Tail(size_t count) : sums(count), arrived(1) {
    CheckCuda(cudaMemset(sums.data(), 0, count * sizeof(uint64_t)), "zero the sums");
    CheckCuda(cudaMemset(arrived.data(), 0, sizeof(uint32_t)), "zero the arrivals");
    CheckCuda(cudaMallocHost(reinterpret_cast<void**>(&host), count * sizeof(uint64_t) + 64), "pinned memory");
    Reset();
  }
  ~Tail() { cudaFreeHost(host); }
  void Reset() { host[0] = 0; }
  uint64_t* out() const { return host + 8; }
  void Attach(const Shape& shape, KvGatherParams* p) {
    p->sums = {shape.piece_bytes, shape.row_bytes, sums.data(), out()};
    p->done = {arrived.data(), reinterpret_cast<uint32_t*>(host), kDoneTicket};
  }
  DeviceVector<uint64_t> sums;
  DeviceVector<uint32_t> arrived;
  uint64_t* host = nullptr;
};

std::vector<KvMove> Moves(const Shape& shape, uint32_t pool, uint32_t count) {
  const std::vector<uint32_t> from = Shuffled(pool, count, 2), to = Shuffled(pool, count, 3);
  const uint32_t rows = static_cast<uint32_t>(shape.piece_bytes / shape.row_bytes);
  std::vector<KvMove> moves(count);
  for (uint32_t i = 0; i < count; ++i) moves[i] = {from[i], to[i], i % 3 != 1 ? rows : i % (rows + 1)};
  return moves;
}

// Sums are those of the CPU, moved out once and zeroed.
void ExpectSums(const Tail& tail, const std::vector<std::byte>& pool, const Shape& shape,
                const std::vector<KvMove>& moves, KvRange range) {
  const KvDigestShape cpu = {shape.block_bytes, shape.piece_bytes, shape.row_bytes};
  for (size_t i = 0; i < moves.size(); ++i) {
    const std::byte* block = &pool[moves[i].from * shape.block_bytes];
    ASSERT_EQ(tail.out()[i], KvDigestSum(block, cpu, range, moves[i].tokens)) << "block " << i;
  }
  for (const uint64_t left : tail.sums.Download()) ASSERT_EQ(left, 0u);
  EXPECT_EQ(tail.arrived.Download()[0], 0u);
  EXPECT_EQ(*reinterpret_cast<volatile uint32_t*>(tail.host), uint32_t{kDoneTicket});
}

void CheckGather(const Shape& shape, uint32_t pool, uint32_t count, size_t offset, size_t bytes, int sms) {
  SCOPED_TRACE(testing::Message() << "block " << shape.block_bytes << " count " << count << " offset " << offset
                                  << " bytes " << bytes << " sms " << sms);
  const std::vector<std::byte> source = RandomBytes(pool * shape.block_bytes, 1);
  const std::vector<KvMove> moves = Moves(shape, pool, count);
  DeviceVector<std::byte> src{std::span<const std::byte>(source)}, dst(source.size());
  DeviceVector<KvMove> blocks{std::span<const KvMove>(moves)};
  KvGatherParams p;
  p.src = src.data();
  p.dst = dst.data();
  p.blocks = blocks.data();
  p.count = static_cast<int>(count);
  p.block_bytes = shape.block_bytes;
  p.offset = offset;
  p.bytes = bytes;
  p.sms = sms;
  std::vector<std::byte> want(source.size(), std::byte{0xff});
  for (const KvMove& m : moves) {
    std::memcpy(&want[m.to * shape.block_bytes + offset], &source[m.from * shape.block_bytes + offset], bytes);
  }
  ASSERT_TRUE(KvGather(p, {}).ok());
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_TRUE(dst.Download() == want);  // and nothing else was touched
  if (offset % shape.piece_bytes != 0 || bytes % shape.piece_bytes != 0) return;
  Tail tail(count);
  tail.Attach(shape, &p);
  for (int round = 0; round < 2; ++round) {  // the second finds what the first left
    dst.Poison();
    tail.Reset();
    ASSERT_TRUE(KvGather(p, {}).ok());
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_TRUE(dst.Download() == want);
    ExpectSums(tail, source, shape, moves, {offset, bytes});
  }
}

TEST(KvGatherCuda, CopiesExactlyThePieces) {
  for (const int sms : {1, 3, 32}) {
    for (const uint32_t count : {1u, 2u, 7u}) {
      CheckGather(kTiny, 9, count, 0, kTiny.block_bytes, sms);
      CheckGather(kTiny, 9, count, 16, 16, sms);
      CheckGather(kTiny, 9, count, kTiny.piece_bytes, kTiny.piece_bytes * 2, sms);
      CheckGather(kLlama1B, 9, count, 0, kLlama1B.block_bytes, sms);
      CheckGather(kLlama1B, 9, count, 3 * 32768, 32768, sms);
      CheckGather(kLlama3B, 9, count, 65536, 3 * 65536, sms);
    }
  }
  CheckGather(kTiny, 3000, 2900, 48, 32, 16);
  CheckGather(kTiny, 3000, 2900, kTiny.piece_bytes, kTiny.piece_bytes, 132);
  CheckGather(kLlama1B, 300, 290, 32768, 32768, 32);
}

// Layer by layer into one place, as behind a prefill, moved out with the last one or after it.
void CheckSums(const Shape& shape, uint32_t pool, uint32_t count, int sms, bool separate_end) {
  SCOPED_TRACE(testing::Message() << "block " << shape.block_bytes << " count " << count << " sms " << sms);
  const std::vector<std::byte> bytes = RandomBytes(pool * shape.block_bytes, 4);
  const std::vector<KvMove> moves = Moves(shape, pool, count);
  DeviceVector<std::byte> source{std::span<const std::byte>(bytes)};
  DeviceVector<KvMove> blocks{std::span<const KvMove>(moves)};
  Tail tail(count);
  KvGatherParams p;
  p.src = source.data();
  p.blocks = blocks.data();
  p.count = static_cast<int>(count);
  p.block_bytes = shape.block_bytes;
  p.bytes = shape.piece_bytes * 2;
  p.sms = sms;
  for (; p.offset < shape.block_bytes; p.offset += p.bytes) {
    tail.Attach(shape, &p);
    if (separate_end || p.offset + p.bytes < shape.block_bytes) p.sums.out = nullptr, p.done = {};
    ASSERT_TRUE(KvSums(p, {}).ok());
  }
  if (separate_end) {
    p.offset = p.bytes = 0;
    tail.Attach(shape, &p);
    ASSERT_TRUE(KvSums(p, {}).ok());
  }
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  ExpectSums(tail, bytes, shape, moves, {0, shape.block_bytes});
}

TEST(KvSumsCuda, LayersAddUpToTheCpusDigest) {
  for (const int sms : {1, 32, 132}) {
    for (const bool separate_end : {false, true}) {
      for (const uint32_t count : {1u, 5u, 50u}) CheckSums(kTiny, 50, count, sms, separate_end);
      for (const uint32_t count : {1u, 17u, 40u}) CheckSums(kLlama1B, 40, count, sms, separate_end);
      for (const uint32_t count : {1u, 12u}) CheckSums(kLlama3B, 12, count, sms, separate_end);
    }
  }
}

// The word comes after the sums and the copy, however often and whatever runs beside: 100 rounds watched by the host.
TEST(KvGatherCuda, DoneIsTheEnd) {
  constexpr uint32_t kPool = 64;
  const std::vector<std::byte> source = RandomBytes(kPool * kLlama1B.block_bytes, 9);
  const std::vector<KvMove> moves = Moves(kLlama1B, kPool, kPool);
  DeviceVector<std::byte> src{std::span<const std::byte>(source)}, dst(source.size());
  DeviceVector<KvMove> blocks{std::span<const KvMove>(moves)};
  Tail tail(kPool);
  KvGatherParams p;
  p.src = src.data();
  p.dst = dst.data();
  p.blocks = blocks.data();
  p.count = kPool;
  p.block_bytes = kLlama1B.block_bytes;
  p.bytes = 32768;
  tail.Attach(kLlama1B, &p);
  const KvDigestShape cpu = {kLlama1B.block_bytes, kLlama1B.piece_bytes, kLlama1B.row_bytes};
  for (int round = 0; round < 100; ++round) {
    p.offset = static_cast<size_t>(round % 16) * 32768;
    p.done.ticket = 1000 + static_cast<uint32_t>(round);
    for (uint32_t i = 0; i < kPool; ++i) tail.out()[i] = ~uint64_t{0};
    ASSERT_TRUE(KvGather(p, {}).ok());
    uint64_t spins = 0;
    while (__atomic_load_n(reinterpret_cast<uint32_t*>(tail.host), __ATOMIC_ACQUIRE) != p.done.ticket) {
      ASSERT_LT(++spins, uint64_t{1} << 32) << "the word never came";
    }
    for (uint32_t i = 0; i < kPool; i += 7) {
      const std::byte* block = &source[moves[i].from * kLlama1B.block_bytes];
      ASSERT_EQ(tail.out()[i], KvDigestSum(block, cpu, {p.offset, 32768}, moves[i].tokens)) << round;
    }
  }
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

// Between pinned memory of the host and the device, both ways, of all sizes.
TEST(KvCopyPiecesCuda, CopiesExactlyThePieces) {
  constexpr size_t kBytes = 1 << 20;
  for (const uint32_t count : {1u, 5u, 100u}) {
    std::byte* host = nullptr;
    CheckCuda(cudaMallocHost(reinterpret_cast<void**>(&host), 2 * kBytes + count * sizeof(KvPiece)), "pinned memory");
    const std::vector<std::byte> content = RandomBytes(kBytes, count);
    std::memcpy(host, content.data(), kBytes);
    std::memset(host + kBytes, 0xff, kBytes);
    DeviceVector<std::byte> device(kBytes);
    auto* pieces = reinterpret_cast<KvPiece*>(host + 2 * kBytes);
    std::vector<std::byte> want(kBytes, std::byte{0xff});
    std::mt19937 gen(count);
    size_t at = 0;
    for (uint32_t i = 0; i < count; ++i) {
      const auto bytes = static_cast<uint32_t>((1 + gen() % (kBytes / count / 16 - 1)) * 16);
      pieces[i] = {device.data() + at, host + at, bytes};
      std::memcpy(&want[at], &content[at], bytes);
      at += kBytes / count / 16 * 16;
    }
    KvCopyPiecesParams p;
    p.pieces = pieces;
    p.count = static_cast<int>(count);
    ASSERT_TRUE(KvCopyPieces(p, {}).ok());
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_TRUE(device.Download() == want);
    for (uint32_t i = 0; i < count; ++i) {
      pieces[i] = {host + kBytes + (pieces[i].to - device.data()), pieces[i].to, pieces[i].bytes};
    }
    ASSERT_TRUE(KvCopyPieces(p, {}).ok());
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(std::memcmp(host + kBytes, want.data(), kBytes), 0);
    cudaFreeHost(host);
  }
}

TEST(KvCopyCuda, RefusesWhatItCannotDo) {
  KvGatherParams gather;
  gather.count = 1;
  gather.block_bytes = 1024;
  gather.offset = 8;
  gather.bytes = 16;
  EXPECT_FALSE(KvGather(gather, {}).ok());
  gather.offset = 1008;
  gather.bytes = 32;
  EXPECT_FALSE(KvGather(gather, {}).ok());
  KvGatherParams sums;
  EXPECT_FALSE(KvSums(sums, {}).ok()) << "no place for them";
  DeviceVector<uint64_t> place(1);
  sums.count = 1;
  sums.block_bytes = 1024;
  sums.bytes = 512;
  sums.sums = {96, 32, place.data(), nullptr};
  EXPECT_FALSE(KvSums(sums, {}).ok()) << "pieces do not divide the block";
  sums.sums.piece_bytes = 256;
  sums.offset = 128;
  EXPECT_FALSE(KvSums(sums, {}).ok()) << "not whole pieces";
  sums.offset = 0;
  sums.sums.out = place.data();
  EXPECT_FALSE(KvSums(sums, {}).ok()) << "nobody would know who is last";
}

}  // namespace
}  // namespace agentserve::kernels::cuda
