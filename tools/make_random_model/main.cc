// Writes a Hugging Face folder with random weights: real sizes without a download.
#include <cstdio>
#include <filesystem>

#include "base/flags.h"
#include "base/strings.h"
#include "model/random_model.h"

namespace agentserve {
namespace {

struct Config {
  std::string shape = "tiny", out, tokenizer, dtype = "bf16";
  int64_t seed = 1;
  int shards = 1;
};

int Fail(const std::string& message) {
  std::fprintf(stderr, "agentserve-make-random-model: %s\n", message.c_str());
  return base::kExitFailure;
}

// Copies the text files of `from` that a tokenizer may consist of.
absl::Status CopyTokenizer(const std::string& from, const std::string& to) {
  size_t copied = 0;
  for (const char* name : {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
                           "chat_template.jinja"}) {
    const std::string path = base::StrCat(from, "/", std::string_view(name));
    std::error_code error;
    if (!std::filesystem::exists(path, error)) continue;
    std::filesystem::copy_file(path, base::StrCat(to, "/", std::string_view(name)),
                               std::filesystem::copy_options::overwrite_existing, error);
    if (error) return absl::UnavailableError(base::StrCat(path, ": cannot copy: ", error.message()));
    ++copied;
  }
  if (copied == 0) return absl::NotFoundError(base::StrCat(from, ": no tokenizer.json or tokenizer.model there"));
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Config config;
  base::FlagSet flags("agentserve-make-random-model", "Writes a model folder with random weights.");
  flags.Add("shape", &config.shape, "1b, 3b or tiny");
  flags.Add("out", &config.out, "folder to write");
  flags.Add("seed", &config.seed, "seed of the weights");
  flags.Add("dtype", &config.dtype, "bf16, f16 or f32");
  flags.Add("shards", &config.shards, "number of weight files");
  flags.Add("tokenizer", &config.tokenizer, "folder whose tokenizer files are copied; empty = none");
  if (const auto rc = flags.ParseOrExit(argc, argv)) return *rc;
  if (config.out.empty()) return Fail("--out DIR is required");
  model::RandomModelOptions options;
  absl::StatusOr<model::ModelConfig> shape = model::NamedShape(config.shape);
  if (!shape.ok()) return Fail(base::MessageOf(shape.status()));
  options.config = *shape;
  options.seed = static_cast<uint64_t>(config.seed);
  if (config.shards < 1 || config.shards > 1000) return Fail("--shards must be 1 to 1000");
  options.shards = static_cast<uint32_t>(config.shards);
  if (config.dtype == "f16") {
    options.dtype = model::WeightDtype::kF16;
  } else if (config.dtype == "f32") {
    options.dtype = model::WeightDtype::kF32;
  } else if (config.dtype != "bf16") {
    return Fail(base::StrCat("--dtype=", config.dtype, ": expected bf16, f16 or f32"));
  }
  absl::Status status = model::WriteRandomModel(config.out, options);
  if (status.ok() && !config.tokenizer.empty()) status = CopyTokenizer(config.tokenizer, config.out);
  if (!status.ok()) return Fail(base::MessageOf(status));
  std::printf("%s: %s, %.2f billion parameters\n", config.out.c_str(), config.shape.c_str(),
              static_cast<double>(options.config.num_parameters()) / 1e9);
  return base::kExitOk;
}

}  // namespace
}  // namespace agentserve

int main(int argc, char** argv) { return agentserve::Main(argc, argv); }
