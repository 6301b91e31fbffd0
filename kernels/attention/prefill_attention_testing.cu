#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>

#include "kernels/attention/prefill_attention_testing.h"

namespace agentserve::kernels::cuda::testing {
namespace {

void Check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::abort();
}

__device__ uint32_t Hash(uint64_t x) {
  x = (x ^ (x >> 31)) * 0x7fb5d329728ea185ull;
  x = (x ^ (x >> 27)) * 0x81dadef4bc2dd44dull;
  return static_cast<uint32_t>((x ^ (x >> 33)) >> 16);
}
// Normal by Box and Muller.
__device__ float Normal(uint64_t index, uint64_t seed) {
  const float u = (Hash(2 * index + (seed << 40)) + 1.0f) * 2.3283064e-10f,
              v = Hash(2 * index + 1 + (seed << 40)) * 2.3283064e-10f;
  return sqrtf(-2.0f * logf(fminf(u, 1.0f))) * cospif(2.0f * v);
}

__global__ void FillKernel(__nv_bfloat16* to, size_t count, uint64_t seed, float scale) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < count; i += step) {
    to[i] = __float2bfloat16_rn(Normal(i, seed) * scale);
  }
}

// NaN in the slots of K and V of positions [length, end of the block) of each block and of all of the free blocks.
__global__ void PoisonSlots(PagedKv kv, const int32_t* used) {
  const int valid = used[blockIdx.x];
  __nv_bfloat16* block = reinterpret_cast<__nv_bfloat16*>(kv.base + blockIdx.x * kv.block_bytes);
  const size_t count = kv.block_bytes / 2, rows = kv.block_tokens;
  for (size_t i = threadIdx.x; i < count; i += blockDim.x) {
    if (static_cast<int>(i / kv.head_dim % rows) >= valid) block[i] = __float2bfloat16_rn(NAN);
  }
}

// One block per (row, head): double throughout; scores in shared memory.
__global__ void ReferenceKernel(PrefillAttentionParams p, int stride, double* error, double* norm) {
  extern __shared__ double score[];
  __shared__ double scratch[128];
  const int row = blockIdx.x * stride, head = blockIdx.y, d = p.kv.head_dim;
  int sequence = 0;
  while (p.cu_tokens[sequence + 1] <= row) ++sequence;
  const int length = p.starts[sequence] + row - p.cu_tokens[sequence] + 1;
  const int32_t* table = p.block_tables + static_cast<int64_t>(sequence) * p.table_stride;
  const __nv_bfloat16* q = p.q + (static_cast<int64_t>(row) * p.q_heads + head) * d;
  const int kv_head = head / (p.q_heads / static_cast<int>(p.kv.kv_heads));
  const auto at = [&](int position, size_t offset) {
    return reinterpret_cast<const __nv_bfloat16*>(
               p.kv.base + static_cast<size_t>(table[position / p.kv.block_tokens]) * p.kv.block_bytes + offset +
               kv_head * p.kv.head_bytes) +
           position % p.kv.block_tokens * d;
  };
  double most = -INFINITY;
  for (int j = threadIdx.x; j < length; j += blockDim.x) {
    const __nv_bfloat16* k = at(j, p.kv.k_offset);
    double s = 0;
    for (int i = 0; i < d; ++i)
      s += static_cast<double>(__bfloat162float(q[i])) * static_cast<double>(__bfloat162float(k[i]));
    score[j] = s * static_cast<double>(p.scale);
    most = fmax(most, score[j]);
  }
  scratch[threadIdx.x] = most;
  __syncthreads();
  for (unsigned i = 0; i < blockDim.x; ++i) most = fmax(most, scratch[i]);
  for (int j = threadIdx.x; j < length; j += blockDim.x) score[j] = exp(score[j] - most);
  __syncthreads();
  double sum = 0;
  for (int j = 0; j < length; ++j) sum += score[j];
  for (int i = threadIdx.x; i < d; i += blockDim.x) {
    double want = 0;
    for (int j = 0; j < length; ++j) want += score[j] * static_cast<double>(__bfloat162float(at(j, p.kv.v_offset)[i]));
    want /= sum;
    const double got =
        static_cast<double>(__bfloat162float(p.out[(static_cast<int64_t>(row) * p.q_heads + head) * d + i]));
    atomicAdd(&error[blockIdx.x], (got - want) * (got - want));
    atomicAdd(&norm[blockIdx.x], want * want);
  }
}

// Enough blocks to reach every multiprocessor.
__global__ void ReadClocks(uint64_t* cycles, uint64_t* ns, int limit) {
  uint32_t sm;
  uint64_t now;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  if (static_cast<int>(sm) < limit) {
    cycles[sm] = static_cast<uint64_t>(clock64());
    ns[sm] = now;
  }
  __nanosleep(500);
}

