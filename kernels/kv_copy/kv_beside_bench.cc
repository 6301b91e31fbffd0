// What digests cost a prefill that they run beside: the matrix products of 16 layers of Llama 3.2 1B on one stream, the
// sums of what each layer writes on another, in several ways of launching them. One table, and one JSON line a row.
#include <cstdio>
#include <cstdlib>

#include "kernels/cuda/bench_timer.h"
#include "kernels/gemm/linear_cuda.h"
#include "kernels/kv_copy/kv_copy_cuda.h"

namespace agentserve::kernels::cuda {
namespace {

constexpr size_t kBlockBytes = size_t{512} << 10, kLayerBytes = size_t{32} << 10;
constexpr int kLayers = 16;

struct Way {
  const char* name;
  bool beside;  // on a stream of its own; else after the last layer
  bool high_priority;
  int sms;            // 0: a thread block for 128 KiB
  size_t worthwhile;  // bytes that are summed at least, but for the last layers
};
constexpr Way kWays[] = {
    {"none", false, false, -1, 0},
    {"at the end", false, false, 132, 0},
    {"each layer, 32 SMs, high", true, true, 32, 0},
    {"each layer, 32 SMs, low", true, false, 32, 0},
    {"each layer, short blocks, low", true, false, 0, 0},
    {"32 MiB, short blocks, high", true, true, 0, 32 << 20},
    {"32 MiB, short blocks, low", true, false, 0, 32 << 20},
    {"all but the last, short blocks, low", true, false, 0, size_t{1} << 40},
};

class Prefill {
 public:
  explicit Prefill(int tokens)
      : tokens_(tokens),
        x_(static_cast<size_t>(tokens) * 16384),
        y_(static_cast<size_t>(tokens) * 16384),
        w_(size_t{16384} * 2048 * 4),
        workspace_(LinearWorkspaceBytes(tokens, 16384, 8192)),
        pool_(static_cast<size_t>(tokens) / 16 * kBlockBytes),
        moves_(static_cast<size_t>(tokens) / 16),
        sums_(static_cast<size_t>(tokens) / 16 * 2),
        arrived_(16) {
    CheckCuda(cudaMemset(workspace_.data(), 0, workspace_.size()), "zero");
    // Bytes that are small bf16 numbers of changing sign: what the products read must not be NaN.
    std::vector<uint32_t> noise(1 << 20);
    for (size_t i = 0; i < noise.size(); ++i) {
      const uint32_t r = static_cast<uint32_t>(i) * 2654435761u;
      noise[i] = 0x3c003c00u | (r & 0x80ff80ffu);
    }
    Fill(x_.data(), x_.size() * 2, noise);
    Fill(w_.data(), w_.size() * 2, noise);
    Fill(pool_.data(), pool_.size(), noise);
    std::vector<KvMove> moves(moves_.size());
    for (uint32_t i = 0; i < moves.size(); ++i) moves[i] = {i, i, 16};
    moves_.Upload(moves);
    CheckCuda(cudaMemset(sums_.data(), 0, sums_.size() * 8), "zero");
    CheckCuda(cudaMemset(arrived_.data(), 0, 64), "zero");
    int least = 0, greatest = 0;
    CheckCuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "priorities");
    CheckCuda(cudaStreamCreateWithFlags(&main_.stream, cudaStreamNonBlocking), "stream");
    CheckCuda(cudaStreamCreateWithPriority(&side_[0].stream, cudaStreamNonBlocking, least), "stream");
    CheckCuda(cudaStreamCreateWithPriority(&side_[1].stream, cudaStreamNonBlocking, greatest), "stream");
    for (cudaEvent_t* e : {&begin_, &end_, &summed_}) CheckCuda(cudaEventCreate(e), "event");
    for (cudaEvent_t& e : layer_) CheckCuda(cudaEventCreateWithFlags(&e, cudaEventDisableTiming), "event");
  }

