// Times steps of a model folder; see step_bench.h.
#include <cstdio>

#include "base/flags.h"
#include "base/strings.h"
#include "model/bench/step_bench.h"

namespace {

int Fail(const absl::Status& status, int code) {
  std::fprintf(stderr, "agentserve-bench-step: %s\n", agentserve::base::MessageOf(status).c_str());
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace agentserve;
  std::string dir, device = "cpu";
  int prompt = 512, decode = 32, batch = 1, chunk = 512, threads = 0;
  bool json = false;
  base::FlagSet flags("agentserve-bench-step", "Times prefill and decode steps of a model folder.");
  flags.Add("model", &dir, "Hugging Face model folder");
  flags.Add("device", &device, "cpu, cuda, cuda:N or auto");
  flags.Add("prompt-tokens", &prompt, "prompt length of each sequence");
  flags.Add("decode-tokens", &decode, "decode steps");
  flags.Add("batch", &batch, "sequences decoded together");
  flags.Add("chunk-tokens", &chunk, "prompt tokens a step");
  flags.Add("threads", &threads, "compute threads; 0 = all CPUs");
  flags.Add("json", &json, "print one JSON object");
  if (const auto rc = flags.ParseOrExit(argc, argv)) return *rc;
  if (prompt < 1 || decode < 1 || batch < 1 || chunk < 1) {
    return Fail(absl::InvalidArgumentError("counts must be at least 1"), base::kExitConfig);
  }
  model::LoadOptions load;
  load.device = device;
  load.threads = threads;
  load.progress = [](const model::LoadProgress& p) {
    std::fprintf(stderr, "loading %5.1f %%  %.2f GB/s  %.1f s left\n",
                 100.0 * static_cast<double>(p.bytes_done) / static_cast<double>(p.bytes_total),
                 p.bytes_per_second / 1e9, p.eta_seconds);
  };
  absl::StatusOr<std::unique_ptr<model::Model>> loaded = model::LoadModel(dir, load);
  if (!loaded.ok()) return Fail(loaded.status(), base::kExitModel);
  model::StepBenchOptions o;
  o.prompt_tokens = static_cast<uint32_t>(prompt);
  o.decode_tokens = static_cast<uint32_t>(decode);
  o.batch = static_cast<uint32_t>(batch);
  o.chunk_tokens = static_cast<uint32_t>(chunk);
  o.threads = threads;
  absl::StatusOr<model::StepBenchResult> result = model::RunStepBench(**loaded, o);
  if (!result.ok()) return Fail(result.status(), base::kExitFailure);
  std::printf("%s\n", json ? result->ToJson().c_str() : result->ToText().c_str());
  return base::kExitOk;
}