void* Allocate(size_t bytes) {
  void* memory = nullptr;
  Check(cudaMalloc(&memory, std::max<size_t>(bytes, 16)));
  return memory;
}

}  // namespace

template <typename T>
T* PrefillProblem::Upload(const std::vector<T>& values) {
  T* memory = static_cast<T*>(Allocate(values.size() * sizeof(T)));
  Check(cudaMemcpy(memory, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  allocations_.push_back(memory);
  return memory;
}

PrefillProblem::PrefillProblem(const PrefillShape& shape, uint32_t seed) : shape_(shape) {
  const int bt = shape.block_tokens;
  int blocks = 0, rows = 0;
  for (const PrefillSequence& s : shape.sequences) {
    blocks += (s.start + s.tokens + bt - 1) / bt;
    first_row_.push_back(rows);
    rows += s.tokens;
  }
  PagedKv& kv = params_.kv;
  // Two layers, the second in use: offsets that are not zero.
  kv.head_bytes = static_cast<size_t>(bt) * shape.head_dim * 2;
  kv.block_bytes = 4 * shape.kv_heads * kv.head_bytes;
  kv.k_offset = 2 * shape.kv_heads * kv.head_bytes;
  kv.v_offset = 3 * shape.kv_heads * kv.head_bytes;
  kv.block_tokens = static_cast<uint32_t>(bt);
  kv.kv_heads = static_cast<uint32_t>(shape.kv_heads);
  kv.head_dim = static_cast<uint32_t>(shape.head_dim);
  const int pool_blocks = blocks + 2;
  kv.base = static_cast<std::byte*>(Allocate(pool_blocks * kv.block_bytes));
  allocations_.push_back(kv.base);
  FillKernel<<<1024, 256>>>(reinterpret_cast<__nv_bfloat16*>(kv.base), pool_blocks * kv.block_bytes / 2, seed * 2 + 1,
                            1.0f);
  std::vector<int32_t> order(pool_blocks), used(pool_blocks, 0);
  std::iota(order.begin(), order.end(), 0);
  if (shape.scattered) std::shuffle(order.begin(), order.end(), std::mt19937(seed));
  int next = 0;
  for (const PrefillSequence& s : shape.sequences) {
    std::vector<int32_t> table;
    for (int at = 0; at < s.start + s.tokens; at += bt) {
      used[order[next]] = std::min(bt, s.start + s.tokens - at);
      table.push_back(order[next++]);
    }
    tables_.push_back(table);
  }
  PoisonSlots<<<pool_blocks, 256>>>(kv, Upload(used));
  const size_t count = static_cast<size_t>(rows) * shape.q_heads * shape.head_dim;
  q_ = static_cast<__nv_bfloat16*>(Allocate(count * 2));
  allocations_.push_back(q_);
  FillKernel<<<1024, 256>>>(q_, count, seed * 2 + 2, shape.scale_q);
  params_.out = static_cast<__nv_bfloat16*>(Allocate(count * 2));
  allocations_.push_back(params_.out);
  params_.q = q_;
  params_.q_heads = shape.q_heads;
  params_.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  params_.workspace_bytes = PrefillWorkspaceBytes();
  params_.workspace = Allocate(params_.workspace_bytes);
  allocations_.push_back(params_.workspace);
  Check(cudaMemset(params_.workspace, 0, params_.workspace_bytes));
  Plan(shape.sequences, tables_);
  PoisonOutput();
}

PrefillProblem::~PrefillProblem() {
  for (void* memory : allocations_) cudaFree(memory);
}

size_t PrefillProblem::OutputCount() const {
  return static_cast<size_t>(params_.tokens) * shape_.q_heads * shape_.head_dim;
}

double PrefillProblem::Flops() const {
  double pairs = 0;
  for (const PrefillSequence& s : shape_.sequences) {
    pairs += static_cast<double>(s.tokens) * s.start + 0.5 * s.tokens * (s.tokens + 1.0);
  }
  return 4.0 * pairs * shape_.q_heads * shape_.head_dim;
}

void PrefillProblem::Plan(const std::vector<PrefillSequence>& sequences,
                          const std::vector<std::vector<int32_t>>& tables) {
  std::vector<int32_t> cu = {0}, starts, flat;
  size_t stride = 1;
  for (const auto& table : tables) stride = std::max(stride, table.size());
  params_.max_new = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    cu.push_back(cu.back() + sequences[i].tokens);
    starts.push_back(sequences[i].start);
    params_.max_new = std::max(params_.max_new, sequences[i].tokens);
    flat.insert(flat.end(), tables[i].begin(), tables[i].end());
    flat.resize((i + 1) * stride, 1 << 28);  // entries past the end are never followed
  }
  const int count = static_cast<int>(sequences.size());
  std::vector<int32_t> tiles(MaxPrefillTiles(cu.back(), count, shape_.head_dim));
  params_.num_tiles = PlanPrefill(cu.data(), starts.data(), count, shape_.head_dim, tiles.data());
  params_.sequences = count;
  params_.tokens = cu.back();
  params_.cu_tokens = Upload(cu);
  params_.starts = Upload(starts);
  params_.block_tables = Upload(flat);
  params_.table_stride = static_cast<int>(stride);
  params_.tiles = Upload(tiles);
}

void PrefillProblem::PoisonOutput() { Check(cudaMemset(params_.out, 0xff, OutputCount() * 2)); }

std::vector<uint16_t> PrefillProblem::Output() const {
  std::vector<uint16_t> out(OutputCount());
  Check(cudaMemcpy(out.data(), params_.out, out.size() * 2, cudaMemcpyDeviceToHost));
  return out;
}

void PrefillProblem::Cut(const std::vector<Slice>& slices, std::vector<int>* offsets) {
  std::vector<PrefillSequence> sequences;
  std::vector<std::vector<int32_t>> tables;
  const size_t row = static_cast<size_t>(shape_.q_heads) * shape_.head_dim;
  int rows = 0;
  for (const Slice& s : slices) rows += s.tokens;
  __nv_bfloat16* q = static_cast<__nv_bfloat16*>(Allocate(rows * row * 2));
  allocations_.push_back(q);
  rows = 0;
  for (const Slice& s : slices) {
    sequences.push_back({s.start, s.tokens});
    tables.push_back(tables_[s.sequence]);
    const int from = first_row_[s.sequence] + s.start - shape_.sequences[s.sequence].start;
    offsets->push_back(from);
    Check(cudaMemcpy(q + rows * row, q_ + from * row, s.tokens * row * 2, cudaMemcpyDeviceToDevice));
    rows += s.tokens;
  }
  params_.q = q;
  params_.out = static_cast<__nv_bfloat16*>(Allocate(rows * row * 2));
  allocations_.push_back(params_.out);
  Plan(sequences, tables);
  PoisonOutput();
}

double PrefillProblem::Error(int stride) const {
  int longest = 0;
  for (const PrefillSequence& s : shape_.sequences) longest = std::max(longest, s.start + s.tokens);
  const int rows = (params_.tokens + stride - 1) / stride;
  double* sums = static_cast<double*>(Allocate(2 * rows * sizeof(double)));
  Check(cudaMemset(sums, 0, 2 * rows * sizeof(double)));
  Check(cudaFuncSetAttribute(ReferenceKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 220 * 1024));
  // 16 bytes more: the compiler reads scores in pairs.
  ReferenceKernel<<<dim3(rows, shape_.q_heads), 128, (longest + 2) * sizeof(double)>>>(params_, stride, sums,
                                                                                       sums + rows);
  Check(cudaGetLastError());
  std::vector<double> host(2 * rows);
  Check(cudaMemcpy(host.data(), sums, host.size() * sizeof(double), cudaMemcpyDeviceToHost));
  Check(cudaFree(sums));
  double worst = 0;
  constexpr int kChunk = 16;
  for (int at = 0; at < rows; at += kChunk) {
    double error = 0, norm = 0;
    for (int i = at; i < std::min(rows, at + kChunk); ++i) {
      error += host[i];
      norm += host[rows + i];
    }
    const double relative = std::sqrt(error / norm);
    if (!(relative <= worst)) worst = relative;  // NaN wins, and stays
    if (std::isnan(worst)) return worst;
  }
  return worst;
}

SmClock::SmClock() {
  Check(cudaMallocManaged(&readings_, 2 * sizeof(Reading)));
  for (int i = 0; i < 2; ++i) readings_[i] = {};
}

SmClock::~SmClock() { cudaFree(readings_); }

void SmClock::Read(int which) {
  ReadClocks<<<4 * Reading::kMaxSms, 32>>>(readings_[which].cycles, readings_[which].ns, Reading::kMaxSms);
}

double SmClock::Mhz() const {
  double sum = 0;
  int count = 0;
  for (int i = 0; i < Reading::kMaxSms; ++i) {
    const uint64_t ns = readings_[1].ns[i] - readings_[0].ns[i];
    if (readings_[0].ns[i] == 0 || readings_[1].ns[i] == 0 || ns == 0) continue;
    sum += 1e3 * static_cast<double>(readings_[1].cycles[i] - readings_[0].cycles[i]) / static_cast<double>(ns);
    ++count;
  }
  return count > 0 ? sum / count : 0;
}

}  // namespace agentserve::kernels::cuda::testing
