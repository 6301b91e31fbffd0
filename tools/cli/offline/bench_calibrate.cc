// `agentserve bench calibrate`: measures the model's steps and writes what `agentserve sim` reads.
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>

#include "absl/strings/numbers.h"
#include "base/flags.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "base/version.h"
#include "model/bench/calibrate.h"
#include "tools/cli/bench/bench_step.h"
#include "tools/cli/paths.h"
#include "tools/sim/step_model.h"

namespace agentserve::tools {
namespace {

using base::StrCat;

struct Config {
  model::BenchModel model;
  std::string name, out, batches, contexts, chunks, prefixes;
  int steps = 24, repeats = 5, max_batch = 0, step_tokens = 0, prefill_step_tokens = 0, block_tokens = 16;
  double kv_gib = 0, message_ms = 0.15, step_fixed_ms = 0.02, transfer_gb_per_s = 0, host_gb_per_s = 0;
};

absl::Status Bad(const std::string& what) { return absl::InvalidArgumentError(base::ToAbsl(what)); }

absl::StatusOr<std::vector<uint32_t>> ParseList(const char* flag, const std::string& text, uint32_t least) {
  std::vector<uint32_t> out;
  std::stringstream items(text);
  for (std::string item; std::getline(items, item, ',');) {
    uint32_t v = 0;
    if (!absl::SimpleAtoi(item, &v) || v < least || v > (1u << 20)) {
      return Bad(StrCat("--", flag, " is '", text.substr(0, 100), "'; numbers from ", least, " to ", 1 << 20,
                        " with commas between are expected"));
    }
    out.push_back(v);
  }
  if (out.empty()) return Bad(StrCat("--", flag, " must not be empty"));
  std::sort(out.begin(), out.end());
  return out;
}

void FillDefaults(Config* c) {
  const bool gpu = c->model.device != "cpu";
  const auto set = [](std::string* flag, const char* value) {
    if (flag->empty()) *flag = value;
  };
  set(&c->batches, gpu ? "1,2,4,8,16,32,64,128,256" : "1,4,16");
  set(&c->contexts, gpu ? "1024,4096,16384" : "128,512");
  set(&c->chunks, gpu ? "64,256,512,1024,2048,4096,8192" : "16,64,256");
  set(&c->prefixes, gpu ? "0,8192,32768" : "0,512");
  if (c->max_batch == 0) c->max_batch = gpu ? 256 : 64;
  if (c->step_tokens == 0) c->step_tokens = gpu ? 2048 : 512;
  if (c->prefill_step_tokens == 0) c->prefill_step_tokens = gpu ? 8192 : 512;
  if (c->transfer_gb_per_s == 0) c->transfer_gb_per_s = gpu ? 300 : 6;
  if (c->host_gb_per_s == 0) c->host_gb_per_s = gpu ? 45 : 6;
}

// Spread of the decode cases' single steps: a p95 lies 1.645 sigma above the median of a normal.
double Sigma(const std::vector<model::StepPoint>& decode) {
  double sum = 0;
  for (const model::StepPoint& p : decode) sum += std::max(0.0, p.p95 / p.ms - 1) / 1.645;
  return decode.empty() ? 0 : std::min(0.4, sum / static_cast<double>(decode.size()));
}

absl::StatusOr<sim::Calibration> Measure(const Config& c) {
  model::CalibrateOptions o;
  AS_ASSIGN_OR_RETURN(o.batches, ParseList("batches", c.batches, 1));
  AS_ASSIGN_OR_RETURN(o.contexts, ParseList("contexts", c.contexts, 2));
  AS_ASSIGN_OR_RETURN(o.chunks, ParseList("chunks", c.chunks, 1));
  AS_ASSIGN_OR_RETURN(o.prefixes, ParseList("prefixes", c.prefixes, 0));
  if (c.steps < 1 || c.repeats < 1 || c.block_tokens < 1)
    return Bad("--steps, --repeats and --block-tokens must be >= 1");
  o.steps = static_cast<uint32_t>(c.steps);
  o.repeats = static_cast<uint32_t>(c.repeats);
  o.block_tokens = static_cast<uint32_t>(c.block_tokens);
  o.say = [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); };
  model::BenchModel m = c.model;
  m.max_sequences = o.batches.back() + 1;
  m.max_step_tokens = o.chunks.back() + o.batches.back();
  AS_ASSIGN_OR_RETURN(const std::unique_ptr<model::Model> model, model::LoadBenchModel(m));
  AS_ASSIGN_OR_RETURN(const model::DeviceMemory memory, model->device_memory());
  AS_ASSIGN_OR_RETURN(const model::CalibrateFigures f, model::MeasureSteps(*model, o));
  for (const std::string& s : f.skipped) std::fprintf(stderr, "skipped %s\n", s.c_str());
  sim::Calibration k;
  k.model = m.shape.empty() ? m.dir : m.shape;
  k.device = m.device;
  k.name = c.name.empty() ? StrCat(m.device, "-", k.model.substr(k.model.rfind('/') + 1)) : c.name;
  k.source = StrCat("agentserve bench calibrate, commit ", base::Commit());
  const engine::KvLayout layout = model->layout(o.block_tokens);
  k.bytes_per_token = static_cast<double>(layout.BytesPerToken());
  k.kv_gib = c.kv_gib > 0 ? c.kv_gib : memory.on_gpu() ? static_cast<double>(memory.PoolBytes()) * 0.9 / (1 << 30) : 1;
  k.max_batch = static_cast<uint32_t>(c.max_batch);
  k.step_tokens = static_cast<uint32_t>(std::max(c.step_tokens, c.max_batch));
  k.prefill_step_tokens = static_cast<uint32_t>(c.prefill_step_tokens);
  for (const model::StepPoint& p : f.decode) k.decode.push_back({double(p.decodes), double(p.context), p.ms});
  for (const model::StepPoint& p : f.prefill) k.prefill.push_back({double(p.chunk), double(p.prefix), p.ms});
  for (const model::StepPoint& p : f.mixed) {
    k.mixed.push_back({double(p.decodes), double(p.context), double(p.chunk), double(p.prefix), p.ms});
  }
  k.residual_sigma = Sigma(f.decode);
  k.step_fixed_ms = c.step_fixed_ms;
  k.message_ms = k.client_ms = c.message_ms;
  k.transfer_gb_per_s = c.transfer_gb_per_s;
  k.host_gb_per_s = c.host_gb_per_s;
  return k;
}

absl::Status Run(Config c) {
  if (c.out.empty()) return Bad("--out FILE is needed");
  if (!c.model.dir.empty() && !c.model.shape.empty()) return Bad("--model and --shape exclude each other");
  if (c.model.dir.empty() && c.model.shape.empty()) {
    AS_ASSIGN_OR_RETURN(c.model.dir, FindBundledModel());
  }
  FillDefaults(&c);
  AS_ASSIGN_OR_RETURN(const sim::Calibration k, Measure(c));
  AS_ASSIGN_OR_RETURN(const sim::StepModel model, sim::StepModel::Make(k));
  const sim::StepModel::FitError e = model.fit_error();
  std::printf("%s: %zu decode, %zu prefill, %zu mixed points; the fit is off by at most %.1f %%, %.1f %%, %.1f %%\n",
              k.name.c_str(), k.decode.size(), k.prefill.size(), k.mixed.size(), 100 * e.decode, 100 * e.prefill,
              100 * e.mixed);
  std::ofstream out(c.out);
  out << sim::CalibrationJson(k) << "\n";
  out.close();
  if (out.good()) return absl::OkStatus();
  return absl::PermissionDeniedError(base::ToAbsl(StrCat("cannot write --out ", c.out, ": ", strerror(errno))));
}

}  // namespace

