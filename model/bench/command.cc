#include "model/bench/command.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <vector>

#include "absl/strings/numbers.h"
#include "base/flags.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "model/bench/calibrate.h"
#include "model/bench/ceilings.h"
#include "model/bench/step_bench.h"
#include "model/bench/sweep.h"
#include "model/model.h"
#include "model/random_model.h"
#ifdef AGENTSERVE_HAS_CUDA
#include "model/cuda/cuda_model.h"
#endif

namespace agentserve::model {
namespace {

using base::StrCat;

struct Config {
  std::string model, shape, device = "cpu", json_file;
  std::string batch = "1", context, prompt_tokens;
  int decode_tokens = 32, chunk_tokens = 512, repeats = 5, block_tokens = 16, threads = 0;
};

absl::Status Invalid(const std::string& text) { return absl::InvalidArgumentError(base::ToAbsl(text)); }

// "1,8,64"
absl::StatusOr<std::vector<uint32_t>> ParseList(const char* flag, const std::string& text, uint32_t most) {
  std::vector<uint32_t> out;
  size_t at = 0;
  while (at <= text.size()) {
    const size_t comma = std::min(text.find(',', at), text.size());
    uint32_t value = 0;
    if (!absl::SimpleAtoi(text.substr(at, comma - at), &value) || value < 1 || value > most) {
      return Invalid(StrCat("--", flag, " is '", text.substr(0, 100), "'; numbers from 1 to ", most,
                            " with commas between are expected"));
    }
    out.push_back(value);
    at = comma + 1;
  }
  return out;
}

absl::Status CheckRange(const char* flag, int value, int least, int most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return Invalid(StrCat("--", flag, " is ", value, "; it must be ", least, " to ", most));
}

absl::Status CheckCommon(const Config& c) {
  absl::Status s = CheckRange("decode-tokens", c.decode_tokens, 1, 1 << 16);
  s.Update(CheckRange("chunk-tokens", c.chunk_tokens, 1, 1 << 16));
  s.Update(CheckRange("repeats", c.repeats, 1, 1000));
  s.Update(CheckRange("block-tokens", c.block_tokens, 1, 1024));
  s.Update(CheckRange("threads", c.threads, 0, 1024));
  if (!c.model.empty() && !c.shape.empty()) s.Update(Invalid("--model and --shape exclude each other"));
  return s;
}

absl::StatusOr<std::unique_ptr<Model>> Load(const Config& c, uint32_t max_sequences) {
  return LoadBenchModel({c.model, c.shape, c.device, c.threads, max_sequences, static_cast<uint32_t>(c.chunk_tokens)});
}

absl::Status Emit(const Config& c, const std::string& text, const std::string& json) {
  if (c.json_file == "-") {
    std::printf("%s", json.c_str());
    return absl::OkStatus();
  }
  std::printf("%s", text.c_str());
  if (c.json_file.empty()) return absl::OkStatus();
  std::ofstream out(c.json_file);
  out << json;
  out.close();
  if (out.good()) return absl::OkStatus();
  return absl::PermissionDeniedError(base::ToAbsl(StrCat("cannot write --json ", c.json_file, ": ", strerror(errno))));
}

// One case on the CPU: prefill and decode of the same sequences.
absl::Status RunSingle(const Config& c, Model& model, uint32_t batch, uint32_t prompt) {
  StepBenchOptions options;
  options.prompt_tokens = prompt;
  options.decode_tokens = static_cast<uint32_t>(c.decode_tokens);
  options.batch = batch;
  options.chunk_tokens = static_cast<uint32_t>(c.chunk_tokens);
  options.threads = c.threads;
  AS_ASSIGN_OR_RETURN(const StepBenchResult result, RunStepBench(model, options));
  return Emit(c, result.ToText() + "\n", result.ToJson() + "\n");
}

absl::Status RunStep(const Config& c) {
  AS_RETURN_IF_ERROR(CheckCommon(c));
  SweepOptions options;
  AS_ASSIGN_OR_RETURN(options.batches, ParseList("batch", c.batch, 4096));
  AS_ASSIGN_OR_RETURN(options.prompts, ParseList("prompt-tokens", c.prompt_tokens, 1 << 20));
  const bool sweep = !c.context.empty() || options.batches.size() > 1 || c.device != "cpu";
  options.contexts = {512};
  if (!c.context.empty()) {
    AS_ASSIGN_OR_RETURN(options.contexts, ParseList("context", c.context, 1 << 20));
  }
  options.steps = static_cast<uint32_t>(c.decode_tokens);
  options.block_tokens = static_cast<uint32_t>(c.block_tokens);
  AS_ASSIGN_OR_RETURN(const std::unique_ptr<Model> model,
                      Load(c, *std::max_element(options.batches.begin(), options.batches.end())));
  if (!sweep) return RunSingle(c, *model, options.batches[0], options.prompts[0]);
  AS_ASSIGN_OR_RETURN(const Ceilings ceilings, MeasureCeilings(*model, c.threads));
  AS_ASSIGN_OR_RETURN(const auto figures, SweepDecode(*model, options));
  return Emit(c, ceilings.ToText() + DecodeTable(figures, ceilings),
              ceilings.ToJson() + "\n" + DecodeJson(figures, ceilings));
}

absl::Status RunPrefill(const Config& c) {
  AS_RETURN_IF_ERROR(CheckCommon(c));
  SweepOptions options;
  AS_ASSIGN_OR_RETURN(options.prompts, ParseList("prompt-tokens", c.prompt_tokens, 1 << 20));
  options.chunk_tokens = static_cast<uint32_t>(c.chunk_tokens);
  options.repeats = static_cast<uint32_t>(c.repeats);
  options.block_tokens = static_cast<uint32_t>(c.block_tokens);
  AS_ASSIGN_OR_RETURN(const std::unique_ptr<Model> model, Load(c, 1));
  AS_ASSIGN_OR_RETURN(const Ceilings ceilings, MeasureCeilings(*model, c.threads));
  AS_ASSIGN_OR_RETURN(const auto figures, SweepPrefill(*model, options));
  return Emit(c, ceilings.ToText() + PrefillTable(figures, ceilings),
              ceilings.ToJson() + "\n" + PrefillJson(figures, ceilings));
}

void AddCommonFlags(base::FlagSet* flags, Config* c) {
  flags->Add("model", &c->model, "Hugging Face folder of a Llama 3 model");
  flags->Add("shape", &c->shape, "instead of --model, on the GPU: random weights of the shape 1b, 3b or tiny");
  flags->Add("device", &c->device, "cpu, cuda, cuda:N or auto");
  flags->Add("block-tokens", &c->block_tokens, "tokens per KV block");
  flags->Add("threads", &c->threads, "CPU threads; 0 = one per core");
  flags->Add("json", &c->json_file, "file that gets the figures as JSON, one object a line; - = standard output");
}

int Finish(const absl::Status& s, const BenchProgram& program) {
  if (s.ok()) return base::kExitOk;
  std::fprintf(stderr, "%s: %s\n", program.name.c_str(), base::MessageOf(s).c_str());
  return absl::IsInvalidArgument(s) ? base::kExitConfig : base::kExitFailure;
}

// OK, or why there is no model.
absl::Status ChooseModel(const BenchProgram& program, Config* c) {
  if (!c->model.empty() || !c->shape.empty()) return absl::OkStatus();
  if (!program.default_model) return Invalid("--model DIR or --shape NAME is needed");
  AS_ASSIGN_OR_RETURN(c->model, program.default_model());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> LoadBenchModel(const BenchModel& c) {
  LoadOptions load;
  load.device = c.device;
  load.threads = c.threads;
  load.limits.max_sequences = std::max(load.limits.max_sequences, c.max_sequences);
  load.limits.max_step_tokens = std::max(load.limits.max_step_tokens, c.max_step_tokens);
  if (c.shape.empty()) return LoadModel(c.dir, load);
  AS_ASSIGN_OR_RETURN(const ModelConfig config, NamedShape(c.shape));
#ifdef AGENTSERVE_HAS_CUDA
  int ordinal = 0;
  if (c.device == "cuda" || (c.device.starts_with("cuda:") && absl::SimpleAtoi(c.device.substr(5), &ordinal))) {
    AS_ASSIGN_OR_RETURN(std::unique_ptr<cuda::CudaModel> model,
                        cuda::CudaModel::Random(config, load, ordinal, cuda::CudaOptions{}));
    return std::unique_ptr<Model>(std::move(model));
  }
#endif
#ifdef AGENTSERVE_HAS_CUDA
  constexpr const char* kBuilt = "has";
#else
  constexpr const char* kBuilt = "was built without";
#endif
  return Invalid(StrCat("--shape needs --device cuda (this program ", kBuilt,
                        " the GPU backend). On the CPU write a folder with agentserve-make-random-model"));
}

int RunStepCommand(int argc, const char* const* argv, const BenchProgram& program) {
  Config c;
  c.prompt_tokens = "512";
  base::FlagSet flags(program.name,
                      "Runs the model alone: decode steps, and what share of the memory's speed they use.");
  AddCommonFlags(&flags, &c);
  flags.Add("batch", &c.batch, "sequences at once; a list (1,8,64) makes a table");
  flags.Add("context", &c.context,
            "tokens of each sequence; a list makes a table. None on the CPU: see --prompt-tokens");
  flags.Add("decode-tokens", &c.decode_tokens, "decode steps per case");
  flags.Add("prompt-tokens", &c.prompt_tokens, "CPU without --context: prefill and decode of prompts of this length");
  flags.Add("chunk-tokens", &c.chunk_tokens, "prompt tokens per step");
  if (const auto rc = flags.ParseOrExit(argc, argv)) return *rc;
  absl::Status s = ChooseModel(program, &c);
  if (s.ok()) s = RunStep(c);
  return Finish(s, program);
}

int RunPrefillCommand(int argc, const char* const* argv, const BenchProgram& program) {
  Config c;
  c.prompt_tokens = "1024,8192";
  c.chunk_tokens = 8192;
  base::FlagSet flags(program.name, "Runs prompts alone, from the first launch to the first token on the host.");
  AddCommonFlags(&flags, &c);
  flags.Add("prompt-tokens", &c.prompt_tokens, "prompt lengths, a list");
  flags.Add("chunk-tokens", &c.chunk_tokens, "prompt tokens per step");
  flags.Add("repeats", &c.repeats, "runs of each prompt");
  if (const auto rc = flags.ParseOrExit(argc, argv)) return *rc;
  absl::Status s = ChooseModel(program, &c);
  if (s.ok()) s = RunPrefill(c);
  return Finish(s, program);
}

}  // namespace agentserve::model
