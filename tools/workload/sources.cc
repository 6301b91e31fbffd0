#include "tools/workload/sources.h"

#include <algorithm>

#include "base/status_macros.h"
#include "base/strings.h"

namespace agentserve::workload {
namespace {

using base::StrCat;

absl::StatusOr<Workload> OpenTrace(const SourceOptions& o) {
  const std::string dir = o.data_dir + "/traces/";
  if (o.name == "coding") return ImportCoding(dir + "weka-dev.jsonl.gz", o.coding);
  if (o.name == "mooncake") return ImportMooncake(dir + "mooncake-conversation.jsonl.gz", o.most_requests);
  if (o.name == "azure-code") return ImportAzure(dir + "azure2023-code.csv.gz", "code", o.most_requests);
  if (o.name == "azure-conv") return ImportAzure(dir + "azure2023-conv.csv.gz", "chat", o.most_requests);
  const std::string published = dir + "agentserve-trajectories.json";
  if (o.name == "published-trajectories") return ImportAgentServe(published, Burst::kTrajectories, o.characters);
  if (o.name == "published-ablation") return ImportAgentServe(published, Burst::kAblation);
  return absl::InvalidArgumentError(
      base::ToAbsl(StrCat("unknown workload \"", o.name, "\"; known are: ", WorkloadNames())));
}

absl::StatusOr<Workload> Open(const SourceOptions& o) {
  if (o.name.starts_with("rows:")) {
    Workload w;
    AS_RETURN_IF_ERROR(ReadRows(o.name.substr(5), &w));
    return w;
  }
  if (std::find(Shapes().begin(), Shapes().end(), o.name) != Shapes().end()) {
    GenerateOptions g = o.generate;
    g.shape = o.name;
    return Generate(g);
  }
  absl::StatusOr<Workload> w = OpenTrace(o);
  if (w.ok() || !absl::IsNotFound(w.status())) return w;
  return absl::NotFoundError(
      base::ToAbsl(StrCat(base::MessageOf(w.status()), "; name the folder that holds traces/ with --data")));
}

}  // namespace

absl::StatusOr<Workload> OpenWorkload(const SourceOptions& o) {
  if (!(o.in_scale > 0 && o.out_scale > 0)) return absl::InvalidArgumentError("scales must be above 0");
  AS_ASSIGN_OR_RETURN(Workload w, Open(o));
  if (o.in_scale != 1 || o.out_scale != 1) Scale(o.in_scale, o.out_scale, &w);
  if (o.forget_outputs) ForgetOutputs(&w);
  AS_RETURN_IF_ERROR(Validate(w));
  return w;
}

std::string WorkloadNames() {
  std::string names;
  for (const std::string& s : Shapes()) base::StrAppend(&names, s, ", ");
  return names + "coding, mooncake, azure-code, azure-conv, published-trajectories, published-ablation, rows:FILE";
}

}  // namespace agentserve::workload
