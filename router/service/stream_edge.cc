#include "router/service/stream_edge.h"

#include <algorithm>

#include "router/service/convert.h"
#include "router/service/errors.h"
#include "router/service/explain.h"

namespace agentserve::router {
namespace {

common::v1::FinishReason ToProto(FinishReason r) {
  switch (r) {
    case FinishReason::kStop:
      return common::v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return common::v1::FINISH_REASON_LENGTH;
    case FinishReason::kCancelled:
      return common::v1::FINISH_REASON_CANCELLED;
    case FinishReason::kNone:
      break;
  }
  return common::v1::FINISH_REASON_UNSPECIFIED;
}

}  // namespace

StreamEdge::StreamEdge(const EdgeModel& model, StreamOptions options, std::shared_ptr<ReplyStream> stream)
    : model_(model), options_(std::move(options)), stream_(std::move(stream)), seqs_(options_.n) {
  for (Seq& s : seqs_) {
    s.detokenizer.emplace(*model_.tokenizer, /*skip_special=*/!options_.keep_special);
    if (!options_.stop.empty()) s.matcher = std::make_unique<text::StopMatcher>(options_.stop, options_.include_stop);
  }
}

bool StreamEdge::SendAccepted() {
  if (accepted_sent_) return true;
  accepted_sent_ = true;
  v1::GenerateResponse e;
  e.mutable_accepted()->set_request_id(options_.request_id);
  e.mutable_accepted()->set_prompt_tokens(options_.prompt_tokens);
  e.mutable_accepted()->set_seed(options_.seed);
  e.mutable_accepted()->set_program_id(options_.program_id);
  e.mutable_accepted()->set_identity(ToProto(options_.identity));
  return stream_->Write(std::move(e));
}

// The text of a token that ended the sequence is not part of the answer, unless asked for.
bool StreamEdge::HidesText(const TokenOut& t) const {
  if (t.finish != FinishReason::kStop || options_.include_stop || options_.keep_special) return false;
  const auto& ids = options_.stop_token_ids;
  const auto& eos = model_.card.eos_token_ids;
  return std::find(ids.begin(), ids.end(), t.token) != ids.end() ||
         std::find(eos.begin(), eos.end(), t.token) != eos.end();
}

void StreamEdge::AddLogprobs(const TokenOut& t, v1::Delta* delta) const {
  const auto* box = dynamic_cast<const LogprobsBox*>(t.logprobs.get());
  if (box == nullptr) return;
  *delta->add_logprobs() = box->value;
  delta->add_logprob_texts(std::string(model_.tokenizer->TokenBytes(t.token)));
  for (const auto& top : box->value.top()) {
    delta->add_logprob_texts(std::string(model_.tokenizer->TokenBytes(top.token_id())));
  }
}

StreamEdge::After StreamEdge::OnToken(const TokenOut& t) {
  Seq& s = seqs_[t.index];
  if (s.stopped) return After::kGoOn;
  ++s.tokens;
  v1::GenerateResponse e;
  v1::Delta* delta = e.mutable_delta();
  delta->set_index(t.index);
  if (!HidesText(t)) {
    std::string piece = s.detokenizer->Push(t.token);
    if (s.matcher == nullptr) {
      *delta->mutable_text() = std::move(piece);
    } else if (!piece.empty()) {
      text::StopMatcher::Result r = s.matcher->Feed(piece);
      *delta->mutable_text() = std::move(r.text);
      if (r.stopped) {
        s.stopped = true;
        s.match = std::move(r.match);
      }
    }
  }
  if (options_.return_token_ids) delta->add_token_ids(t.token);
  if (options_.logprobs && t.logprobs != nullptr) AddLogprobs(t, delta);
  bool keeps_up = SendAccepted();
  const bool silent = delta->text().empty() && delta->token_ids().empty() && delta->logprobs().empty();
  if (!silent) keeps_up = stream_->Write(std::move(e)) && keeps_up;
  if (!keeps_up) return After::kSlowReader;
  return s.stopped ? After::kStopped : After::kGoOn;
}

bool StreamEdge::OnSequenceEnd(const SequenceDone& done) {
  Seq& s = seqs_[done.index];
  bool keeps_up = SendAccepted();
  if (!s.stopped) {
    std::string rest = s.detokenizer->Finish();
    if (s.matcher != nullptr) {
      text::StopMatcher::Result r = s.matcher->Feed(rest);
      rest = std::move(r.text);
      if (r.stopped) {
        s.stopped = true;
        s.match = std::move(r.match);
      }
      rest += s.matcher->Flush();
    }
    if (!rest.empty()) {
      v1::GenerateResponse e;
      e.mutable_delta()->set_index(done.index);
      e.mutable_delta()->set_text(std::move(rest));
      keeps_up = stream_->Write(std::move(e)) && keeps_up;
    }
  }
  v1::GenerateResponse e;
  v1::SequenceEnd* end = e.mutable_sequence_end();
  end->set_index(done.index);
  end->set_completion_tokens(s.tokens);
  if (s.stopped) {
    end->set_reason(common::v1::FINISH_REASON_STOP);
    end->set_stop_match(s.match);
  } else {
    end->set_reason(ToProto(done.reason));
    if (done.reason == FinishReason::kStop) {
      // Names of special tokens are ASCII; bytes of ordinary ones may be a part of a character.
      end->set_stop_match(model_.tokenizer->Decode(std::vector<uint32_t>{done.last_token}, /*skip_special=*/false));
    }
  }
  return stream_->Write(std::move(e)) && keeps_up;
}

uint32_t StreamEdge::total_completion_tokens() const {
  uint32_t sum = 0;
  for (const Seq& s : seqs_) sum += s.tokens;
  return sum;
}

void StreamEdge::OnRequestEnd(const RequestDone& done) {
  if (done.reason != EndReason::kDone) {
    stream_->End(ToGrpc(FromCore(done.reason, done.message, done.retry_after)));
    return;
  }
  SendAccepted();
  v1::GenerateResponse e;
  v1::Done* d = e.mutable_done();
  d->set_prompt_tokens(options_.prompt_tokens);
  d->set_completion_tokens(total_completion_tokens());
  d->set_cached_tokens(done.cached_tokens);
  FillTimeline(done.timeline, d->mutable_timeline());
  stream_->Write(std::move(e));
  stream_->End(grpc::Status::OK);
}

}  // namespace agentserve::router