  // Microseconds of the products, and until the last sum is there too.
  std::pair<double, double> Run(const Way& way) {
    const LaunchContext& sums = way.beside ? side_[way.high_priority] : main_;
    const size_t step = moves_.size() * kLayerBytes;
    CheckCuda(cudaEventRecord(begin_, main_.stream), "record");
    int summed = 0;
    for (int layer = 0; layer < kLayers; ++layer) {
      Product(3072, 2048, LinearEpilogue::kNone);
      CheckCuda(cudaEventRecord(layer_[layer], main_.stream), "record");  // K and V are written
      const bool due = layer + 2 >= kLayers || (layer + 1 - summed) * step >= way.worthwhile;
      if (way.beside && due) {
        CheckCuda(cudaStreamWaitEvent(sums.stream, layer_[layer], 0), "wait");
        Sums(way, summed, layer + 1, sums);
        summed = layer + 1;
      }
      Product(2048, 2048, LinearEpilogue::kResidual);
      Product(16384, 2048, LinearEpilogue::kSwiglu);
      Product(2048, 8192, LinearEpilogue::kResidual);
    }
    CheckCuda(cudaEventRecord(end_, main_.stream), "record");
    if (!way.beside && way.sms > 0) Sums(way, 0, kLayers, sums);
    CheckCuda(cudaEventRecord(summed_, sums.stream), "record");
    CheckCuda(cudaStreamSynchronize(main_.stream), "products");
    CheckCuda(cudaStreamSynchronize(sums.stream), "sums");
    float products = 0, all = 0;
    CheckCuda(cudaEventElapsedTime(&products, begin_, end_), "elapsed");
    CheckCuda(cudaEventElapsedTime(&all, begin_, summed_), "elapsed");
    return {products * 1e3, std::max(products, all) * 1e3};
  }

 private:
  static void Fill(void* to, size_t bytes, const std::vector<uint32_t>& noise) {
    for (size_t at = 0; at < bytes; at += noise.size() * 4) {
      CheckCuda(cudaMemcpy(static_cast<char*>(to) + at, noise.data(), std::min(noise.size() * 4, bytes - at),
                           cudaMemcpyHostToDevice),
                "fill");
    }
  }

  void Product(int n, int k, LinearEpilogue epilogue) {
    LinearParams p;
    p.x = x_.data();
    p.w = w_.data() + size_t{16384} * 2048 * static_cast<size_t>(turn_++ % 2);
    p.y = y_.data();
    p.residual = epilogue == LinearEpilogue::kResidual ? x_.data() : nullptr;
    p.m = tokens_;
    p.n = n;
    p.k = k;
    p.epilogue = epilogue;
    p.workspace = workspace_.data();
    p.workspace_bytes = workspace_.size();
    if (!Linear(p, main_).ok()) std::abort();
  }

  void Sums(const Way& way, int first, int end, const LaunchContext& context) {
    KvGatherParams p;
    p.src = pool_.data();
    p.blocks = moves_.data();
    p.count = static_cast<int>(moves_.size());
    p.block_bytes = kBlockBytes;
    p.offset = static_cast<size_t>(first) * kLayerBytes;
    p.bytes = static_cast<size_t>(end - first) * kLayerBytes;
    p.sms = way.sms > 0 ? way.sms : static_cast<int>(moves_.size() * p.bytes / (128 << 10)) + 1;
    p.sums = {2048, 128, sums_.data(), nullptr};
    if (end == kLayers) {
      p.sums.out = sums_.data() + moves_.size();
      p.done.arrived = arrived_.data();
    }
    if (!KvSums(p, context).ok()) std::abort();
  }

  const int tokens_;
  DeviceVector<__nv_bfloat16> x_, y_, w_;
  DeviceVector<std::byte> workspace_, pool_;
  DeviceVector<KvMove> moves_;
  DeviceVector<uint64_t> sums_;
  DeviceVector<uint32_t> arrived_;
  LaunchContext main_, side_[2];
  cudaEvent_t begin_ = nullptr, end_ = nullptr, summed_ = nullptr, layer_[kLayers] = {};
  int turn_ = 0;
};

void Measure(int tokens) {
  Prefill prefill(tokens);
  constexpr int kWayCount = static_cast<int>(std::size(kWays)), kRounds = 9;
  std::vector<double> products[kWayCount], all[kWayCount];
  for (int round = -1; round < kRounds; ++round) {  // in turn, so that clocks and heat are the same for all
    for (int w = 0; w < kWayCount; ++w) {
      const auto [p, a] = prefill.Run(kWays[w]);
      if (round < 0) continue;
      products[w].push_back(p);
      all[w].push_back(a);
    }
  }
  for (int w = 0; w < kWayCount; ++w) {
    std::sort(products[w].begin(), products[w].end());
    std::sort(all[w].begin(), all[w].end());
    const double p = products[w][kRounds / 2], a = all[w][kRounds / 2], base = products[0][kRounds / 2];
    std::printf("%5d tokens, %-36s products %9.1f us (%+6.1f), with sums %9.1f us (%+6.1f)\n", tokens, kWays[w].name, p,
                p - base, a, a - base);
    std::printf("{\"bench\":\"kv_sums_beside\",\"tokens\":%d,\"way\":\"%s\",\"products_us\":%.1f,\"all_us\":%.1f}\n",
                tokens, kWays[w].name, p, a);
  }
}

}  // namespace
}  // namespace agentserve::kernels::cuda

int main() {
  for (const int tokens : {1024, 8192}) agentserve::kernels::cuda::Measure(tokens);
}