int RunBenchCalibrate(int argc, const char* const* argv) {
  Config c;
  base::FlagSet f("agentserve bench calibrate",
                  "Measures the model's steps and writes a calibration for agentserve sim.");
  f.Add("model", &c.model.dir, "Hugging Face folder of a Llama 3 model; none = the bundled one", "Model");
  f.Add("shape", &c.model.shape, "instead of --model, on a GPU: random weights of the shape 1b, 3b or tiny", "Model");
  f.Add("device", &c.model.device, "cpu, cuda or cuda:N", "Model");
  f.Add("threads", &c.model.threads, "CPU threads; 0 = one per core", "Model");
  f.Add("out", &c.out, "file to write", "Output");
  f.Add("name", &c.name, "name in reports; none = device and model", "Output");
  f.Add("batches", &c.batches, "decoding sequences; a list; none = by device", "Points");
  f.Add("contexts", &c.contexts, "their contexts; a list; none = by device", "Points");
  f.Add("chunks", &c.chunks, "prompt tokens of a step; a list; none = by device", "Points");
  f.Add("prefixes", &c.prefixes, "tokens before the chunk; a list; none = by device", "Points");
  f.Add("steps", &c.steps, "timed steps of a case with decodes", "Points");
  f.Add("repeats", &c.repeats, "timed runs of a chunk", "Points");
  f.Add("block-tokens", &c.block_tokens, "tokens of a KV block", "Points");
  f.Add("max-batch", &c.max_batch, "as the workers'; 0 = their default", "Worker");
  f.Add("step-tokens", &c.step_tokens, "as the decode workers'; 0 = their default", "Worker");
  f.Add("prefill-step-tokens", &c.prefill_step_tokens, "as the prefill workers'; 0 = their default", "Worker");
  f.Add("kv-gib", &c.kv_gib, "KV memory of a worker; 0 = 90 % of what is free on a GPU, 1 GiB on a CPU", "Worker");
  f.Add("message-ms", &c.message_ms, "one way between client, router and worker", "Worker");
  f.Add("step-fixed-ms", &c.step_fixed_ms, "of a step beside the model: planning and handing over", "Worker");
  f.Add("transfer-gb-per-s", &c.transfer_gb_per_s, "KV between workers; 0 = 300 on a GPU, 6 on a CPU (not measured)",
        "Worker");
  f.Add("host-gb-per-s", &c.host_gb_per_s, "KV to and from host memory; 0 = 45 on a GPU, 6 on a CPU (not measured)",
        "Worker");
  if (const auto rc = f.ParseOrExit(argc, argv)) return *rc;
  const absl::Status s = Run(std::move(c));
  if (s.ok()) return base::kExitOk;
  std::fprintf(stderr, "agentserve bench calibrate: %s\n", base::MessageOf(s).c_str());
  return absl::IsInvalidArgument(s) ? base::kExitConfig : base::kExitFailure;
}

}  // namespace agentserve::tools
