// How long things take, from a calibration file: a step of n decodes over S tokens of context and some prompt chunks,
// and copies of KV. Pure.
//
//   decode  = a(n) + b(n) S                                  a, b piecewise linear in n
//   mixed   = max(c0 + c1 rows, a(rows)) + b(n) S + c2 W     rows = n + chunk tokens, W = sum chunk (prefix + chunk /
//   2)
//
// S and W cost memory and arithmetic of attention, rows those of the products. The mixed form is an assumption; a
// calibration records measured mixed steps beside it, so that its error is known.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"

namespace agentserve::sim {

struct DecodePoint {
  double n = 1, context = 0, ms = 0;  // context: tokens of each sequence
};
struct PrefillPoint {
  double chunk = 0, prefix = 0, ms = 0;
};
struct MixedPoint {
  double n = 0, context = 0, chunk = 0, prefix = 0, ms = 0;
};

// What a calibration run wrote, see docs/scheduling_results.md for the file.
struct Calibration {
  std::string name;    // e.g. "h200-1b"
  std::string source;  // where the figures come from, for reports
  std::string model, device, dtype;
  double bytes_per_token = 32768;  // of KV
  double kv_gib = 8;               // memory of one worker's pool
  uint32_t max_batch = 64;
  uint32_t step_tokens = 512;           // of a decode worker
  uint32_t prefill_step_tokens = 8192;  // of a prefill worker
  std::vector<DecodePoint> decode;
  std::vector<PrefillPoint> prefill;
  std::vector<MixedPoint> mixed;
  double residual_sigma = 0;       // of one step's time, relative
  double step_fixed_ms = 0;        // beside the model: plan, launch, hand over
  double message_ms = 0.1;         // router <-> worker, one way
  double client_ms = 0.1;          // client <-> router, one way
  double transfer_gb_per_s = 100;  // KV between workers, shared by a reader's flows
  double transfer_fixed_ms = 0.2;
  double host_gb_per_s = 40;  // KV between device and host memory
};

absl::StatusOr<Calibration> ParseCalibration(const std::string& json_text);
absl::StatusOr<Calibration> LoadCalibration(const std::string& file);
std::string CalibrationJson(const Calibration& c);
// Built in: "h200-1b", "h200-3b" (fits of the figures in docs/benchmarks.md) and "a10g-1b" (rough, for the published
// comparison). NOT_FOUND names them.
absl::StatusOr<Calibration> BuiltinCalibration(const std::string& name);

struct StepWork {
  uint32_t decodes = 0;       // n
  uint64_t context = 0;       // S: tokens of all decoding sequences
  uint32_t chunk_tokens = 0;  // of prompts
  double attention = 0;       // W
};

class StepModel {
 public:
  // INVALID_ARGUMENT without usable points.
  static absl::StatusOr<StepModel> Make(const Calibration& c);

  double DecodeBaseMs(double n) const;     // a(n) + fixed
  double ContextMs(double n) const;        // b(n)
  double StepMs(const StepWork& w) const;  // fixed included
  // A whole prompt alone, in chunks.
  double PrefillMs(uint32_t tokens, uint32_t prefix, uint32_t step_tokens) const;
  double TransferMs(double bytes, uint32_t flows) const;
  double HostCopyMs(double bytes) const;
  const Calibration& calibration() const { return c_; }
  // Largest relative error of the fit on the calibration's own points, per kind.
  struct FitError {
    double decode = 0, prefill = 0, mixed = 0;
  };
  FitError fit_error() const;

 private:
  explicit StepModel(Calibration c) : c_(std::move(c)) {}
  absl::Status FitDecode();
  void FitPrefill();

  Calibration c_;
  struct Knot {
    double n, a, b;
  };
  std::vector<Knot> knots_;
  double c0_ = 0, c1_ = 0, c2_ = 0;
};

}  // namespace agentserve::sim
