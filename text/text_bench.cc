// Speed of the text edge. With AGENTSERVE_SHARED_DATA (or ../shared/data) the real Llama 3 vocabulary is used, else the
// small fixture. Run from the root of the repository.
#include <benchmark/benchmark.h>

#include "text/chat_template.h"
#include "text/detokenizer.h"
#include "text/pretokenizer.h"
#include "text/stop_matcher.h"
#include "text/test_util.h"
#include "text/tokenizer.h"
#include "text/tokenizer_spec.h"
#include "text/tool_call_parser.h"

namespace agentserve::text {
namespace {

std::string ModelDir() {
  const std::string real = SharedData("llama3-tokenizer");
  return Exists(real) ? real : TestData("tiny");
}
const Tokenizer& Shared() {
  static const auto* tokenizer = Tokenizer::Load(ModelDir())->release();
  return *tokenizer;
}

// About 1 MB of each kind.
const std::string& Sample(int64_t kind) {
  static const auto* samples = [] {
    auto* s = new std::vector<std::string>(4);
    const std::string english = SharedData("text/tinyshakespeare.txt");
    (*s)[0] = Exists(english) ? Slurp(english) : std::string();
    while ((*s)[0].size() < 1000000) (*s)[0] += "The quick brown fox jumps over the lazy dog, doesn't it? ";
    while ((*s)[1].size() < 1000000) {
      (*s)[1] +=
          "  {\"id\": 12345, \"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\", \"days\": [1, 2, 3]}},\n";
    }
    base::SplitMix64 rng(1);
    while ((*s)[2].size() < 1000000) (*s)[2] += RandomText(&rng, 50);
    (*s)[3] = std::string(1000000, 'a');
    return s;
  }();
  return (*samples)[static_cast<size_t>(kind)];
}
const char* const kKinds[] = {"english", "json", "mixed", "one letter"};

void BM_Load(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(Tokenizer::Load(ModelDir()));
  state.SetLabel(ModelDir());
}
BENCHMARK(BM_Load)->Unit(benchmark::kMillisecond);

void BM_Encode(benchmark::State& state) {
  const std::string& text = Sample(state.range(0));
  size_t tokens = 0;
  for (auto _ : state) tokens += Shared().Encode(text).size();
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * text.size()));
  state.counters["tokens/s"] = benchmark::Counter(static_cast<double>(tokens), benchmark::Counter::kIsRate);
  state.SetLabel(kKinds[state.range(0)]);
}
BENCHMARK(BM_Encode)->DenseRange(0, 3)->Unit(benchmark::kMillisecond);

// range(1): 0 the scanner, 1 PCRE2.
void BM_Split(benchmark::State& state) {
  const auto pre = *PreTokenizer::Create(kLlama3Pattern, "bench", state.range(1) == 1);
  const std::string& text = Sample(state.range(0));
  for (auto _ : state) {
    PieceReader reader(*pre, text);
    std::string_view piece;
    size_t n = 0;
    while (reader.Next(&piece)) ++n;
    benchmark::DoNotOptimize(n);
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * text.size()));
  state.SetLabel(std::string(kKinds[state.range(0)]) + (state.range(1) == 1 ? ", PCRE2" : ", scanner"));
}
BENCHMARK(BM_Split)->ArgsProduct({{0, 2}, {0, 1}})->Unit(benchmark::kMillisecond);

void BM_Detokenize(benchmark::State& state) {
  const std::vector<uint32_t> ids = Shared().Encode(Sample(0));
  for (auto _ : state) {
    StreamingDetokenizer stream(Shared(), true);
    for (const uint32_t id : ids) benchmark::DoNotOptimize(stream.Push(id));
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations() * ids.size()));
}
BENCHMARK(BM_Detokenize)->Unit(benchmark::kMillisecond);

// What the router does per token: detokenize, match stops, look for tool calls.
void BM_StreamPath(benchmark::State& state) {
  const std::vector<uint32_t> ids = Shared().Encode(Sample(0));
  for (auto _ : state) {
    StreamingDetokenizer stream(Shared(), true);
    StopMatcher stops({"\n\nUser:", "<|stop|>", "Observation:"}, false);
    ToolCallParser tools({.tool_names = {"get_weather", "search"}, .id_seed = 1});
    for (const uint32_t id : ids) benchmark::DoNotOptimize(tools.Feed(stops.Feed(stream.Push(id)).text));
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations() * ids.size()));
}
BENCHMARK(BM_StreamPath)->Unit(benchmark::kMillisecond);

void BM_RenderChat(benchmark::State& state) {
  ChatRequest request;
  for (int i = 0; i < 20; ++i) {
    request.messages.push_back({.role = i % 2 == 0 ? "user" : "assistant", .content = Sample(0).substr(0, 1000)});
  }
  request.tools_json =
      "[{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"type\": \"object\"}}}]";
  const ChatTemplate chat(Shared());
  for (auto _ : state) benchmark::DoNotOptimize(chat.Render(request));
}
BENCHMARK(BM_RenderChat)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace agentserve::text
