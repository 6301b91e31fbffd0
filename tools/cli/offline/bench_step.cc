#include "tools/cli/bench/bench_step.h"

#include <cstdio>
#include <fstream>
#include <string>

#include "base/flags.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "model/bench/step_bench.h"
#include "model/model.h"
#include "tools/cli/paths.h"

namespace agentserve::tools {

namespace {

struct StepConfig {
  std::string model, device = "cpu", json_file;
  int prompt_tokens = 512, decode_tokens = 32, batch = 1, chunk_tokens = 512, threads = 0;
};

absl::Status Validate(const StepConfig& c) {
  const auto check = [](const char* flag, int value, int least, int most) {
    if (value >= least && value <= most) return absl::OkStatus();
    return absl::InvalidArgumentError(
        base::ToAbsl(base::StrCat("--", flag, " is ", value, "; it must be ", least, " to ", most)));
  };
  absl::Status s = check("prompt-tokens", c.prompt_tokens, 1, 1 << 20);
  s.Update(check("decode-tokens", c.decode_tokens, 1, 1 << 16));
  s.Update(check("batch", c.batch, 1, 4096));
  s.Update(check("chunk-tokens", c.chunk_tokens, 1, 1 << 16));
  s.Update(check("threads", c.threads, 0, 1024));
  return s;
}

absl::Status Run(const StepConfig& c, model::Model* model) {
  model::StepBenchOptions options;
  options.prompt_tokens = static_cast<uint32_t>(c.prompt_tokens);
  options.decode_tokens = static_cast<uint32_t>(c.decode_tokens);
  options.batch = static_cast<uint32_t>(c.batch);
  options.chunk_tokens = static_cast<uint32_t>(c.chunk_tokens);
  options.threads = c.threads;
  AS_ASSIGN_OR_RETURN(const model::StepBenchResult result, model::RunStepBench(*model, options));
  if (c.json_file == "-") {
    std::printf("%s\n", result.ToJson().c_str());
    return absl::OkStatus();
  }
  std::printf("%s\n", result.ToText().c_str());
  if (c.json_file.empty()) return absl::OkStatus();
  std::ofstream out(c.json_file);
  out << result.ToJson() << "\n";
  out.close();
  return out.good() ? absl::OkStatus()
                    : absl::PermissionDeniedError(base::ToAbsl("cannot write --json " + c.json_file));
}

}  // namespace

int RunBenchStep(int argc, const char* const* argv) {
  StepConfig config;
  base::FlagSet flags("agentserve bench step", "Runs the model alone: memory bandwidth, decode and prefill rates.");
  flags.Add("model", &config.model, "Hugging Face folder of a Llama 3 model; none = the bundled tiny-agent");
  flags.Add("device", &config.device, "cpu or cuda");
  flags.Add("prompt-tokens", &config.prompt_tokens, "prompt length");
  flags.Add("decode-tokens", &config.decode_tokens, "decode steps");
  flags.Add("batch", &config.batch, "sequences at once");
  flags.Add("chunk-tokens", &config.chunk_tokens, "prompt tokens per step");
  flags.Add("threads", &config.threads, "CPU threads; 0 = one per core");
  flags.Add("json", &config.json_file, "file that gets the figures as JSON; - = standard output");
  if (const auto rc = flags.ParseOrExit(argc, argv)) return *rc;
  const auto complain = [](int code, const absl::Status& why) {
    std::fprintf(stderr, "agentserve bench step: %s\n", base::MessageOf(why).c_str());
    return code;
  };
  if (absl::Status s = Validate(config); !s.ok()) return complain(base::kExitConfig, s);
  if (config.model.empty()) {
    auto bundled = FindBundledModel();
    if (!bundled.ok()) return complain(base::kExitModel, bundled.status());
    config.model = *bundled;
  }
  model::LoadOptions options;
  options.device = config.device;
  options.threads = config.threads;
  auto model = model::LoadModel(config.model, options);
  if (!model.ok()) return complain(base::kExitModel, model.status());
  const absl::Status s = Run(config, model->get());
  return s.ok() ? base::kExitOk : complain(base::kExitFailure, s);
}

}  // namespace agentserve::tools
