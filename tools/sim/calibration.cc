// Calibrations: the file, and the built-in ones.
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/status_macros.h"
#include "base/strings.h"
#include "tools/sim/step_model.h"

namespace agentserve::sim {

using base::StrCat;
using nlohmann::json;

namespace {

constexpr int kFormat = 1;

Calibration FromJson(const json& d) {
  Calibration c;
  c.name = d.value("name", "");
  c.source = d.value("source", "");
  c.model = d.value("model", "");
  c.device = d.value("device", "");
  c.dtype = d.value("dtype", "");
  c.bytes_per_token = d.at("bytes_per_token").get<double>();
  c.kv_gib = d.value("kv_gib", c.kv_gib);
  c.max_batch = d.value("max_batch", c.max_batch);
  c.step_tokens = d.value("step_tokens", c.step_tokens);
  c.prefill_step_tokens = d.value("prefill_step_tokens", c.prefill_step_tokens);
  for (const json& p : d.at("decode")) c.decode.push_back({p.at("n"), p.at("context"), p.at("ms")});
  for (const json& p : d.at("prefill")) c.prefill.push_back({p.at("chunk"), p.value("prefix", 0.0), p.at("ms")});
  for (const json& p : d.value("mixed", json::array())) {
    c.mixed.push_back({p.at("n"), p.at("context"), p.at("chunk"), p.value("prefix", 0.0), p.at("ms")});
  }
  c.residual_sigma = d.value("residual_sigma", c.residual_sigma);
  c.step_fixed_ms = d.value("step_fixed_ms", c.step_fixed_ms);
  c.message_ms = d.value("message_ms", c.message_ms);
  c.client_ms = d.value("client_ms", c.client_ms);
  c.transfer_gb_per_s = d.value("transfer_gb_per_s", c.transfer_gb_per_s);
  c.transfer_fixed_ms = d.value("transfer_fixed_ms", c.transfer_fixed_ms);
  c.host_gb_per_s = d.value("host_gb_per_s", c.host_gb_per_s);
  return c;
}

absl::Status Check(const Calibration& c) {
  const auto bad = [](const std::string& what) { return absl::InvalidArgumentError(base::ToAbsl(what)); };
  for (const DecodePoint& p : c.decode) {
    if (!(p.n >= 1 && p.context >= 0 && p.ms > 0)) return bad("a decode point needs n >= 1, context >= 0 and ms > 0");
  }
  for (const PrefillPoint& p : c.prefill) {
    if (!(p.chunk >= 1 && p.prefix >= 0 && p.ms > 0)) return bad("a prefill point needs chunk >= 1 and ms > 0");
  }
  if (!(c.bytes_per_token > 0 && c.kv_gib > 0)) return bad("bytes_per_token and kv_gib must be above 0");
  if (c.max_batch < 1 || c.step_tokens < c.max_batch || c.prefill_step_tokens < 1) {
    return bad("max_batch must be at least 1 and at most step_tokens");
  }
  if (!(c.transfer_gb_per_s > 0 && c.host_gb_per_s > 0)) return bad("rates must be above 0");
  if (!(c.message_ms >= 0 && c.client_ms >= 0 && c.residual_sigma >= 0 && c.residual_sigma < 0.5)) {
    return bad("times must not be negative, residual_sigma must be below 0.5");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Calibration> ParseCalibration(const std::string& text) {
  try {
    const json d = json::parse(text);
    if (d.value("format", kFormat) != kFormat) {
      return absl::InvalidArgumentError(base::ToAbsl(StrCat("format must be ", kFormat)));
    }
    Calibration c = FromJson(d);
    AS_RETURN_IF_ERROR(Check(c));
    return c;
  } catch (const json::exception& e) {
    return absl::InvalidArgumentError(e.what());
  }
}

absl::StatusOr<Calibration> LoadCalibration(const std::string& file) {
  std::ifstream in(file);
  if (!in) {
    return absl::NotFoundError(base::ToAbsl(StrCat("cannot read the calibration ", file, ": ", strerror(errno),
                                                   "; write one with `agentserve bench calibrate`")));
  }
  std::stringstream text;
  text << in.rdbuf();
  absl::StatusOr<Calibration> c = ParseCalibration(text.str());
  if (c.ok()) return c;
  return absl::InvalidArgumentError(base::ToAbsl(StrCat(file, ": ", base::MessageOf(c.status()))));
}

std::string CalibrationJson(const Calibration& c) {
  json d = {{"format", kFormat},
            {"name", c.name},
            {"source", c.source},
            {"model", c.model},
            {"device", c.device},
            {"dtype", c.dtype},
            {"bytes_per_token", c.bytes_per_token},
            {"kv_gib", c.kv_gib},
            {"max_batch", c.max_batch},
            {"step_tokens", c.step_tokens},
            {"prefill_step_tokens", c.prefill_step_tokens},
            {"residual_sigma", c.residual_sigma},
            {"step_fixed_ms", c.step_fixed_ms},
            {"message_ms", c.message_ms},
            {"client_ms", c.client_ms},
            {"transfer_gb_per_s", c.transfer_gb_per_s},
            {"transfer_fixed_ms", c.transfer_fixed_ms},
            {"host_gb_per_s", c.host_gb_per_s}};
  d["decode"] = d["prefill"] = d["mixed"] = json::array();
  for (const DecodePoint& p : c.decode) d["decode"].push_back({{"n", p.n}, {"context", p.context}, {"ms", p.ms}});
  for (const PrefillPoint& p : c.prefill) {
    d["prefill"].push_back({{"chunk", p.chunk}, {"prefix", p.prefix}, {"ms", p.ms}});
  }
  for (const MixedPoint& p : c.mixed) {
    d["mixed"].push_back({{"n", p.n}, {"context", p.context}, {"chunk", p.chunk}, {"prefix", p.prefix}, {"ms", p.ms}});
  }
  return d.dump(1);
}

namespace {

// docs/benchmarks.md, NVIDIA H200, commit 8b1ca08. The 32 Ki prefill points are that document's hand-off table (the
// pace assumed there), not measured end to end. 107 and 103 GiB of KV are what 0.9 of 139 GiB leaves after weights and
// workspaces.
Calibration H200(bool small) {
  Calibration c;
  c.device = "NVIDIA H200";
  c.dtype = "bf16";
  c.model = small ? "Llama 3.2 1B shape" : "Llama 3.2 3B shape";
  c.name = small ? "h200-1b" : "h200-3b";
  c.source =
      "analytic: fit of measured steps in docs/benchmarks.md (H200, commit 8b1ca08); prefill of 32 Ki and mixed "
      "steps are assumed";
  c.bytes_per_token = small ? 32768 : 114688;
  c.kv_gib = small ? 107 : 103;
  c.max_batch = 256;
  c.step_tokens = 2048;
  if (small) {
    c.decode = {{1, 1024, 0.925}, {1, 8192, 0.980},  {1, 32768, 1.189},
                {8, 1024, 1.026}, {64, 1024, 1.560}, {256, 1024, 3.546}};
    c.prefill = {{1024, 0, 3.40}, {8192, 0, 32.67}, {32768, 0, 200}};
  } else {
    // The slope comes from the bytes: 112 KiB a token at 4.43 TB/s (decode attention, measured).
    c.decode = {{1, 1024, 2.170}, {1, 32768, 2.170 + 31744.0 * 114688 / 4.43e9}, {64, 1024, 4.083}, {256, 1024, 10.30}};
    c.prefill = {{1024, 0, 9.33}, {8192, 0, 89.1}, {32768, 0, 480}};
  }
  c.residual_sigma = 0.02;
  c.step_fixed_ms = 0.02;
  c.message_ms = 0.15;
  c.client_ms = 0.15;
  c.transfer_gb_per_s = 300;
  c.transfer_fixed_ms = 0.25;
  c.host_gb_per_s = 45;
  return c;
}

// The published comparison ran PyTorch on an A10G at 188 tokens/s with a batch of 4: 21 ms a step. That is its engine's
// pace, not the card's; only order matters there.
Calibration A10g() {
  Calibration c;
  c.name = "a10g-published";
  c.device = "NVIDIA A10G";
  c.model = "Llama 3.2 1B";
  c.dtype = "fp16";
  c.source = "assumed: step time chosen so that the published FIFO makespan (188 tokens/s at batch 4) comes out";
  c.bytes_per_token = 32768;
  c.kv_gib = 8;
  c.max_batch = 16;
  c.step_tokens = 2048;
  c.decode = {{1, 128, 20.0}, {1, 1024, 20.3}, {4, 128, 21.0}, {16, 128, 49.0}};
  c.prefill = {{128, 0, 20}, {1024, 0, 60}, {8192, 0, 500}};
  return c;
}

}  // namespace

absl::StatusOr<Calibration> BuiltinCalibration(const std::string& name) {
  if (name == "h200-1b") return H200(true);
  if (name == "h200-3b") return H200(false);
  if (name == "a10g-published") return A10g();
  return absl::NotFoundError(base::ToAbsl(
      StrCat("no built-in calibration \"", name, "\"; there are h200-1b, h200-3b and a10g-published, or name a file")));
}

}  // namespace agentserve::sim
