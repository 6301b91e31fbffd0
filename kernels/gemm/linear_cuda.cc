#include "kernels/gemm/linear_cuda.h"

#include <algorithm>

#include "kernels/gemm/cublaslt.h"
#include "kernels/gemm/linear_elementwise.h"
#include "kernels/gemm/linear_plan.h"
#include "kernels/gemm/skinny.h"
#include "kernels/gemm/tile_gemm.h"
#include "kernels/rmsnorm/rmsnorm_cuda.h"

namespace agentserve::kernels::cuda {
namespace {

constexpr size_t kAlignment = 256;
// Products that wait for a separate epilogue: larger calls run in chunks of rows.
constexpr size_t kMaxProductBytes = size_t{256} << 20;

constexpr int kMaxDecodeRows = 512;  // beyond, the epilogues of tiles win

size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
size_t Bytes(int rows, int columns) { return static_cast<size_t>(rows) * static_cast<size_t>(columns) * 2; }

// The workspace past its zero bytes, as the cublasLt path uses it: normed rows | library scratch | product.
struct Scratch {
  __nv_bfloat16* normed = nullptr;
  std::byte* library = nullptr;
  __nv_bfloat16* product = nullptr;
  size_t product_bytes = 0;
};

size_t NormedBytes(int k) { return Aligned(Bytes(kMaxFusedNormRows, k)); }

absl::Status Carve(const LinearParams& params, Scratch* scratch) {
  const size_t fixed = kWorkspaceZeroBytes + NormedBytes(params.k) + kCublasLtWorkspaceBytes;
  if (params.workspace == nullptr || params.workspace_bytes < fixed) {
    return absl::InvalidArgumentError("Linear: workspace smaller than LinearWorkspaceBytes");
  }
  std::byte* next = static_cast<std::byte*>(params.workspace) + kWorkspaceZeroBytes;
  scratch->normed = reinterpret_cast<__nv_bfloat16*>(next);
  scratch->library = next + NormedBytes(params.k);
  scratch->product = reinterpret_cast<__nv_bfloat16*>(scratch->library + kCublasLtWorkspaceBytes);
  scratch->product_bytes = std::min(params.workspace_bytes - fixed, kMaxProductBytes);
  return absl::OkStatus();
}

absl::Status Validate(const LinearParams& p) {
  if (p.m < 1 || p.n < 16 || p.n % 16 != 0 || p.k < 64 || p.k % 64 != 0) {
    return absl::InvalidArgumentError("Linear: m >= 1, n a multiple of 16 and k a multiple of 64 are required");
  }
  if (p.norm_weight != nullptr && p.m > kMaxFusedNormRows) {
    return absl::FailedPreconditionError("Linear: too many rows for a fused norm");
  }
  if (p.epilogue == LinearEpilogue::kQkv) {
    const int heads = p.qkv.q_heads + 2 * static_cast<int>(p.qkv.kv.kv_heads);
    if (p.n != heads * static_cast<int>(p.qkv.kv.head_dim) || p.qkv.kv.head_dim % 16 != 0) {
      return absl::InvalidArgumentError("Linear: n is not (q heads + 2 kv heads) * head_dim");
    }
  }
  return absl::OkStatus();
}

// Replaces x by its normed rows if a norm is asked for.
absl::Status NormFirst(LinearParams* params, const Scratch& scratch, const LaunchContext& context) {
  if (params->norm_weight == nullptr) return absl::OkStatus();
  RmsNormParams norm;
  norm.x = params->x;
  norm.weight = params->norm_weight;
  norm.y = scratch.normed;
  norm.rows = params->m;
  norm.n = params->k;
  norm.eps = params->norm_eps;
  norm.invariant = params->mode == LinearMode::kInvariant;
  absl::Status status = RmsNorm(norm, context);
  params->x = scratch.normed;
  params->norm_weight = nullptr;
  return status;
}

// The plain product: by cublasLt, or by tiles where the library is missing or the bits of a row must be its own.
absl::Status Product(const CublasLtGemmParams& gemm, LinearMode mode, const LaunchContext& context) {
  if (mode == LinearMode::kFast && CublasLtAvailable()) return CublasLtGemm(gemm, context.stream);
  LinearParams tile;
  tile.x = gemm.x;
  tile.w = gemm.w;
  tile.y = gemm.y;
  tile.m = gemm.m;
  tile.n = gemm.n;
  tile.k = gemm.k;
  return TileLinear(tile, *PlanTile(tile, context), context);
}

// x w^T in chunks of rows, `after(product, first_row, rows)` on each. With a null `direct` the chunks go
// through scratch.
template <typename After>
absl::Status ProductByChunks(const LinearParams& params, const Scratch& scratch, __nv_bfloat16* direct,
                             const LaunchContext& context, After after) {
  const size_t n = static_cast<size_t>(params.n), k = static_cast<size_t>(params.k);
  int chunk = params.m;
  if (direct == nullptr) chunk = static_cast<int>(std::min<size_t>(params.m, scratch.product_bytes / (n * 2)));
  if (chunk < 1) return absl::InvalidArgumentError("Linear: workspace smaller than LinearWorkspaceBytes");
  for (int row = 0; row < params.m; row += chunk) {
    CublasLtGemmParams gemm;
    gemm.x = params.x + static_cast<size_t>(row) * k;
    gemm.w = params.w;
    gemm.y = direct != nullptr ? direct + static_cast<size_t>(row) * n : scratch.product;
    gemm.m = std::min(chunk, params.m - row);
    gemm.n = params.n;
    gemm.k = params.k;
    gemm.workspace = scratch.library;
    gemm.workspace_bytes = kCublasLtWorkspaceBytes;
    if (absl::Status status = Product(gemm, params.mode, context); !status.ok()) return status;
    if (absl::Status status = after(gemm.y, row, gemm.m); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status LibraryLinear(LinearParams params, const LaunchContext& context) {
  Scratch scratch;
  if (absl::Status status = Carve(params, &scratch); !status.ok()) return status;
  if (absl::Status status = NormFirst(&params, scratch, context); !status.ok()) return status;
  const bool plain = params.epilogue == LinearEpilogue::kNone;
  return ProductByChunks(params, scratch, plain ? params.y : nullptr, context,
                         [&](const __nv_bfloat16* product, int first, int rows) {
                           return plain ? absl::OkStatus() : ApplyEpilogue(params, product, first, rows, context);
                         });
}

size_t LinearWorkspaceBytes(int max_m, int max_n, int max_k) {
  const size_t product = std::min(Bytes(max_m, max_n), std::max(kMaxProductBytes, Bytes(1, max_n)));
  const size_t mine = kWorkspaceZeroBytes + NormedBytes(max_k) + kCublasLtWorkspaceBytes +
                      Aligned(std::max(product, MaxPartialBytes(max_m, max_n)));
  return std::max(mine, SkinnyWorkspaceBytes(max_m, max_n, max_k));
}

absl::Status Linear(const LinearParams& params, const LaunchContext& context) {
  if (params.m == 0) return absl::OkStatus();
  if (absl::Status status = Validate(params); !status.ok()) return status;
  const LinearPlan plan = PlanLinear(params, context);
  switch (plan.family) {
    case LinearFamily::kSkinny:
      return SkinnyLinear(params, context);
    case LinearFamily::kTile: {
      LinearParams normed = params;
      if (params.norm_weight != nullptr) {
        Scratch scratch;
        if (absl::Status status = Carve(params, &scratch); !status.ok()) return status;
        if (absl::Status status = NormFirst(&normed, scratch, context); !status.ok()) return status;
      }
      return TileLinear(normed, plan.tile, context);
    }
    case LinearFamily::kParts:
      return absl::InternalError("parts without a norm that adds them up");
    case LinearFamily::kLibrary:
      return LibraryLinear(params, context);
  }
  return absl::InternalError("unknown family");
}

namespace {

// The product into scratch, for a norm that adds it to the residual: whole by cublasLt, or in parts.
absl::Status ProductForNorm(const LinearParams& p, const LinearPlan& plan, const LaunchContext& context,
                            RmsNormParams* norm) {
  Scratch scratch;
  if (absl::Status status = Carve(p, &scratch); !status.ok()) return status;
  norm->x = p.residual;
  norm->sum = p.y;
  const bool parts = plan.family == LinearFamily::kParts;
  const size_t bytes = parts ? PartialBytes(p.m, p.n, plan.tile.splits) : Bytes(p.m, p.n);
  if (bytes > scratch.product_bytes) return absl::InvalidArgumentError("Linear: workspace smaller than needed");
  if (parts) {
    float* partials = reinterpret_cast<float*>(scratch.product);
    norm->partials = partials;
    norm->splits = plan.tile.splits;
    return TilePartials(p, plan.tile, partials, context);
  }
  norm->delta = scratch.product;
  LinearParams product = p;
  product.epilogue = LinearEpilogue::kNone;
  product.y = scratch.product;
  return LibraryLinear(product, context);
}

}  // namespace

absl::Status LinearResidualNorm(const ResidualNormParams& params, const LaunchContext& context) {
  const LinearParams& p = params.linear;
  if (p.m == 0) return absl::OkStatus();
  if (absl::Status status = Validate(p); !status.ok()) return status;
  if (p.epilogue != LinearEpilogue::kResidual || p.norm_weight != nullptr) {
    return absl::InvalidArgumentError("LinearResidualNorm: epilogue is not kResidual, or there is a norm before");
  }
  RmsNormParams norm;
  norm.x = p.y;
  norm.weight = params.norm_weight;
  norm.y = params.normed;
  norm.rows = p.m;
  norm.n = p.n;
  norm.eps = params.norm_eps;
  norm.invariant = p.mode == LinearMode::kInvariant;
  const LinearPlan plan = PlanLinear(p, context, true);
  const bool in_norm =
      plan.family == LinearFamily::kParts || (plan.family == LinearFamily::kLibrary && p.m <= kMaxDecodeRows);
  const absl::Status status = in_norm ? ProductForNorm(p, plan, context, &norm) : Linear(p, context);
  return status.ok() ? RmsNorm(norm, context) : status;
}

const char* LinearPlanName(const LinearParams& params, const LaunchContext& context) {
  return PlanName(params, PlanLinear(params, context));
}

absl::Status LmHead(const LmHeadParams& params, const LaunchContext& context) {
  LinearParams linear = params.linear;
  if (linear.m == 0) return absl::OkStatus();
  if (absl::Status status = Validate(linear); !status.ok()) return status;
  if (linear.mode == LinearMode::kFast && SkinnyLmHeadSupports(params)) return SkinnyLmHead(params, context);
  Scratch scratch;
  if (absl::Status status = Carve(linear, &scratch); !status.ok()) return status;
  if (absl::Status status = NormFirst(&linear, scratch, context); !status.ok()) return status;
  if (const auto shape = PlanLmHead(linear);
      shape.has_value() && (params.argmax != nullptr || params.best != nullptr)) {
    Best* strips = reinterpret_cast<Best*>(scratch.product);
    if (absl::Status status = TileBest(linear, *shape, strips, context); !status.ok()) return status;
    return ArgmaxStrips(strips, linear.m, TileBestSlots(linear.n, *shape), linear.n, params.argmax, params.best,
                        context);
  }
  return ProductByChunks(linear, scratch, linear.y, context, [&](const __nv_bfloat16* logits, int first, int rows) {
    if (params.argmax == nullptr && params.best == nullptr) return absl::OkStatus();
    return ArgmaxRows(logits, rows, linear.n, params.argmax == nullptr ? nullptr : params.argmax + first,
                      params.best == nullptr ? nullptr : params.best + first, context);
  });
}

}  // namespace agentserve::kernels::cuda
