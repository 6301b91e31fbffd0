#include "kernels/gemm/skinny.h"
#include "kernels/gemm/skinny_args.h"

namespace agentserve::kernels::cuda {

bool SkinnyLmHeadSupports(const LmHeadParams& params) {
  return params.linear.epilogue == LinearEpilogue::kNone && SkinnyShapeFits(params.linear);
}

absl::Status SkinnyLmHead(const LmHeadParams& params, const LaunchContext& context) {
  const LinearParams& p = params.linear;
  if (!SkinnyLmHeadSupports(params)) return absl::InvalidArgumentError("skinny LM head: unsupported shape");
  if (p.workspace == nullptr || p.workspace_bytes < SkinnyWorkspaceBytes(p.m, p.n, p.k)) {
    return absl::InvalidArgumentError("skinny LM head: workspace too small");
  }
  SkinnyArgs args;
  args.p = p;
  args.tuning = DefaultSkinnyTuning(p);
  args.argmax = params.argmax;
  args.best = params.best;
  args.arrivals = static_cast<unsigned*>(p.workspace);
  args.partials = reinterpret_cast<SkinnyBest*>(static_cast<std::byte*>(p.workspace) + kWorkspaceZeroBytes);
  return LaunchSkinny(args, context);
}

}  // namespace agentserve::kernels::cuda
