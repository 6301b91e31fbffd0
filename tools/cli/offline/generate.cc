// `agentserve generate`: generation in this process, without services. The reference for what the services answer.
#include "model/generate.h"

#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/flags.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "model/model.h"
#include "text/detokenizer.h"
#include "text/model_card.h"
#include "text/stop_matcher.h"
#include "text/tokenizer.h"
#include "tools/cli/commands.h"
#include "tools/cli/offline/spec.h"
#include "tools/cli/paths.h"

namespace agentserve::tools {

using base::StrCat;
using nlohmann::json;

namespace {

struct GenerateConfig {
  std::string model, device = "cpu", prompt, prompt_file, chat, batch, system;
  int threads = 0, block_tokens = 16, chunk_tokens = 512;
  int max_tokens = 0, top_k = -1;
  double temperature = -1, top_p = -1, min_p = -1, repetition_penalty = -1;
  int64_t seed = -1;
  bool ignore_eos = false, json_output = false;
  std::vector<std::string> stop;
};

// Everything that a generation needs, loaded once.
struct Engine {
  std::unique_ptr<text::Tokenizer> tokenizer;
  text::ModelCard card;
  std::unique_ptr<model::Model> model;
};

const char* FinishName(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::kStop:
      return "stop";
    case engine::FinishReason::kLength:
      return "length";
    default:
      return "cancelled";
  }
}

void ShowLoad(const model::LoadProgress& p) {
  std::fprintf(stderr, "\r\x1b[2Kloading %.0f of %.0f MB, %.0f MB/s, %.0f s left",
               static_cast<double>(p.bytes_done) / 1e6, static_cast<double>(p.bytes_total) / 1e6,
               p.bytes_per_second / 1e6, p.eta_seconds);
  if (p.done()) std::fputs("\r\x1b[2K", stderr);
}

absl::StatusOr<Engine> LoadEngine(const GenerateConfig& c) {
  Engine e;
  AS_ASSIGN_OR_RETURN(e.card, text::LoadModelCard(c.model));
  AS_ASSIGN_OR_RETURN(e.tokenizer, text::Tokenizer::Load(c.model));
  model::LoadOptions options;
  options.device = c.device;
  options.threads = c.threads;
  if (isatty(STDERR_FILENO) == 1) options.progress = ShowLoad;
  AS_ASSIGN_OR_RETURN(e.model, model::LoadModel(c.model, options));
  return e;
}

json LogprobsJson(const engine::SampledToken& t) {
  json top = json::array();
  for (const engine::TokenLogprob& p : t.top) top.push_back({{"token", p.token}, {"logprob", p.logprob}});
  return {{"token", t.token}, {"logprob", t.logprob}, {"top", top}};
}

// Runs one specification. `show` gets text as it becomes final. Returns the result as JSON.
absl::StatusOr<json> RunOne(Engine* e, const GenerateConfig& c, const std::string& spec_json,
                            const std::function<void(const std::string&)>& show) {
  AS_ASSIGN_OR_RETURN(GenerateSpec spec, ParseGenerateSpec(spec_json, *e->tokenizer, e->card));
  model::GenerateOptions options;
  options.chunk_tokens = static_cast<uint32_t>(c.chunk_tokens);
  options.block_tokens = static_cast<uint32_t>(c.block_tokens);
  text::StreamingDetokenizer detokenizer(*e->tokenizer, true);
  text::StopMatcher stops(spec.stop, spec.include_stop);
  std::string answer, match;
  const auto take = [&](const std::string& piece) {
    const text::StopMatcher::Result r = stops.Feed(piece);
    answer += r.text;
    show(r.text);
    if (r.stopped) match = r.match;
    return !r.stopped;
  };
  const auto on_token = [&](const engine::SampledToken& t) { return take(detokenizer.Push(t.token)); };
  AS_ASSIGN_OR_RETURN(const model::GenerateResult result,
                      model::Generate(*e->model, spec.prompt, spec.sampling, options, on_token));
  if (match.empty()) {
    take(detokenizer.Finish());
    const std::string rest = match.empty() ? stops.Flush() : "";
    answer += rest;
    show(rest);
  }
  json ids = json::array(), logprobs = json::array();
  for (const engine::SampledToken& t : result.tokens) {
    ids.push_back(t.token);
    if (t.has_logprobs) logprobs.push_back(LogprobsJson(t));
  }
  json out = {{"text", answer},
              {"token_ids", ids},
              {"prompt_token_ids", spec.prompt},
              {"finish_reason", match.empty() ? FinishName(result.finish_reason) : "stop"},
              {"seed", spec.sampling.seed},
              {"prefill_seconds", result.prefill_seconds},
              {"decode_seconds", result.decode_seconds}};
  if (!match.empty()) out["stop_match"] = match;
  if (!logprobs.empty()) out["logprobs"] = logprobs;
  return out;
}

absl::StatusOr<std::string> ReadAll(const std::string& path) {
  std::ostringstream text;
  if (path == "-") {
    text << std::cin.rdbuf();
    return text.str();
  }
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError(StrCat("cannot read ", path));
  text << in.rdbuf();
  return text.str();
}

// The flags as a specification.
absl::StatusOr<std::string> SpecOfFlags(const GenerateConfig& c) {
  json spec = json::object();
  if (!c.chat.empty()) {
    spec["messages"] = json::array();
    if (!c.system.empty()) spec["messages"].push_back({{"role", "system"}, {"content", c.system}});
    spec["messages"].push_back({{"role", "user"}, {"content", c.chat}});
  } else if (!c.prompt_file.empty()) {
    AS_ASSIGN_OR_RETURN(const std::string text, ReadAll(c.prompt_file));
    spec["prompt"] = text;
  } else {
    spec["prompt"] = c.prompt;
  }
  if (c.temperature >= 0) spec["temperature"] = c.temperature;
  if (c.top_p >= 0) spec["top_p"] = c.top_p;
  if (c.min_p >= 0) spec["min_p"] = c.min_p;
  if (c.top_k >= 0) spec["top_k"] = c.top_k;
  if (c.repetition_penalty >= 0) spec["repetition_penalty"] = c.repetition_penalty;
  if (c.seed >= 0) spec["seed"] = c.seed;
  if (c.max_tokens > 0) spec["max_tokens"] = c.max_tokens;
  if (c.ignore_eos) spec["ignore_eos"] = true;
  if (!c.stop.empty()) spec["stop"] = c.stop;
  // Bytes that are no UTF-8 become U+FFFD, as the HTTP API does.
  return spec.dump(-1, ' ', false, json::error_handler_t::replace);
}

void PrintJson(const json& value) {
  std::printf("%s\n", value.dump(-1, ' ', false, json::error_handler_t::replace).c_str());
  std::fflush(stdout);
}

absl::Status RunBatch(Engine* e, const GenerateConfig& c) {
  AS_ASSIGN_OR_RETURN(const std::string text, ReadAll(c.batch));
  std::istringstream lines(text);
  size_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line.empty()) continue;
    auto out = RunOne(e, c, line, [](const std::string&) {});
    if (!out.ok()) {
      return absl::Status(out.status().code(),
                          base::ToAbsl(StrCat(c.batch, ":", number, ": ", base::MessageOf(out.status()))));
    }
    PrintJson(*out);
  }
  return absl::OkStatus();
}

