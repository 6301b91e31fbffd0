// Core values <-> wire messages of the worker links.
#pragma once

#include "agentserve/decode/v1/decode.pb.h"
#include "agentserve/prefill/v1/prefill.pb.h"
#include "agentserve/router/v1/cluster.pb.h"
#include "router/core/types.h"

namespace agentserve::router {

void FillSampling(const engine::SamplingParams& p, common::v1::SamplingParams* out);
// The command as each kind of worker hears it. `peer` only for kConnectPeer.
void FillCommand(const Command& c, prefill::v1::RunRequest* out);
void FillCommand(const Command& c, const common::v1::KvEndpoint* peer, decode::v1::RunRequest* out);

WorkerInfo ToWorkerInfo(const v1::RegisterRequest& req);
WorkerLoad ToLoad(const common::v1::WorkerLoad& load);
void FillLoad(const WorkerLoad& load, common::v1::WorkerLoad* out);
void FillTimeline(const Timeline& t, common::v1::Timeline* out);
FinishReason ToFinish(common::v1::FinishReason r);
FailKind ToFailKind(const std::string& reason);
std::vector<StepToken> ToStepTokens(decode::v1::StepResult* step);

}  // namespace agentserve::router
