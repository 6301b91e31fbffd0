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

void CheckGather(const Shape& shape, uint32_t pool, uint32_t count, size_t offset, size_t bytes, int sms) {
  SCOPED_TRACE(testing::Message() << "block " << shape.block_bytes << " count " << count << " offset " << offset
                                  << " bytes " << bytes << " sms " << sms);
  const std::vector<std::byte> source = RandomBytes(pool * shape.block_bytes, 1);
  const std::vector<uint32_t> from = Shuffled(pool, count, 2), to = Shuffled(pool, count, 3);
  DeviceVector<std::byte> src{std::span<const std::byte>(source)}, dst(source.size());
  DeviceVector<uint32_t> d_from{std::span<const uint32_t>(from)}, d_to{std::span<const uint32_t>(to)};
  KvGatherParams p;
  p.src = src.data();
  p.dst = dst.data();
  p.src_blocks = d_from.data();
  p.dst_blocks = d_to.data();
  p.count = static_cast<int>(count);
  p.block_bytes = shape.block_bytes;
  p.offset = offset;
  p.bytes = bytes;
  p.sms = sms;
  ASSERT_TRUE(KvGather(p, {}).ok());
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  std::vector<std::byte> want(source.size(), std::byte{0xff});
  for (uint32_t i = 0; i < count; ++i) {
    std::memcpy(&want[to[i] * shape.block_bytes + offset], &source[from[i] * shape.block_bytes + offset], bytes);
  }
  EXPECT_TRUE(dst.Download() == want);  // and nothing else was touched
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
  CheckGather(kLlama1B, 300, 290, 32768, 32768, 32);
}

void CheckDigest(const Shape& shape, uint32_t pool, uint32_t count) {
  SCOPED_TRACE(testing::Message() << "block " << shape.block_bytes << " count " << count);
  const std::vector<std::byte> bytes = RandomBytes(pool * shape.block_bytes, 4);
  std::vector<uint32_t> blocks(count), tokens(count);
  const uint32_t block_tokens = static_cast<uint32_t>(shape.piece_bytes / shape.row_bytes);
  for (uint32_t i = 0; i < count; ++i) {
    blocks[i] = i * 7 % pool;
    tokens[i] = i % 3 == 0 ? block_tokens : i % (block_tokens + 1);
  }
  DeviceVector<std::byte> d_pool{std::span<const std::byte>(bytes)};
  DeviceVector<uint32_t> d_blocks{std::span<const uint32_t>(blocks)}, d_tokens{std::span<const uint32_t>(tokens)};
  DeviceVector<uint64_t> digests(count);
  KvDigestParams p;
  p.pool = d_pool.data();
  p.block_bytes = shape.block_bytes;
  p.piece_bytes = shape.piece_bytes;
  p.row_bytes = shape.row_bytes;
  p.blocks = d_blocks.data();
  p.tokens = d_tokens.data();
  p.digests = digests.data();
  p.count = static_cast<int>(count);
  ASSERT_TRUE(KvDigest(p, {}).ok());
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const std::vector<uint64_t> got = digests.Download();
  const KvDigestShape cpu_shape = {shape.block_bytes, shape.piece_bytes, shape.row_bytes};
  for (uint32_t i = 0; i < count; ++i) {
    EXPECT_EQ(got[i], kernels::KvDigest(&bytes[blocks[i] * shape.block_bytes], cpu_shape, tokens[i]))
        << "block " << blocks[i] << " tokens " << tokens[i];
  }
}

TEST(KvDigestCuda, EqualsTheCpu) {
  for (const uint32_t count : {1u, 5u, 60u, 300u, 1000u}) CheckDigest(kTiny, 50, count);
  for (const uint32_t count : {1u, 17u, 255u, 256u, 290u}) CheckDigest(kLlama1B, 40, count);
  for (const uint32_t count : {1u, 33u, 270u}) CheckDigest(kLlama3B, 12, count);
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
  KvDigestParams digest;
  digest.count = 1;
  digest.block_bytes = 1024;
  digest.piece_bytes = 96;
  digest.row_bytes = 32;
  EXPECT_FALSE(KvDigest(digest, {}).ok());
}

}  // namespace
}  // namespace agentserve::kernels::cuda