absl::Status RunSingle(Engine* e, const GenerateConfig& c) {
  AS_ASSIGN_OR_RETURN(const std::string spec, SpecOfFlags(c));
  AS_ASSIGN_OR_RETURN(const json out, RunOne(e, c, spec, [&c](const std::string& text) {
                        if (c.json_output) return;
                        std::fputs(text.c_str(), stdout);
                        std::fflush(stdout);
                      }));
  if (c.json_output) {
    PrintJson(out);
    return absl::OkStatus();
  }
  std::printf("\n");
  const double decode_s = out["decode_seconds"].get<double>();
  const size_t tokens = out["token_ids"].size();
  std::fprintf(stderr, "(%zu tokens, %.0f ms to the first, %.1f tokens/s, %s)\n", tokens,
               1e3 * out["prefill_seconds"].get<double>(),
               decode_s > 0 && tokens > 1 ? static_cast<double>(tokens - 1) / decode_s : 0.0,
               out["finish_reason"].get<std::string>().c_str());
  return absl::OkStatus();
}

void AddFlags(GenerateConfig* c, base::FlagSet* flags) {
  flags->Add("model", &c->model, "Hugging Face folder of a Llama 3 model; none = the bundled tiny-agent", "Model");
  flags->Add("device", &c->device, "cpu or cuda", "Model");
  flags->Add("threads", &c->threads, "CPU threads; 0 = one per core", "Model");
  flags->Add("block-tokens", &c->block_tokens, "tokens per KV block; never changes the result", "Model");
  flags->Add("chunk-tokens", &c->chunk_tokens, "prompt tokens per step; never changes the result", "Model");
  flags->Add("prompt", &c->prompt, "text to continue", "Input (one of)");
  flags->Add("prompt-file", &c->prompt_file, "file with the text; - = standard input", "Input (one of)");
  flags->Add("chat", &c->chat, "a user message, put into the model's chat template", "Input (one of)");
  flags->Add("batch", &c->batch, "file of JSON lines, fields as in the HTTP API plus prompt_ids; - = standard input",
             "Input (one of)");
  flags->Add("system", &c->system, "system message for --chat", "Input (one of)");
  flags->Add("max-tokens", &c->max_tokens, "most tokens to generate; 0 = up to the context length", "Sampling");
  flags->Add("temperature", &c->temperature, "0 = greedy; below 0 = the model's default", "Sampling");
  flags->Add("top-p", &c->top_p, "nucleus mass; below 0 = the model's default", "Sampling");
  flags->Add("top-k", &c->top_k, "most likely tokens kept, 0 = all; below 0 = the model's default", "Sampling");
  flags->Add("min-p", &c->min_p, "least share of the best; below 0 = the model's default", "Sampling");
  flags->Add("repetition-penalty", &c->repetition_penalty, "below 0 = the model's default", "Sampling");
  flags->Add("seed", &c->seed, "seed; below 0 = drawn", "Sampling");
  flags->Add("stop", &c->stop, "stop string; may be repeated", "Sampling");
  flags->Add("ignore-eos", &c->ignore_eos, "do not end at the model's end tokens", "Sampling");
  flags->Add("json", &c->json_output, "print one JSON object with token ids", "Output");
}

