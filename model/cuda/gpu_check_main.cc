// agentserve-gpu-check: correctness and speed of the GPU executor without services; see gpu_check.h.
#include <charconv>
#include <cstdio>

#include "base/clock.h"
#include "base/flags.h"
#include "base/strings.h"
#include "model/cuda/gpu_check.h"
#include "model/random_model.h"

namespace {

using namespace agentserve;

struct Flags {
  std::string model, random, mode = "bench", prompts, batches = "1,64,256", contexts = "1024,8192", prefills, dump;
  int device = 0, steps = 64, chunk = 512, block_tokens = 16, threads = 0, layers = 0, seed = 1;
  int whole_step_rows = model::cuda::CudaOptions().whole_step_rows;
  int fuse_norm_rows = model::cuda::CudaOptions().fuse_norm_rows, prefetch_kib = 0, prefill_chunk = 8192, runs = 100;
  bool invariant = false, graphs = true, pdl = true, warm_up = false;
};

int Fail(const absl::Status& status, int code) {
  std::fprintf(stderr, "agentserve-gpu-check: %s\n", base::MessageOf(status).c_str());
  return code;
}

// "1,2,3"; anything else ends the list.
std::vector<uint32_t> Numbers(const std::string& text) {
  std::vector<uint32_t> out;
  const char* at = text.data();
  const char* end = at + text.size();
  uint32_t n = 0;
  while (at < end) {
    const std::from_chars_result r = std::from_chars(at, end, n);
    if (r.ec != std::errc()) break;
    out.push_back(n);
    at = r.ptr + 1;
  }
  return out;
}

void AddFlags(base::FlagSet* set, Flags* f) {
  set->Add("model", &f->model, "Hugging Face model folder");
  set->Add("random", &f->random, "1b, 3b or tiny: random weights of that shape instead of a folder");
  set->Add("layers", &f->layers, "with --random: this many layers; 0 = the shape's");
  set->Add("mode", &f->mode,
           "bench: times; parts: times with one part left out; forced: generates greedily and dumps logits; repeat: "
           "the same --runs times, bits compared");
  set->Add("device", &f->device, "CUDA device");
  set->Add("prompts", &f->prompts, "forced, repeat: prompt lengths, comma-separated");
  set->Add("steps", &f->steps, "decode steps");
  set->Add("runs", &f->runs, "repeat: how often");
  set->Add("chunk", &f->chunk, "prompt tokens a step");
  set->Add("batches", &f->batches, "bench: sequences decoded together, comma-separated");
  set->Add("contexts", &f->contexts, "bench: tokens before the first decode, comma-separated");
  set->Add("prefills", &f->prefills, "bench: prompt lengths, comma-separated");
  set->Add("prefill-chunk", &f->prefill_chunk, "bench: tokens a step of the prefills");
  set->Add("dump", &f->dump, "forced: file for tokens and logits");
  set->Add("block-tokens", &f->block_tokens, "tokens per KV block");
  set->Add("threads", &f->threads, "loading threads; 0 = all CPUs");
  set->Add("seed", &f->seed, "of the prompts");
  set->Add("batch-invariant", &f->invariant, "the batch-invariant mode");
  set->Add("graphs", &f->graphs, "capture decode steps");
  set->Add("warm-up", &f->warm_up, "capture the usual graphs first, as workers do");
  set->Add("pdl", &f->pdl, "programmatic dependent launch");
  set->Add("fuse-norm-rows", &f->fuse_norm_rows, "RMSNorm inside products of at most this many rows");
  set->Add("whole-step-rows", &f->whole_step_rows, "decode steps of at most so many rows run as one kernel; 0 = none");
  set->Add("prefetch-kib", &f->prefetch_kib, "weights brought to the L2 beside attention");
}

model::cuda::CudaOptions CudaOptionsOf(const Flags& f, bool keep_logits) {
  model::cuda::CudaOptions cuda;
  cuda.graphs = f.graphs && !keep_logits;
  cuda.pdl = f.pdl;
  cuda.warm_up = f.warm_up;
  cuda.fuse_norm_rows = f.fuse_norm_rows;
  cuda.whole_step_rows = f.whole_step_rows;
  cuda.prefetch_bytes = static_cast<size_t>(f.prefetch_kib) << 10;
  cuda.keep_logits = keep_logits;
  return cuda;
}

absl::StatusOr<std::unique_ptr<model::cuda::CudaModel>> Load(const Flags& f, bool keep_logits) {
  model::LoadOptions load;
  load.threads = f.threads;
  load.batch_invariant = f.invariant;
  const model::cuda::CudaOptions cuda = CudaOptionsOf(f, keep_logits);
  if (f.random.empty()) return model::cuda::CudaModel::Load(f.model, load, f.device, cuda);
  absl::StatusOr<model::ModelConfig> config = model::NamedShape(f.random);
  if (!config.ok()) return config.status();
  if (f.layers > 0) config->num_layers = static_cast<uint32_t>(f.layers);
  return model::cuda::CudaModel::Random(*config, load, f.device, cuda);
}

}  // namespace

int main(int argc, char** argv) {
  Flags f;
  base::FlagSet flags("agentserve-gpu-check", "Checks and times the GPU executor without services.");
  AddFlags(&flags, &f);
  if (const auto rc = flags.ParseOrExit(argc, argv)) return *rc;
  const base::MonotonicClock clock;
  const base::TimeNs began = clock.Now();
  absl::StatusOr<std::unique_ptr<model::cuda::CudaModel>> serving = Load(f, false);
  if (!serving.ok()) return Fail(serving.status(), base::kExitGpu);
  const model::cuda::UploadTimes& t = (*serving)->upload_times();
  std::printf("ready after %.3f s: allocate %.3f, copy %.3f (%.1f GB/s, %d threads), tables %.3f\n",
              base::ToMs(clock.Now() - began) / 1e3, t.allocate, t.copy,
              t.copy > 0 ? static_cast<double>(t.bytes) / 1e9 / t.copy : 0.0, t.threads, t.tables);
  absl::Status status;
  if (f.mode == "forced" || f.mode == "repeat") {
    absl::StatusOr<std::unique_ptr<model::cuda::CudaModel>> with_logits = Load(f, true);
    if (!with_logits.ok()) return Fail(with_logits.status(), base::kExitGpu);
    model::cuda::ForcedOptions o;
    o.prompts = Numbers(f.prompts);
    o.steps = static_cast<uint32_t>(f.steps);
    o.chunk = static_cast<uint32_t>(f.chunk);
    o.block_tokens = static_cast<uint32_t>(f.block_tokens);
    o.seed = static_cast<uint64_t>(f.seed);
    o.dump = f.dump;
    status = f.mode == "forced" ? model::cuda::RunForced(**with_logits, **serving, o)
                                : model::cuda::RunRepeated(**with_logits, **serving, o, static_cast<uint32_t>(f.runs));
  } else {
    model::cuda::BenchOptions o;
    o.batches = Numbers(f.batches);
    o.contexts = Numbers(f.contexts);
    o.prefills = Numbers(f.prefills);
    o.steps = static_cast<uint32_t>(f.steps);
    o.block_tokens = static_cast<uint32_t>(f.block_tokens);
    o.chunk = static_cast<uint32_t>(f.prefill_chunk);
    status = f.mode == "parts" ? model::cuda::RunParts(**serving, o, CudaOptionsOf(f, false))
                               : model::cuda::RunBench(**serving, o);
  }
  return status.ok() ? base::kExitOk : Fail(status, base::kExitFailure);
}
