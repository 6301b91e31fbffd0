#include "model/cuda/device_weights.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <thread>

#include "base/clock.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "kernels/cuda/launch.h"
#include "kernels/rope/rope.h"
#include "model/cuda/init_kernels.h"

namespace agentserve::model::cuda {
namespace {

using base::StrCat;
using kernels::cuda::LaunchContext;
using kernels::cuda::ToStatus;

// Two of these per thread; large enough that the copy engine runs at the link's rate, small enough that the first copy
// starts at once.
constexpr size_t kPieceBytes = 4 << 20;
constexpr int kMaxThreads = 12;  // 55 GB/s of host link / 5 GB/s of one reading thread; pinning costs 1 ms per 4 MiB

// `bytes` contiguous source bytes. run 0: contiguous at dst. Else runs of `run` bytes are placed 2 * run apart.
struct Piece {
  const std::byte* src;
  std::byte* dst;
  size_t bytes;
  size_t run;
};

DeviceWeights Carve(const ModelConfig& c, Arena* arena) {
  using T = __nv_bfloat16;
  const size_t h = c.hidden_size, f = c.intermediate_size, q = c.q_size(), kv = c.kv_size();
  DeviceWeights w;
  w.embedding = arena->Take<T>(c.vocab_size * h);
  w.lm_head = c.tie_word_embeddings ? w.embedding : arena->Take<T>(c.vocab_size * h);
  w.final_norm = arena->Take<T>(h);
  w.layers.resize(c.num_layers);
  for (DeviceLayer& l : w.layers) {
    l.input_norm = arena->Take<T>(h);
    l.qkv = arena->Take<T>((q + 2 * kv) * h);
    l.o = arena->Take<T>(h * q);
    l.post_norm = arena->Take<T>(h);
    l.gate_up = arena->Take<T>(2 * f * h);
    l.down = arena->Take<T>(h * f);
  }
  w.cos = arena->Take<T>(size_t{c.max_position} * (c.head_dim / 2));
  w.sin = arena->Take<T>(size_t{c.max_position} * (c.head_dim / 2));
  w.frequencies = arena->Take<float>(c.head_dim / 2);
  return w;
}

absl::StatusOr<DeviceWeights> Allocate(const ModelConfig& config) {
  AS_ASSIGN_OR_RETURN(DeviceBuffer memory, DeviceBuffer::Allocate(DeviceWeightBytes(config), "the model's weights"));
  Arena arena(memory.data());
  DeviceWeights w = Carve(config, &arena);
  w.memory = std::move(memory);
  return w;
}

absl::Status FillTables(const ModelConfig& config, DeviceWeights* w) {
  kernels::RopeFrequencyParams p;
  p.head_dim = config.head_dim;
  p.theta = config.rope_theta;
  p.llama3 = config.rope_scaling.type == RopeScaling::Type::kLlama3;
  p.factor = config.rope_scaling.factor;
  p.low_freq_factor = config.rope_scaling.low_freq_factor;
  p.high_freq_factor = config.rope_scaling.high_freq_factor;
  p.original_max_position = config.rope_scaling.original_max_position;
  const std::vector<float> frequencies = kernels::RopeFrequencies(p);
  AS_RETURN_IF_ERROR(ToStatus(
      cudaMemcpy(w->frequencies, frequencies.data(), frequencies.size() * sizeof(float), cudaMemcpyHostToDevice),
      "copying RoPE frequencies"));
  AS_RETURN_IF_ERROR(
      FillRopeTable(w->frequencies, config.head_dim / 2, config.max_position, w->cos, w->sin, LaunchContext{}));
  return ToStatus(cudaDeviceSynchronize(), "RoPE table");
}

std::vector<Piece> CutPieces(const Weights& from, const ModelConfig& c, const DeviceWeights& to) {
  std::vector<Piece> out;
  const auto add = [&](const uint16_t* src, __nv_bfloat16* dst, size_t elements, size_t run_elements = 0) {
    const size_t run = run_elements * 2, bytes = elements * 2;
    const size_t step = run == 0 ? kPieceBytes : std::max<size_t>(1, kPieceBytes / run) * run;
    for (size_t at = 0; at < bytes; at += step) {
      out.push_back({reinterpret_cast<const std::byte*>(src) + at,
                     reinterpret_cast<std::byte*>(dst) + (run == 0 ? at : 2 * at), std::min(step, bytes - at), run});
    }
  };
  const size_t h = c.hidden_size, f = c.intermediate_size, q = c.q_size(), kv = c.kv_size();
  add(from.embedding, to.embedding, c.vocab_size * h);
  if (!c.tie_word_embeddings) add(from.lm_head, to.lm_head, c.vocab_size * h);
  add(from.final_norm, to.final_norm, h);
  for (size_t i = 0; i < to.layers.size(); ++i) {
    const LayerWeights& l = from.layers[i];
    const DeviceLayer& d = to.layers[i];
    add(l.input_norm, d.input_norm, h);
    add(l.q, d.qkv, q * h);
    add(l.k, d.qkv + q * h, kv * h);
    add(l.v, d.qkv + (q + kv) * h, kv * h);
    add(l.o, d.o, h * q);
    add(l.post_norm, d.post_norm, h);
    add(l.gate, d.gate_up, f * h, kGateUpGroup * h);
    add(l.up, d.gate_up + kGateUpGroup * h, f * h, kGateUpGroup * h);
    add(l.down, d.down, h * f);
  }
  return out;
}

// Reads source bytes: by pread where they belong to a mapped file, else from memory.
class SourceReader {
 public:
  explicit SourceReader(const Weights& weights) : weights_(weights), fds_(weights.files.size(), -1) {
    for (size_t i = 0; i < fds_.size(); ++i) fds_[i] = open(weights.files[i].path().c_str(), O_RDONLY | O_CLOEXEC);
  }
  ~SourceReader() {
    for (const int fd : fds_) {
      if (fd >= 0) close(fd);
    }
  }
  SourceReader(const SourceReader&) = delete;
  SourceReader& operator=(const SourceReader&) = delete;