absl::Status Validate(const GenerateConfig& c) {
  const int inputs = (c.prompt.empty() ? 0 : 1) + (c.prompt_file.empty() ? 0 : 1) + (c.chat.empty() ? 0 : 1) +
                     (c.batch.empty() ? 0 : 1);
  if (inputs != 1) return absl::InvalidArgumentError("give exactly one of --prompt, --prompt-file, --chat and --batch");
  if (c.block_tokens < 1 || c.block_tokens > 1024)
    return absl::InvalidArgumentError("--block-tokens must be 1 to 1024");
  if (c.chunk_tokens < 1 || c.chunk_tokens > 65536)
    return absl::InvalidArgumentError("--chunk-tokens must be 1 to 65536");
  if (c.threads < 0 || c.threads > 1024) return absl::InvalidArgumentError("--threads must be 0 to 1024");
  return absl::OkStatus();
}

int Complain(int code, const absl::Status& why) {
  std::fprintf(stderr, "agentserve generate: %s\n", base::MessageOf(why).c_str());
  return code;
}

}  // namespace

int RunGenerate(int argc, const char* const* argv) {
  GenerateConfig config;
  base::FlagSet flags("agentserve generate", "Generates text in this process, without services.");
  AddFlags(&config, &flags);
  if (const auto rc = flags.ParseOrExit(argc, argv)) return *rc;
  if (absl::Status s = Validate(config); !s.ok()) return Complain(base::kExitConfig, s);
  if (config.model.empty()) {
    auto bundled = FindBundledModel();
    if (!bundled.ok()) return Complain(base::kExitModel, bundled.status());
    config.model = *bundled;
  }
  auto engine = LoadEngine(config);
  if (!engine.ok()) return Complain(base::kExitModel, engine.status());
  const absl::Status s = config.batch.empty() ? RunSingle(&*engine, config) : RunBatch(&*engine, config);
  if (s.ok()) return base::kExitOk;
  return Complain(absl::IsInvalidArgument(s) ? base::kExitConfig : base::kExitFailure, s);
}

}  // namespace agentserve::tools
