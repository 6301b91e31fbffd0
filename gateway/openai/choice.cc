#include "gateway/openai/choice.h"

#include "gateway/json_util.h"

namespace agentserve::gateway {
namespace {

void Append(std::vector<text::ToolEvent> events, std::vector<Piece>* out) {
  using Kind = text::ToolEvent::Kind;
  for (auto& e : events) {
    Piece piece;
    piece.call_index = e.index;
    piece.text = std::move(e.text);
    switch (e.kind) {
      case Kind::kContent:
        break;
      case Kind::kCallStart:
        piece.kind = Piece::Kind::kCallStart;
        piece.id = std::move(e.id);
        piece.name = std::move(e.name);
        break;
      case Kind::kArguments:
        piece.kind = Piece::Kind::kArguments;
        break;
      case Kind::kCallEnd:
        continue;
    }
    if (piece.kind == Piece::Kind::kCallStart || !piece.text.empty()) out->push_back(std::move(piece));
  }
}

}  // namespace

Choice::Choice(const ReplyOptions& options, uint64_t id_seed) {
  if (options.tool_names.empty()) return;
  text::ToolParserOptions parser;
  parser.tool_names = options.tool_names;
  parser.id_seed = id_seed;
  parser.parallel_calls = options.parallel_tool_calls;
  parser_ = std::make_unique<text::ToolCallParser>(std::move(parser));
}

void Choice::Whole(std::string_view text, std::vector<Piece>* out) {
  if (text.empty()) return;
  if (parser_) {
    const size_t before = out->size();
    Append(parser_->Feed(text), out);
    return NoteCall(*out, before);
  }
  Piece piece;
  piece.text = std::string(text);
  out->push_back(std::move(piece));
}

void Choice::NoteCall(const std::vector<Piece>& pieces, size_t from) {
  for (size_t i = from; first_call_.empty() && i < pieces.size(); ++i) {
    if (pieces[i].kind == Piece::Kind::kCallStart) first_call_ = pieces[i].name;
  }
}

void Choice::Feed(std::string_view text, std::vector<Piece>* out) {
  if (partial_.empty() && CompleteUtf8Prefix(text) == text.size()) return Whole(text, out);
  partial_ += text;
  const size_t whole = CompleteUtf8Prefix(partial_);
  const std::string rest = partial_.substr(whole);
  partial_.resize(whole);
  Whole(partial_, out);
  partial_ = rest;
}

void Choice::End(common::v1::FinishReason reason, std::vector<Piece>* out) {
  if (!partial_.empty()) Whole("\xEF\xBF\xBD", out);  // a character that never got its rest
  partial_.clear();
  if (parser_) {
    const size_t before = out->size();
    Append(parser_->Finish(), out);
    NoteCall(*out, before);
  }
  ended_ = true;
  if (reason == common::v1::FINISH_REASON_LENGTH) {
    finish_reason_ = "length";
  } else {
    finish_reason_ = parser_ && parser_->complete_calls() > 0 ? "tool_calls" : "stop";
  }
}

}  // namespace agentserve::gateway
