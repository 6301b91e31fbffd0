#include "router/service/edge_model.h"

#include "base/clock.h"
#include "base/status_macros.h"

namespace agentserve::router {

absl::StatusOr<std::unique_ptr<EdgeModel>> EdgeModel::Load(const std::string& dir, const std::string& model_id,
                                                           const std::string& chat_date) {
  auto m = std::make_unique<EdgeModel>();
  AS_ASSIGN_OR_RETURN(m->card, text::LoadModelCard(dir));
  AS_ASSIGN_OR_RETURN(m->tokenizer, text::Tokenizer::Load(dir));
  m->model_id = model_id.empty() ? m->card.model_id : model_id;
  m->chat_date = chat_date;
  m->created_unix_s = base::UnixSeconds();
  auto chat = std::make_unique<text::ChatTemplate>(*m->tokenizer);
  if (chat->Supported().ok()) m->chat_template = std::move(chat);
  return m;
}

}  // namespace agentserve::router