  void Read(const std::byte* src, size_t bytes, std::byte* to) const {
    for (size_t i = 0; i < fds_.size(); ++i) {
      const std::span<const std::byte> file = weights_.files[i].bytes();
      if (src < file.data() || src >= file.data() + file.size() || fds_[i] < 0) continue;
      size_t done = 0;
      while (done < bytes) {
        const ssize_t n = pread(fds_[i], to + done, bytes - done, src - file.data() + static_cast<ssize_t>(done));
        if (n <= 0) break;  // the mapping below says why, or succeeds
        done += static_cast<size_t>(n);
      }
      std::memcpy(to + done, src + done, bytes - done);
      return;
    }
    std::memcpy(to, src, bytes);
  }
  std::string NameOf(const std::byte* src) const {
    for (const MappedFile& file : weights_.files) {
      if (src >= file.bytes().data() && src < file.bytes().data() + file.bytes().size()) return file.path();
    }
    return "converted tensor";
  }

 private:
  const Weights& weights_;
  std::vector<int> fds_;
};

// All pieces of one upload, taken by several threads.
class Uploader {
 public:
  Uploader(const Weights& weights, std::vector<Piece> pieces, const std::function<void(const LoadProgress&)>& progress)
      : reader_(weights), pieces_(std::move(pieces)), progress_(progress) {
    for (const Piece& p : pieces_) total_ += p.bytes;
  }

  absl::Status Run(int threads, int device) {
    std::vector<std::thread> workers;
    workers.reserve(static_cast<size_t>(threads));
    for (int i = 0; i < threads; ++i) workers.emplace_back([this, device] { Note(Work(device)); });
    for (std::thread& t : workers) t.join();
    return status_;
  }
  uint64_t total() const { return total_; }

 private:
  void Note(const absl::Status& status) {
    if (status.ok()) return;
    const std::scoped_lock lock(mutex_);
    if (status_.ok()) status_ = status;
    failed_ = true;
  }

  absl::Status Work(int device) {
    AS_RETURN_IF_ERROR(ToStatus(cudaSetDevice(device), "choosing the GPU"));
    AS_ASSIGN_OR_RETURN(const PinnedBuffer pinned, PinnedBuffer::Allocate(2 * kPieceBytes, "loading weights"));
    AS_ASSIGN_OR_RETURN(const Stream stream, Stream::Create());
    Event free[2];
    for (Event& e : free) {
      AS_ASSIGN_OR_RETURN(e, Event::Create());
    }
    for (int turn = 0; !failed_; turn ^= 1) {
      const size_t i = next_.fetch_add(1);
      if (i >= pieces_.size()) break;
      const Piece& p = pieces_[i];
      std::byte* buffer = pinned.data() + static_cast<size_t>(turn) * kPieceBytes;
      AS_RETURN_IF_ERROR(ToStatus(cudaEventSynchronize(free[turn].get()), "loading weights"));
      reader_.Read(p.src, p.bytes, buffer);
      const cudaError_t error = p.run == 0
                                    ? cudaMemcpyAsync(p.dst, buffer, p.bytes, cudaMemcpyHostToDevice, stream.get())
                                    : cudaMemcpy2DAsync(p.dst, 2 * p.run, buffer, p.run, p.run, p.bytes / p.run,
                                                        cudaMemcpyHostToDevice, stream.get());
      AS_RETURN_IF_ERROR(ToStatus(error, "copying weights to the GPU"));
      AS_RETURN_IF_ERROR(ToStatus(cudaEventRecord(free[turn].get(), stream.get()), "loading weights"));
      Report(p);
    }
    return ToStatus(cudaStreamSynchronize(stream.get()), "copying weights to the GPU");
  }

