#include "kernels/attention/decode_attention_fixture.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>

#include "kernels/attention/decode_slow_writer.h"
#include "kernels/gemm/linear_cuda.h"

namespace agentserve::kernels::cuda {
namespace {

constexpr int kSms = 132;

uint16_t FloatToBf16(float x) {
  uint32_t bits = std::bit_cast<uint32_t>(x);
  bits += 0x7fff + ((bits >> 16) & 1);
  return static_cast<uint16_t>(bits >> 16);
}

template <typename T>
void* Upload(const std::vector<T>& data) {
  void* device = nullptr;
  const size_t bytes = std::max<size_t>(data.size(), 1) * sizeof(T);
  CheckCuda(cudaMalloc(&device, bytes), "cudaMalloc");
  CheckCuda(cudaMemcpy(device, data.data(), data.size() * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  return device;
}

// Roughly normal numbers, fast: the sum of four uniform 16-bit ones.
class Normal {
 public:
  explicit Normal(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 1) {}
  float Next(float sigma) {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    float sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<float>((state_ >> (16 * i)) & 0xffff);
    return (sum / 65536.0f - 2.0f) * 1.7320508f * sigma;
  }

 private:
  uint64_t state_;
};

}  // namespace

float Bf16ToFloat(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

void CheckCuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

size_t DecodeFixture::BlockElements() const {
  return static_cast<size_t>(case_.layers) * 2 * case_.kv_heads * case_.block_tokens * case_.head_dim;
}

size_t DecodeFixture::Offset(int64_t block, bool v, int head, int token) const {
  const size_t heads = static_cast<size_t>((case_.layers - 1) * 2 + (v ? 1 : 0)) * case_.kv_heads + head;
  return static_cast<size_t>(block) * BlockElements() +
         (heads * case_.block_tokens + static_cast<size_t>(token)) * case_.head_dim;
}

DecodeFixture::DecodeFixture(const DecodeCase& c) : case_(c) {
  const int rows = static_cast<int>(c.lengths.size());
  const int longest = *std::max_element(c.lengths.begin(), c.lengths.end());
  table_stride_ = longest / c.block_tokens + 2;
  // Block tables: shared leading blocks, then own ones; physical ids shuffled over the pool's end.
  tables_.assign(static_cast<size_t>(rows) * table_stride_, 0x7fffffff);
  std::vector<std::pair<size_t, int>> own;  // table entry, logical block
  for (int row = 0; row < rows; ++row) {
    const int blocks = (c.lengths[row] + c.block_tokens - 1) / c.block_tokens;
    for (int b = 0; b < blocks; ++b) {
      const size_t entry = static_cast<size_t>(row) * table_stride_ + b;
      const bool shared = b < c.shared_blocks;
      own.emplace_back(entry, shared ? b : c.shared_blocks + static_cast<int>(used_blocks_++));
    }
  }
  used_blocks_ += c.shared_blocks;
  std::vector<int> order(used_blocks_);
  std::iota(order.begin(), order.end(), 0);
  std::mt19937_64 random(c.seed);
  std::shuffle(order.begin(), order.end(), random);
  for (const auto& [entry, logical] : own) tables_[entry] = static_cast<int32_t>(c.spare_blocks + order[logical]);

  Normal normal(c.seed);
  q_.resize(static_cast<size_t>(rows) * c.q_heads * c.head_dim);
  for (uint16_t& x : q_) x = FloatToBf16(normal.Next(1.5f));
  kv_.assign(static_cast<size_t>(used_blocks_) * BlockElements(), 0xffff);
  for (int row = 0; row < rows; ++row) {
    for (int token = 0; token < c.lengths[row]; ++token) {
      const int32_t id = tables_[static_cast<size_t>(row) * table_stride_ + token / c.block_tokens];
      for (int head = 0; head < 2 * c.kv_heads; ++head) {
        uint16_t* to = &kv_[Offset(id - c.spare_blocks, head % 2 == 1, head / 2, token % c.block_tokens)];
        for (int d = 0; d < c.head_dim; ++d) to[d] = FloatToBf16(normal.Next(1.0f));
      }
    }
  }

  limits_ = DecodeLimits(rows, longest, kSms, c.fixed_chunk, c.kv_heads, c.head_dim);
  if (c.cluster > 0 || c.heads > 0) {
    limits_.cluster = std::max(1, c.cluster);
    limits_.heads = std::max(1, c.heads);
  }
  if (c.combine_kernel >= 0) limits_.combine_kernel = c.combine_kernel != 0;
  plan_.resize(limits_.max_units);
  splits_.resize(rows + 1);
  units_ =
      PlanDecode(c.lengths.data(), rows, c.block_tokens, kSms, c.fixed_chunk, limits_, plan_.data(), splits_.data());
  const size_t pool_bytes = static_cast<size_t>(c.spare_blocks + used_blocks_) * BlockElements() * 2;
  CheckCuda(cudaMalloc(&pool_, pool_bytes), "cudaMalloc of the pool");
  CheckCuda(cudaMemset(pool_, 0xff, pool_bytes), "cudaMemset");
  CheckCuda(cudaMemcpy(static_cast<char*>(pool_) + static_cast<size_t>(c.spare_blocks) * BlockElements() * 2,
                       kv_.data(), kv_.size() * 2, cudaMemcpyHostToDevice),
            "cudaMemcpy of the pool");
  q_device_ = Upload(q_);
  tables_device_ = Upload(tables_);
  units_device_ = Upload(plan_);
  splits_device_ = Upload(splits_);
  CheckCuda(cudaMalloc(&out_device_, q_.size() * 2), "cudaMalloc");
  workspace_bytes_ = DecodeWorkspaceBytes(limits_, c.q_heads, c.head_dim);
  CheckCuda(cudaMalloc(&workspace_, workspace_bytes_), "cudaMalloc");
  CheckCuda(cudaMemset(workspace_, 0xff, workspace_bytes_), "cudaMemset");
  CheckCuda(cudaMemset(workspace_, 0, kWorkspaceZeroBytes), "cudaMemset");
}

DecodeFixture::~DecodeFixture() {
  for (void* p : {q_device_, out_device_, pool_, tables_device_, units_device_, splits_device_, workspace_})
    cudaFree(p);
}

DecodeAttentionParams DecodeFixture::Params() const {
  DecodeAttentionParams p;
  p.q = static_cast<const __nv_bfloat16*>(q_device_);
  p.out = static_cast<__nv_bfloat16*>(out_device_);
  p.kv.base = static_cast<std::byte*>(pool_);
  p.kv.block_bytes = BlockElements() * 2;
  p.kv.k_offset = Offset(0, false, 0, 0) * 2;
  p.kv.v_offset = Offset(0, true, 0, 0) * 2;
  p.kv.head_bytes = static_cast<size_t>(case_.block_tokens) * case_.head_dim * 2;
  p.kv.block_tokens = static_cast<uint32_t>(case_.block_tokens);
  p.kv.kv_heads = static_cast<uint32_t>(case_.kv_heads);
  p.kv.head_dim = static_cast<uint32_t>(case_.head_dim);
  p.q_heads = case_.q_heads;
  p.scale = 1.0f / std::sqrt(static_cast<float>(case_.head_dim));
  p.rows = static_cast<int>(case_.lengths.size());
  p.block_tables = static_cast<const int32_t*>(tables_device_);
  p.table_stride = table_stride_;
  p.units = static_cast<const DecodeUnit*>(units_device_);
  p.splits = static_cast<const int32_t*>(splits_device_);
  p.max_units = limits_.max_units;
  p.cluster = limits_.cluster;
  p.heads = limits_.heads;
  p.combine_kernel = limits_.combine_kernel;
  p.workspace = workspace_;
  p.workspace_bytes = workspace_bytes_;
  return p;
}

std::vector<uint16_t> DecodeFixture::Run(bool pdl) {
  CheckCuda(cudaMemset(out_device_, 0xff, q_.size() * 2), "cudaMemset");
  LaunchContext context;
  context.pdl = pdl;
  const absl::Status status = DecodeAttention(Params(), context);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return Output();
}

std::vector<uint16_t> DecodeFixture::Output() const {
  CheckCuda(cudaDeviceSynchronize(), "decode attention");
  std::vector<uint16_t> out(q_.size());
  CheckCuda(cudaMemcpy(out.data(), out_device_, out.size() * 2, cudaMemcpyDeviceToHost), "cudaMemcpy");
  return out;
}

std::vector<uint16_t> DecodeFixture::RunAfterLateWriter() {
  const DecodeCase& c = case_;
  char* pool = static_cast<char*>(pool_);
  const int32_t row_bytes = c.head_dim * 2;
  std::vector<LateCopy> copies;
  void* q_copy = Upload(q_);
  copies.push_back({q_copy, q_device_, static_cast<int32_t>(q_.size() * 2)});
  std::vector<uint16_t> rows;
  std::vector<size_t> targets;
  for (size_t row = 0; row < c.lengths.size(); ++row) {
    const int token = c.lengths[row] - 1;
    if (token < 0) continue;
    const int32_t id = tables_[row * table_stride_ + token / c.block_tokens];
    for (int head = 0; head < 2 * c.kv_heads; ++head) {
      const bool v = head % 2 == 1;
      const uint16_t* from = &kv_[Offset(id - c.spare_blocks, v, head / 2, token % c.block_tokens)];
      rows.insert(rows.end(), from, from + c.head_dim);
      targets.push_back(Offset(id, v, head / 2, token % c.block_tokens) * 2);
    }
  }
  char* rows_copy = static_cast<char*>(Upload(rows));
  for (size_t i = 0; i < targets.size(); ++i) {
    copies.push_back({rows_copy + i * row_bytes, pool + targets[i], row_bytes});
    CheckCuda(cudaMemset(pool + targets[i], 0xff, row_bytes), "cudaMemset");
  }
  void* copies_device = Upload(copies);
  CheckCuda(cudaMemset(q_device_, 0xff, q_.size() * 2), "cudaMemset");
  CheckCuda(cudaMemset(out_device_, 0xff, q_.size() * 2), "cudaMemset");
  CheckCuda(cudaDeviceSynchronize(), "poison");
  LaunchContext context;
  context.pdl = true;
  CheckCuda(cudaStreamCreate(&context.stream), "stream");
  CheckCuda(LaunchSlowWriter(static_cast<const LateCopy*>(copies_device), static_cast<int>(copies.size()), context),
            "slow writer");
  const absl::Status status = DecodeAttention(Params(), context);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::vector<uint16_t> out = Output();
  CheckCuda(cudaStreamDestroy(context.stream), "stream");
  for (void* p : {q_copy, static_cast<void*>(rows_copy), copies_device}) cudaFree(p);
  return out;
}

std::vector<double> DecodeFixture::Reference() const {
  const DecodeCase& c = case_;
  const int group = c.q_heads / c.kv_heads, dim = c.head_dim;
  std::vector<double> out(q_.size(), 0.0);
  std::vector<double> scores;
  for (size_t row = 0; row < c.lengths.size(); ++row) {
    const int length = c.lengths[row];
    scores.resize(static_cast<size_t>(length));
    const auto at = [&](int token, bool v, int head) {
      const int32_t id = tables_[row * table_stride_ + token / c.block_tokens];
      return &kv_[Offset(id - c.spare_blocks, v, head, token % c.block_tokens)];
    };
    for (int head = 0; head < c.q_heads && length > 0; ++head) {
      const uint16_t* q = &q_[(row * c.q_heads + head) * dim];
      double* o = &out[(row * c.q_heads + head) * dim];
      double max = -INFINITY, sum = 0;
      for (int token = 0; token < length; ++token) {
        const uint16_t* k = at(token, false, head / group);
        double score = 0;
        for (int d = 0; d < dim; ++d) score += double{Bf16ToFloat(q[d])} * double{Bf16ToFloat(k[d])};
        scores[token] = score / std::sqrt(double(dim));
        max = std::max(max, scores[token]);
      }
      for (int token = 0; token < length; ++token) {
        const double weight = std::exp(scores[token] - max);
        const uint16_t* v = at(token, true, head / group);
        sum += weight;
        for (int d = 0; d < dim; ++d) o[d] += weight * double{Bf16ToFloat(v[d])};
      }
      for (int d = 0; d < dim; ++d) o[d] /= sum;
    }
  }
  return out;
}

bool DecodeFixture::CountersAreZero() const {
  std::vector<char> bytes(kWorkspaceZeroBytes);
  CheckCuda(cudaMemcpy(bytes.data(), workspace_, bytes.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
  return std::all_of(bytes.begin(), bytes.end(), [](char b) { return b == 0; });
}

}  // namespace agentserve::kernels::cuda
