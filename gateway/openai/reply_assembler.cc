#include "gateway/openai/reply_assembler.h"

#include "base/check.h"
#include "base/strings.h"
#include "gateway/json_util.h"

namespace agentserve::gateway {

using base::StrAppend;
using base::StrCat;

ReplyAssembler::ReplyAssembler(ReplyIdentity identity, ReplyOptions options, size_t prompts, uint64_t id_seed)
    : identity_(std::move(identity)), options_(std::move(options)), prompts_(prompts) {
  const size_t count = prompts * options_.n;
  choices_.reserve(count);
  for (size_t i = 0; i < count; ++i) choices_.emplace_back(options_, id_seed + i * 0x9E3779B97F4A7C15ull);
  collected_.resize(count);
  text_offset_.resize(count);
  echo_.resize(prompts);
  prompt_ids_.resize(prompts);
  prompt_tokens_seen_.resize(prompts);
  const char* object = !options_.chat    ? "text_completion"
                       : options_.stream ? "chat.completion.chunk"
                                         : "chat.completion";
  open_ = StrCat(options_.stream ? "data: " : "", "{\"id\":", JsonString(identity_.id), ",\"object\":\"", object,
                 "\",\"created\":", identity_.created_unix_s, ",\"model\":", JsonString(identity_.model));
  head_ = StrCat(open_, ",\"choices\":[{\"index\":");
}

void ReplyAssembler::SetEcho(size_t prompt, std::string text) {
  for (uint32_t j = 0; j < options_.n; ++j) text_offset_[prompt * options_.n + j] = CodePoints(text);
  echo_[prompt] = std::move(text);
}

void ReplyAssembler::SetPromptTokenIds(size_t prompt, std::vector<uint32_t> ids) {
  prompt_ids_[prompt] = std::move(ids);
}

void ReplyAssembler::OpenChunk(size_t choice, std::string* out) const { StrAppend(out, head_, choice); }

void ReplyAssembler::CloseChunk(std::string* out) const {
  *out += "}]";
  if (options_.continuous_usage) {
    *out += ",\"usage\":";
    Usage u = usage_;
    AppendUsage(out, u);
  } else if (options_.include_usage) {
    *out += ",\"usage\":null";
  }
  *out += "}\n\n";
}

void ReplyAssembler::AppendTokenIds(std::string* out, const std::vector<uint32_t>& ids) const {
  *out += '[';
  for (size_t i = 0; i < ids.size(); ++i) StrAppend(out, i > 0 ? "," : "", ids[i]);
  *out += ']';
}

void ReplyAssembler::Start(std::string* out) {
  AS_CHECK(options_.stream);
  for (size_t c = 0; c < choices_.size(); ++c) {
    const size_t prompt = c / options_.n;
    if (options_.chat) {
      OpenChunk(c, out);
      *out += ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null";
      if (options_.return_token_ids && !prompt_ids_[prompt].empty()) {
        *out += ",\"prompt_token_ids\":";
        AppendTokenIds(out, prompt_ids_[prompt]);
      }
      CloseChunk(out);
    } else if (options_.echo) {
      Piece echo;
      echo.text = echo_[prompt];
      WriteChunk(c, &echo, nullptr, out);
    }
  }
}

std::optional<ApiError> ReplyAssembler::OnEvent(size_t prompt, const pb::GenerateResponse& event, std::string* out) {
  switch (event.event_case()) {
    case pb::GenerateResponse::kAccepted:
      if (prompt_tokens_seen_[prompt] == 0) {
        prompt_tokens_seen_[prompt] = event.accepted().prompt_tokens();
        usage_.prompt_tokens += event.accepted().prompt_tokens();
      }
      return std::nullopt;
    case pb::GenerateResponse::kDelta:
      return OnDelta(prompt, event.delta(), out);
    case pb::GenerateResponse::kSequenceEnd:
      return OnEnd(prompt, event.sequence_end(), out);
    case pb::GenerateResponse::kDone:
      usage_.prompt_tokens -= prompt_tokens_seen_[prompt];  // replaced by the final figure
      OnDone(event.done());
      return std::nullopt;
    case pb::GenerateResponse::EVENT_NOT_SET:
      return std::nullopt;  // a kind of event that a newer router knows
  }
  return std::nullopt;
}

std::optional<ApiError> ReplyAssembler::OnDelta(size_t prompt, const pb::Delta& delta, std::string* out) {
  const size_t c = prompt * options_.n + delta.index();
  if (delta.index() >= options_.n || choices_[c].ended()) {
    return InternalError(StrCat("the router sent output for sequence ", delta.index(), ", which is unknown or ended"));
  }
  if (options_.continuous_usage) usage_.completion_tokens += static_cast<uint64_t>(delta.token_ids_size());
  std::vector<Piece> pieces;
  choices_[c].Feed(delta.text(), &pieces);
  if (options_.stream) {
    WritePieces(c, pieces, &delta, out);
  } else {
    Collect(c, pieces, &delta);
  }
  return std::nullopt;
}

std::optional<ApiError> ReplyAssembler::OnEnd(size_t prompt, const pb::SequenceEnd& end, std::string* out) {
  const size_t c = prompt * options_.n + end.index();
  if (end.index() >= options_.n || choices_[c].ended()) {
    return InternalError(StrCat("the router ended sequence ", end.index(), ", which is unknown or ended"));
  }
  if (end.reason() == common::v1::FINISH_REASON_CANCELLED) {
    ApiError e = InternalError("the request was cancelled before it finished");
    e.status = 499;
    e.type = e.code = "request_cancelled";
    return e;
  }
  if (end.reason() != common::v1::FINISH_REASON_STOP && end.reason() != common::v1::FINISH_REASON_LENGTH) {
    return InternalError("the router ended a sequence without a reason");
  }
  std::vector<Piece> pieces;
  choices_[c].End(end.reason(), &pieces);
  ++ended_;
  if (!options_.stream) {
    Collect(c, pieces, nullptr);
    return std::nullopt;
  }
  WritePieces(c, pieces, nullptr, out);
  if (options_.timeline && !options_.include_usage && ended_ == choices_.size()) {
    held_finish_ = c;
  } else {
    WriteFinishChunk(c, out);
  }
  return std::nullopt;
}

void ReplyAssembler::OnDone(const pb::Done& done) {
  // Deltas counted tokens only for running totals; the router's figure is the true one.
  if (done_ == 0 && options_.continuous_usage) usage_.completion_tokens = 0;
  ++done_;
  usage_.prompt_tokens += done.prompt_tokens();
  usage_.completion_tokens += done.completion_tokens();
  usage_.cached_tokens += done.cached_tokens();
  if (!timeline_) timeline_ = done.timeline();
}

bool ReplyAssembler::complete() const { return done_ == prompts_ && ended_ == choices_.size(); }

void ReplyAssembler::Collect(size_t choice, const std::vector<Piece>& pieces, const pb::Delta* delta) {
  Collected& c = collected_[choice];
  for (const Piece& p : pieces) {
    held_bytes_ += p.text.size();
    switch (p.kind) {
      case Piece::Kind::kText:
        c.text += p.text;
        break;
      case Piece::Kind::kCallStart:
        c.calls.push_back({p.id, p.name, ""});
        break;
      case Piece::Kind::kArguments:
        if (!c.calls.empty()) c.calls.back().arguments += p.text;
        break;
    }
  }
  if (delta == nullptr) return;
  if (options_.logprobs) {
    for (auto& t : CollectLogprobs(*delta)) {
      held_bytes_ += 100 * (1 + t.top.size());
      c.logprobs.push_back(std::move(t));
    }
  }
  if (options_.return_token_ids) {
    c.token_ids.insert(c.token_ids.end(), delta->token_ids().begin(), delta->token_ids().end());
    held_bytes_ += 8 * static_cast<size_t>(delta->token_ids_size());
  }
}

void ReplyAssembler::WritePieces(size_t choice, const std::vector<Piece>& pieces, const pb::Delta* delta,
                                 std::string* out) {
  // Logprobs and token ids go out with the event that brought them, even if its text is held back.
  const bool carries = delta != nullptr && ((options_.logprobs && delta->logprobs_size() > 0) ||
                                            (options_.return_token_ids && delta->token_ids_size() > 0));
  if (pieces.empty() && carries) {
    const Piece nothing;
    return WriteChunk(choice, &nothing, delta, out);
  }
  for (size_t i = 0; i < pieces.size(); ++i) WriteChunk(choice, &pieces[i], i == 0 ? delta : nullptr, out);
}

void ReplyAssembler::WriteChunk(size_t choice, const Piece* piece, const pb::Delta* delta, std::string* out) {
  OpenChunk(choice, out);
  if (!options_.chat) {
    *out += ",\"text\":";
    AppendJsonString(out, piece->text);
  } else if (piece->kind == Piece::Kind::kText) {
    *out += ",\"delta\":{\"content\":";
    AppendJsonString(out, piece->text);
    *out += '}';
  } else {
    StrAppend(out, ",\"delta\":{\"tool_calls\":[{\"index\":", piece->call_index);
    if (piece->kind == Piece::Kind::kCallStart) {
      *out += ",\"id\":";
      AppendJsonString(out, piece->id);
      *out += ",\"type\":\"function\",\"function\":{\"name\":";
      AppendJsonString(out, piece->name);
      *out += ",\"arguments\":\"\"}}]}";
    } else {
      *out += ",\"function\":{\"arguments\":";
      AppendJsonString(out, piece->text);
      *out += "}}]}";
    }
  }
  *out += ",\"logprobs\":";
  if (options_.logprobs && delta != nullptr && delta->logprobs_size() > 0) {
    const auto tokens = CollectLogprobs(*delta);
    if (options_.chat) {
      AppendChatLogprobs(out, tokens);
    } else {
      AppendTextLogprobs(out, tokens, options_.top_logprobs, &text_offset_[choice]);
    }
  } else {
    *out += "null";
  }
  *out += ",\"finish_reason\":null";
  if (options_.return_token_ids && delta != nullptr) {
    *out += ",\"token_ids\":";
    AppendTokenIds(out, {delta->token_ids().begin(), delta->token_ids().end()});
  }
  CloseChunk(out);
}

void ReplyAssembler::WriteFinishChunk(size_t choice, std::string* out) {
  OpenChunk(choice, out);
  StrAppend(out, options_.chat ? ",\"delta\":{}" : ",\"text\":\"\"", ",\"logprobs\":null,\"finish_reason\":\"",
            choices_[choice].finish_reason(), "\"");
  CloseChunk(out);
}

void ReplyAssembler::AppendUsage(std::string* out, const Usage& u) const {
  StrAppend(out, "{\"prompt_tokens\":", u.prompt_tokens, ",\"completion_tokens\":", u.completion_tokens,
            ",\"total_tokens\":", u.prompt_tokens + u.completion_tokens,
            ",\"prompt_tokens_details\":{\"cached_tokens\":", u.cached_tokens, "}}");
}

void ReplyAssembler::AppendTimings(std::string* out, const GatewayTimes& times) const {
  const common::v1::Timeline t = timeline_.value_or(common::v1::Timeline());
  *out += "{";
  const auto number = [&](std::string_view key, double v) {
    StrAppend(out, out->back() == '{' ? "" : ",", "\"", key, "\":");
    AppendJsonNumber(out, v);
  };
  const auto text = [&](std::string_view key, const std::string& v) {
    StrAppend(out, ",\"", key, "\":", JsonString(v));
  };
  number("gateway_ttft_ms", times.ttft_ms);
  number("gateway_total_ms", times.total_ms);
  number("router_ttft_ms", t.ttft_ms());
  number("router_total_ms", t.total_ms());
  number("queue_ms", t.queue_ms());
  number("prefill_wait_ms", t.prefill_wait_ms());
  number("prefill_ms", t.prefill_ms());
  number("transfer_bytes", static_cast<double>(t.transfer_bytes()));
  text("transfer_path", t.transfer_path());
  number("transfer_gb_per_s", t.transfer_gb_per_s());
  number("transfer_exposed_ms", t.transfer_exposed_ms());
  number("decode_wait_ms", t.decode_wait_ms());
  number("decode_ms", t.decode_ms());
  number("decode_steps", t.decode_steps());
  number("cached_tokens", t.cached_tokens());
  number("host_cached_tokens", t.host_cached_tokens());
  number("migrations", t.migrations());
  number("preemptions", t.preemptions());
  text("prefill_worker", t.prefill_worker());
  text("decode_worker", t.decode_worker());
  *out += '}';
}

void ReplyAssembler::Finish(const GatewayTimes& times, std::string* out) {
  AS_CHECK(complete());
  if (options_.stream) {
    FinishStream(times, out);
  } else {
    FinishFull(times, out);
  }
}

void ReplyAssembler::FinishStream(const GatewayTimes& times, std::string* out) {
  if (held_finish_) {
    WriteFinishChunk(*held_finish_, out);
    out->resize(out->size() - sizeof("}\n\n") + 1);
    *out += ",\"timings\":";
    AppendTimings(out, times);
    *out += "}\n\n";
  }
  if (options_.include_usage) {
    StrAppend(out, open_, ",\"choices\":[],\"usage\":");
    AppendUsage(out, usage_);
    if (options_.timeline) {
      *out += ",\"timings\":";
      AppendTimings(out, times);
    }
    *out += "}\n\n";
  }
  *out += "data: [DONE]\n\n";
}

void ReplyAssembler::AppendFullChatChoice(size_t choice, std::string* out) const {
  const Collected& c = collected_[choice];
  *out += "\"message\":{\"role\":\"assistant\",\"content\":";
  if (!c.calls.empty() && c.text.empty()) {
    *out += "null";
  } else {
    AppendJsonString(out, c.text);
  }
  *out += ",\"refusal\":null";
  if (!c.calls.empty()) {
    *out += ",\"tool_calls\":[";
    for (size_t i = 0; i < c.calls.size(); ++i) {
      StrAppend(out, i > 0 ? "," : "", "{\"id\":", JsonString(c.calls[i].id),
                ",\"type\":\"function\",\"function\":{\"name\":", JsonString(c.calls[i].name),
                ",\"arguments\":", JsonString(c.calls[i].arguments), "}}");
    }
    *out += ']';
  }
  *out += "},\"logprobs\":";
  if (options_.logprobs) {
    AppendChatLogprobs(out, c.logprobs);
  } else {
    *out += "null";
  }
}

void ReplyAssembler::AppendFullTextChoice(size_t choice, std::string* out) {
  const Collected& c = collected_[choice];
  *out += "\"text\":";
  AppendJsonString(out, options_.echo ? echo_[choice / options_.n] + c.text : c.text);
  *out += ",\"logprobs\":";
  if (options_.logprobs) {
    AppendTextLogprobs(out, c.logprobs, options_.top_logprobs, &text_offset_[choice]);
  } else {
    *out += "null";
  }
}

void ReplyAssembler::FinishFull(const GatewayTimes& times, std::string* out) {
  StrAppend(out, open_, ",\"choices\":[");
  for (size_t c = 0; c < choices_.size(); ++c) {
    StrAppend(out, c > 0 ? "," : "", "{\"index\":", c, ",");
    if (options_.chat) {
      AppendFullChatChoice(c, out);
    } else {
      AppendFullTextChoice(c, out);
    }
    StrAppend(out, ",\"finish_reason\":\"", choices_[c].finish_reason(), "\"");
    if (options_.return_token_ids) {
      *out += ",\"token_ids\":";
      AppendTokenIds(out, collected_[c].token_ids);
      *out += ",\"prompt_token_ids\":";
      AppendTokenIds(out, prompt_ids_[c / options_.n]);
    }
    *out += '}';
  }
  *out += "],\"usage\":";
  AppendUsage(out, usage_);
  if (options_.timeline) {
    *out += ",\"timings\":";
    AppendTimings(out, times);
  }
  *out += '}';
}

void ReplyAssembler::Fail(const ApiError& error, std::string* out) {
  StrAppend(out, "data: ", error.Json(), "\n\ndata: [DONE]\n\n");
}

}  // namespace agentserve::gateway
