#include "base/failpoint.h"

#include <unistd.h>

#include <atomic>
#include <charconv>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

#include "base/log.h"
#include "base/strings.h"

namespace agentserve::base {
namespace {

struct Armed {
  uint64_t at = 0;
  uint64_t visits = 0;
};
struct Registry {
  std::mutex mu;
  std::map<std::string, Armed, std::less<>> armed;  // guarded by mu
  std::atomic<bool> any{false};
};

bool WholeNumber(std::string_view text, uint64_t* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size();
}

absl::Status ArmLocked(Registry* registry, std::string_view text) {
  std::map<std::string, Armed, std::less<>> armed;
  while (!text.empty()) {
    const size_t comma = text.find(',');
    const std::string_view item = text.substr(0, comma);
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
    const size_t eq = item.find('=');
    uint64_t at = 0;
    if (eq == std::string_view::npos || eq == 0 || !WholeNumber(item.substr(eq + 1), &at)) {
      return absl::InvalidArgumentError(
          StrCat("failpoint \"", item, "\" is not NAME=N; write e.g. AGENTSERVE_FAILPOINTS=xf.corrupt=3"));
    }
    armed[std::string(item.substr(0, eq))].at = at;
  }
  registry->any = !armed.empty();
  registry->armed = std::move(armed);
  return absl::OkStatus();
}

Registry& TheRegistry(bool read_environment) {
  static Registry registry;
  static std::once_flag once;
  std::call_once(once, [&] {
    const char* text = read_environment ? std::getenv("AGENTSERVE_FAILPOINTS") : nullptr;
    if (text == nullptr || *text == '\0') return;
    const std::lock_guard lock(registry.mu);
    const absl::Status status = ArmLocked(&registry, text);
    AS_LOG(kWarn, "failpoints.armed") << Field("failpoints", text) << Field("ok", status.ok())
                                      << Field("error", MessageOf(status));
  });
  return registry;
}

}  // namespace

absl::Status ArmFailpoints(std::string_view text) {
  Registry& registry = TheRegistry(/*read_environment=*/false);
  const std::lock_guard lock(registry.mu);
  return ArmLocked(&registry, text);
}

bool FailpointFires(std::string_view name) {
  Registry& registry = TheRegistry(/*read_environment=*/true);
  if (!registry.any.load(std::memory_order_relaxed)) return false;
  const std::lock_guard lock(registry.mu);
  const auto it = registry.armed.find(name);
  if (it == registry.armed.end()) return false;
  Armed& armed = it->second;
  ++armed.visits;
  const bool fires = armed.at == 0 || armed.visits == armed.at;
  if (fires) {
    AS_LOG(kWarn, "failpoint.fires") << Field("name", name) << Field("visit", armed.visits);
  }
  return fires;
}

void FailpointExit(std::string_view name) {
  if (FailpointFires(name)) _exit(134);
}

}  // namespace agentserve::base
