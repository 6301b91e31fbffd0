#include "kernels/gemm/cublaslt.h"

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
#include <dlfcn.h>

#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "kernels/cuda/launch.h"

namespace agentserve::kernels::cuda {
namespace {

// The entry points we use, with the types of the header.
struct Library {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
  decltype(&cublasLtMatmulAlgoConfigGetAttribute) algorithm_get = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  bool loaded = false;
};

template <typename Function>
bool Find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

const Library& TheLibrary() {
  static const Library library = [] {
    Library found;
    void* so = dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL);
    if (so == nullptr) so = dlopen("/usr/local/cuda/lib64/libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL);
    if (so == nullptr) return found;
    found.loaded = Find(so, "cublasLtCreate", &found.create) && Find(so, "cublasLtMatmul", &found.matmul) &&
                   Find(so, "cublasLtMatmulAlgoGetHeuristic", &found.heuristic) &&
                   Find(so, "cublasLtMatmulAlgoConfigGetAttribute", &found.algorithm_get) &&
                   Find(so, "cublasLtMatmulDescCreate", &found.desc_create) &&
                   Find(so, "cublasLtMatmulDescSetAttribute", &found.desc_set) &&
                   Find(so, "cublasLtMatrixLayoutCreate", &found.layout_create) &&
                   Find(so, "cublasLtMatmulPreferenceCreate", &found.preference_create) &&
                   Find(so, "cublasLtMatmulPreferenceSetAttribute", &found.preference_set) &&
                   Find(so, "cublasLtMatmulPreferenceDestroy", &found.preference_destroy);
    return found;
  }();
  return library;
}

absl::Status Check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(std::string("cublasLt ") + what + ": status " + std::to_string(status));
}

// In the library's column-major terms our y is a [n][m] matrix with leading dimension n: op_t(W) [n][k] times x [k][m].
struct Plan {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
  cublasLtMatmulAlgo_t algorithm = {};
  size_t workspace_bytes = 0;
};

// Long sums for few outputs: the heuristic's first choice leaves half of the multiprocessors without work (256 x 2048
// x 8192: 21.5 us, the first that divides k 18.8).
bool PrefersSplits(const CublasLtGemmParams& p) { return p.m > 128 && p.m <= 256 && p.k >= 4 * p.n; }

constexpr int kMaxResults = 8;

const cublasLtMatmulHeuristicResult_t& Choose(const Library& lib, const CublasLtGemmParams& p,
                                              const cublasLtMatmulHeuristicResult_t* results, int found) {
  for (int i = 0; i < found && PrefersSplits(p); ++i) {
    int32_t splits = 1;
    size_t written = 0;
    const cublasStatus_t status =
        lib.algorithm_get(&results[i].algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits, sizeof(splits), &written);
    if (status == CUBLAS_STATUS_SUCCESS && splits > 1) return results[i];
  }
  return results[0];
}

absl::Status MakePlan(const Library& lib, cublasLtHandle_t handle, const CublasLtGemmParams& p, Plan* plan) {
  const auto m = static_cast<uint64_t>(p.m), n = static_cast<uint64_t>(p.n), k = static_cast<uint64_t>(p.k);
  const cublasOperation_t transposed = CUBLAS_OP_T;
  cublasLtMatmulPreference_t preference = nullptr;
  // No reduction through bf16 memory: partial sums stay fp32.
  const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  cublasLtMatmulHeuristicResult_t results[kMaxResults] = {};
  int found = 0;
  absl::Status status;
  auto step = [&](cublasStatus_t code, const char* what) {
    if (status.ok()) status = Check(code, what);
    return status.ok();
  };
  if (step(lib.desc_create(&plan->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "desc") &&
      step(lib.desc_set(plan->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)), "transa") &&
      step(lib.layout_create(&plan->w, CUDA_R_16BF, k, n, p.k), "layout") &&
      step(lib.layout_create(&plan->x, CUDA_R_16BF, k, m, p.k), "layout") &&
      step(lib.layout_create(&plan->y, CUDA_R_16BF, n, m, p.n), "layout") &&
      step(lib.preference_create(&preference), "preference") &&
      step(lib.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &p.workspace_bytes,
                              sizeof(p.workspace_bytes)),
           "preference") &&
      step(lib.preference_set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof(reductions)),
           "preference")) {
    step(lib.heuristic(handle, plan->desc, plan->w, plan->x, plan->y, plan->y, preference,
                       PrefersSplits(p) ? kMaxResults : 1, results, &found),
         "heuristic");
  }
  if (preference != nullptr) lib.preference_destroy(preference);
  if (status.ok() && found == 0) status = absl::UnimplementedError("cublasLt has no algorithm for this shape");
  const cublasLtMatmulHeuristicResult_t& result = Choose(lib, p, results, found);
  plan->algorithm = result.algo;
  plan->workspace_bytes = result.workspaceSize;
  return status;
}

constexpr int kMaxDevices = 16;
// 5 shapes a model times every row count up to 16384; beyond it new shapes are planned at every call.
constexpr size_t kMaxPlans = 5 * 16384;

struct State {
  std::mutex mutex;
  cublasLtHandle_t handles[kMaxDevices] = {};
  std::map<std::tuple<int, int, int, int, size_t>, Plan> plans;
};

State& TheState() {
  static State* state = new State;
  return *state;
}

absl::Status GetPlan(const Library& lib, const CublasLtGemmParams& p, cublasLtHandle_t* handle, Plan* plan) {
  int device = 0;
  if (absl::Status status = ToStatus(cudaGetDevice(&device), "cudaGetDevice"); !status.ok()) return status;
  if (device >= kMaxDevices) return absl::UnimplementedError("more than 16 devices");
  State& state = TheState();
  std::lock_guard lock(state.mutex);
  if (state.handles[device] == nullptr) {
    if (absl::Status status = Check(lib.create(&state.handles[device]), "create"); !status.ok()) return status;
  }
  *handle = state.handles[device];
  const auto key = std::make_tuple(device, p.m, p.n, p.k, p.workspace_bytes);
  if (auto known = state.plans.find(key); known != state.plans.end()) {
    *plan = known->second;
    return absl::OkStatus();
  }
  if (absl::Status status = MakePlan(lib, *handle, p, plan); !status.ok()) return status;
  if (state.plans.size() < kMaxPlans) state.plans.emplace(key, *plan);
  return absl::OkStatus();
}

}  // namespace

bool CublasLtAvailable() { return TheLibrary().loaded; }

absl::Status CublasLtGemm(const CublasLtGemmParams& params, cudaStream_t stream) {
  const Library& lib = TheLibrary();
  if (!lib.loaded) return absl::FailedPreconditionError("libcublasLt.so.13 was not found");
  cublasLtHandle_t handle = nullptr;
  Plan plan;
  if (absl::Status status = GetPlan(lib, params, &handle, &plan); !status.ok()) return status;
  const float one = 1, zero = 0;
  return Check(lib.matmul(handle, plan.desc, &one, params.w, plan.w, params.x, plan.x, &zero, params.y, plan.y,
                          params.y, plan.y, &plan.algorithm, params.workspace, plan.workspace_bytes, stream),
               "matmul");
}

}  // namespace agentserve::kernels::cuda

#else  // built without the library's header

namespace agentserve::kernels::cuda {
bool CublasLtAvailable() { return false; }
absl::Status CublasLtGemm(const CublasLtGemmParams&, cudaStream_t) {
  return absl::FailedPreconditionError("built without cublasLt.h");
}
}  // namespace agentserve::kernels::cuda

#endif