  void Report(const Piece& p) {
    constexpr base::TimeNs kEvery = 200 * base::kNsPerMs;
    const uint64_t done = done_.fetch_add(p.bytes) + p.bytes;
    if (!progress_) return;
    const std::scoped_lock lock(mutex_);
    const base::TimeNs now = clock_.Now();
    if (done < total_ && now - reported_ < kEvery) return;
    reported_ = now;
    LoadProgress out;
    out.file = reader_.NameOf(p.src);
    out.bytes_done = done;
    out.bytes_total = total_;
    out.seconds = static_cast<double>(now - began_) / 1e9;
    out.bytes_per_second = static_cast<double>(done) / std::max(out.seconds, 1e-9);
    out.eta_seconds = static_cast<double>(total_ - done) / std::max(out.bytes_per_second, 1.0);
    progress_(out);
  }

  const SourceReader reader_;
  const std::vector<Piece> pieces_;
  const std::function<void(const LoadProgress&)>& progress_;
  uint64_t total_ = 0;
  const base::MonotonicClock clock_;
  const base::TimeNs began_ = clock_.Now();
  std::atomic<size_t> next_ = 0;
  std::atomic<uint64_t> done_ = 0;
  std::atomic<bool> failed_ = false;
  std::mutex mutex_;  // guards what follows
  base::TimeNs reported_ = 0;
  absl::Status status_;
};

}  // namespace

uint64_t DeviceWeightBytes(const ModelConfig& config) {
  Arena arena(nullptr);
  Carve(config, &arena);
  return arena.used();
}

absl::StatusOr<DeviceWeights> UploadWeights(const Weights& weights, const ModelConfig& config, int threads,
                                            const std::function<void(const LoadProgress&)>& progress,
                                            UploadTimes* times) {
  const base::MonotonicClock clock;
  base::TimeNs at = clock.Now();
  const auto lap = [&] {
    const base::TimeNs now = clock.Now();
    return static_cast<double>(now - std::exchange(at, now)) / 1e9;
  };
  int device = 0;
  AS_RETURN_IF_ERROR(ToStatus(cudaGetDevice(&device), "asking for the GPU"));
  AS_ASSIGN_OR_RETURN(DeviceWeights out, Allocate(config));
  times->allocate = lap();
  if (threads <= 0) threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  std::vector<Piece> pieces = CutPieces(weights, config, out);
  times->threads = std::min({threads, kMaxThreads, static_cast<int>(pieces.size() / 8 + 1)});
  Uploader uploader(weights, std::move(pieces), progress);
  AS_RETURN_IF_ERROR(uploader.Run(times->threads, device));
  times->bytes = uploader.total();
  times->copy = lap();
  AS_RETURN_IF_ERROR(FillTables(config, &out));
  times->tables = lap();
  return out;
}

absl::StatusOr<DeviceWeights> RandomWeights(const ModelConfig& config, uint64_t seed) {
  AS_ASSIGN_OR_RETURN(DeviceWeights out, Allocate(config));
  const size_t h = config.hidden_size, f = config.intermediate_size, q = config.q_size(), kv = config.kv_size();
  const LaunchContext context;
  // Norms in [0.5, 1.5), matrices with variance 1 / fan-in, so that activations keep their size.
  const auto matrix = [&](__nv_bfloat16* to, size_t rows, size_t columns) {
    return FillRandom(to, rows * columns, 2.0f * std::sqrt(3.0f / static_cast<float>(columns)), 0.0f, ++seed, context);
  };
  const auto norm = [&](__nv_bfloat16* to) { return FillRandom(to, h, 1.0f, 1.0f, ++seed, context); };
  AS_RETURN_IF_ERROR(matrix(out.embedding, config.vocab_size, h));
  if (!config.tie_word_embeddings) AS_RETURN_IF_ERROR(matrix(out.lm_head, config.vocab_size, h));
  AS_RETURN_IF_ERROR(norm(out.final_norm));
  for (const DeviceLayer& l : out.layers) {
    AS_RETURN_IF_ERROR(norm(l.input_norm));
    AS_RETURN_IF_ERROR(matrix(l.qkv, q + 2 * kv, h));
    AS_RETURN_IF_ERROR(matrix(l.o, h, q));
    AS_RETURN_IF_ERROR(norm(l.post_norm));
    AS_RETURN_IF_ERROR(matrix(l.gate_up, 2 * f, h));
    AS_RETURN_IF_ERROR(matrix(l.down, h, f));
  }
  AS_RETURN_IF_ERROR(FillTables(config, &out));
  return out;
}

}  // namespace agentserve::model::cuda
