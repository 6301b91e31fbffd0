#include "kernels/embedding/embedding_cuda.h"

#include <gtest/gtest.h>

#include "kernels/cuda/device_vector.h"
#include "kernels/test_util.h"

namespace agentserve::kernels::cuda {
namespace {

__nv_bfloat16* Bf16Pointer(const DeviceVector<uint16_t>& v) { return reinterpret_cast<__nv_bfloat16*>(v.data()); }

// Rows of a table by id, some ids taken from the tokens that the step before sampled.
TEST(EmbeddingCuda, TakesRowsByIdOrBySampledToken) {
  constexpr int kVocab = 5000;
  for (const int n : {8, 64, 2048, 3072}) {
    for (const int rows : {1, 7, 300}) {
      const std::vector<uint16_t> table = RandomBf16(static_cast<size_t>(kVocab * n), 1);
      std::vector<int32_t> ids(static_cast<size_t>(rows)), from(ids), sampled = {4999, 17, 0, 2500};
      for (int r = 0; r < rows; ++r) {
        ids[static_cast<size_t>(r)] = r * 997 % kVocab;
        from[static_cast<size_t>(r)] = r % 3 == 0 ? r % 4 : -1;
      }
      DeviceVector<uint16_t> d_table{std::span<const uint16_t>(table)}, out(static_cast<size_t>(rows * n));
      DeviceVector<int32_t> d_ids{std::span<const int32_t>(ids)}, d_from{std::span<const int32_t>(from)},
          d_sampled{std::span<const int32_t>(sampled)};
      for (const bool pending : {false, true}) {
        SCOPED_TRACE(testing::Message() << "n " << n << " rows " << rows << " pending " << pending);
        EmbeddingParams p;
        p.table = Bf16Pointer(d_table);
        p.ids = d_ids.data();
        if (pending) {
          p.sampled = d_sampled.data();
          p.from = d_from.data();
        }
        p.out = Bf16Pointer(out);
        p.rows = rows;
        p.n = n;
        out.Poison();
        ASSERT_TRUE(Embedding(p, {}).ok());
        ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
        const std::vector<uint16_t> got = out.Download();
        size_t wrong = 0;
        for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
          const int32_t id = pending && from[r] >= 0 ? sampled[static_cast<size_t>(from[r])] : ids[r];
          for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
            wrong += got[r * static_cast<size_t>(n) + i] != table[static_cast<size_t>(id * n) + i];
          }
        }
        EXPECT_EQ(wrong, 0u);
      }
    }
  }
}

TEST(EmbeddingCuda, GatherRows) {
  constexpr int kRows = 600, kCount = 90;
  for (const int n : {8, 2048, 3072}) {
    const std::vector<uint16_t> rows = RandomBf16(static_cast<size_t>(kRows * n), 2);
    std::vector<int32_t> index(kCount);
    for (int i = 0; i < kCount; ++i) index[static_cast<size_t>(i)] = (i * 131 + 599) % kRows;
    DeviceVector<uint16_t> d_rows{std::span<const uint16_t>(rows)}, out(static_cast<size_t>(kCount * n));
    DeviceVector<int32_t> d_index{std::span<const int32_t>(index)};
    ASSERT_TRUE(GatherRows(Bf16Pointer(d_rows), d_index.data(), kCount, n, Bf16Pointer(out), {}).ok());
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    const std::vector<uint16_t> got = out.Download();
    for (int i = 0; i < kCount; ++i) {
      const auto want = rows.begin() + std::ptrdiff_t{index[static_cast<size_t>(i)]} * n;
      EXPECT_TRUE(std::equal(want, want + n, got.begin() + std::ptrdiff_t{i} * n)) << "row " << i << " n " << n;
    }
  }
}

}  // namespace
}  // namespace agentserve::kernels::cuda
