#include "tools/workload/generate.h"

#include <algorithm>
#include <cmath>

#include "base/rng.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace agentserve::workload {
namespace {

using base::StrCat;

constexpr double kTwoPi = 6.283185307179586;

// Random sizes and waits of one program.
class Draw {
 public:
  explicit Draw(uint64_t seed) : rng_(seed) {}
  uint64_t Below(uint64_t n) { return rng_.Below(n); }
  double Uniform() { return rng_.Uniform(); }
  // Lognormal with the given median; sigma of the logarithm.
  double Lognormal(double median, double sigma) {
    const double u = 1 - rng_.Uniform(), v = rng_.Uniform();
    return median * std::exp(sigma * std::sqrt(-2 * std::log(u)) * std::cos(kTwoPi * v));
  }
  uint32_t Tokens(double median, double sigma, uint32_t least, uint32_t most) {
    return static_cast<uint32_t>(std::clamp(Lognormal(median, sigma), double(least), double(most)));
  }
  // Rounds of a loop whose chance to stop falls as it goes on (the tail of agents that do not finish): P(n > k) about
  // (1 + k / scale)^-2.
  uint32_t Rounds(double scale, uint32_t least, uint32_t most) {
    const double n = scale * (std::pow(1 - rng_.Uniform(), -0.5) - 1);
    return std::clamp(static_cast<uint32_t>(n) + least, least, most);
  }

 private:
  base::SplitMix64 rng_;
};

struct ToolKind {
  const char* name;
  double median_ms, sigma;
};
// Waits like those of real tools: searches and reads are short, builds and browsers long-tailed.
constexpr ToolKind kTools[] = {
    {"search", 800, 0.6}, {"read_file", 60, 0.5}, {"run_tests", 9000, 1.2}, {"browser", 3500, 1.0}, {"sql", 300, 0.9}};

// Appends calls that carry their context along.
class Builder {
 public:
  Builder(const GenerateOptions& o, Draw* draw, Workload* w, Program* p) : o_(o), draw_(*draw), w_(w), p_(p) {}

  // A call whose prompt is all of `ref` (prompt and output) and `fresh` tokens more. `ref` kNone: system prompt and
  // `fresh`.
  uint32_t Add(uint32_t ref, uint32_t fresh, uint32_t out, std::vector<uint32_t> wait_for) {
    Call c;
    c.out = out;
    if (ref == kNone) {
      c.in = p_->prefix_tokens + fresh;
    } else {
      const Call& r = p_->calls[ref];
      c.ref = ref;
      c.lcp = r.in + r.out;
      c.in = c.lcp + fresh;
    }
    c.wait_for = std::move(wait_for);
    p_->calls.push_back(std::move(c));
    return static_cast<uint32_t>(p_->calls.size() - 1);
  }
  void Tool(uint32_t call) {
    const ToolKind& t = kTools[draw_.Below(std::size(kTools))];
    Call& c = p_->calls[call];
    c.tool = w_->ToolOf(t.name);
    c.wait_ms = o_.gap_scale * std::min(draw_.Lognormal(t.median_ms, t.sigma), 120'000.0);
  }
  void Think(uint32_t call) {
    Call& c = p_->calls[call];
    c.user_turn = true;
    c.wait_ms = o_.gap_scale * std::min(draw_.Lognormal(20'000, 1.0), 300'000.0);
  }
  uint32_t Observation() { return draw_.Tokens(180, 1.0, 10, 4000); }

 private:
  const GenerateOptions& o_;
  Draw& draw_;
  Workload* w_;
  Program* p_;
};

void React(Draw* d, Builder* b) {
  uint32_t last = b->Add(kNone, d->Tokens(150, 0.8, 20, 4000), d->Tokens(70, 0.7, 10, 1000), {});
  const uint32_t rounds = d->Rounds(5, 1, 60);
  for (uint32_t i = 0; i < rounds; ++i) {
    last = b->Add(last, b->Observation(), d->Tokens(i + 1 == rounds ? 160 : 70, 0.7, 10, 2000), {last});
    b->Tool(last);
  }
}

void PlanExecute(Draw* d, Builder* b) {
  uint32_t last = b->Add(kNone, d->Tokens(200, 0.8, 20, 4000), d->Tokens(300, 0.5, 50, 2000), {});
  const uint32_t steps = d->Rounds(4, 2, 24);
  for (uint32_t i = 0; i < steps; ++i) {
    last = b->Add(last, b->Observation(), d->Tokens(120, 0.7, 10, 2000), {last});
    b->Tool(last);
  }
  b->Add(last, 30, d->Tokens(400, 0.5, 50, 3000), {last});
}

void Reflect(Draw* d, Builder* b) {
  uint32_t last = b->Add(kNone, d->Tokens(250, 0.8, 20, 4000), d->Tokens(350, 0.6, 50, 3000), {});
  const uint32_t rounds = d->Rounds(1.5, 1, 8);
  for (uint32_t i = 0; i < rounds; ++i) {
    last = b->Add(last, 40, d->Tokens(150, 0.6, 20, 1500), {last});  // critique
    last = b->Add(last, 30, d->Tokens(350, 0.6, 50, 3000), {last});  // revision
  }
}

void Fanout(Draw* d, Builder* b) {
  const uint32_t plan = b->Add(kNone, d->Tokens(300, 0.8, 20, 6000), d->Tokens(200, 0.5, 50, 1000), {});
  const uint32_t width = 2 + static_cast<uint32_t>(d->Below(7));
  std::vector<uint32_t> ends;
  uint32_t results = 0;
  for (uint32_t k = 0; k < width; ++k) {
    uint32_t last = b->Add(plan, d->Tokens(400, 1.0, 20, 8000), d->Tokens(120, 0.8, 10, 2000), {plan});
    const uint32_t rounds = d->Rounds(1, 0, 6);
    uint32_t answer = 120;
    for (uint32_t i = 0; i < rounds; ++i) {
      answer = d->Tokens(120, 0.8, 10, 2000);
      last = b->Add(last, b->Observation(), answer, {last});
      b->Tool(last);
    }
    results += answer;
    ends.push_back(last);
  }
  b->Add(plan, results, d->Tokens(500, 0.5, 50, 3000), ends);
}

// Each level expands the best two nodes three ways; a level waits for the one before it (the choice).
void Tree(Draw* d, Builder* b) {
  std::vector<uint32_t> best = {b->Add(kNone, d->Tokens(250, 0.8, 20, 4000), d->Tokens(100, 0.5, 20, 800), {})};
  std::vector<uint32_t> level = best;
  const uint32_t depth = 2 + static_cast<uint32_t>(d->Below(3));
  for (uint32_t l = 0; l < depth; ++l) {
    std::vector<uint32_t> next;
    for (uint32_t node : best) {
      for (int k = 0; k < 3; ++k) next.push_back(b->Add(node, 25, d->Tokens(110, 0.6, 10, 1000), level));
    }
    level = next;
    const size_t pick = d->Below(next.size());
    best = {next[pick], next[(pick + 1 + d->Below(next.size() - 1)) % next.size()]};
  }
  b->Add(best[0], 40, d->Tokens(250, 0.5, 50, 2000), level);
}

void Chat(Draw* d, Builder* b) {
  uint32_t last = b->Add(kNone, d->Tokens(60, 1.0, 5, 4000), d->Tokens(180, 0.9, 5, 3000), {});
  const uint32_t turns = d->Rounds(3, 0, 40);
  for (uint32_t i = 0; i < turns; ++i) {
    last = b->Add(last, d->Tokens(60, 1.0, 5, 4000), d->Tokens(180, 0.9, 5, 3000), {last});
    b->Think(last);
  }
}

struct Shape {
  const char* name;
  void (*make)(Draw*, Builder*);
  uint32_t system_tokens;  // prompt and tool definitions
  uint32_t weight;         // in "mix"
};
constexpr Shape kShapes[] = {{"react", React, 1200, 40},    {"plan_execute", PlanExecute, 1500, 15},
                             {"reflect", Reflect, 400, 10}, {"fanout", Fanout, 900, 15},
                             {"tree", Tree, 500, 5},        {"chat", Chat, 300, 15}};
// Teams run a few agents each: so many different system prompts per shape.
constexpr uint64_t kSystemPrompts = 6;

const Shape& PickShape(const std::string& name, Draw* d) {
  uint32_t total = 0;
  for (const Shape& s : kShapes) {
    if (name == s.name) return s;
    total += s.weight;
  }
  auto left = static_cast<uint32_t>(d->Below(total));
  for (const Shape& s : kShapes) {
    if (left < s.weight) return s;
    left -= s.weight;
  }
  return kShapes[0];
}

}  // namespace

const std::vector<std::string>& Shapes() {
  static const auto* const names = [] {
    auto* v = new std::vector<std::string>();
    for (const Shape& s : kShapes) v->push_back(s.name);
    v->push_back("mix");
    return v;
  }();
  return *names;
}

absl::StatusOr<Workload> Generate(const GenerateOptions& o) {
  if (std::find(Shapes().begin(), Shapes().end(), o.shape) == Shapes().end()) {
    std::string known;
    for (const std::string& s : Shapes()) base::StrAppend(&known, known.empty() ? "" : ", ", s);
    return absl::InvalidArgumentError(
        base::ToAbsl(StrCat("unknown workload shape \"", o.shape, "\"; known are: ", known)));
  }
  if (o.programs < 1 || o.tenants < 1 || o.tenants > 10'000) {
    return absl::InvalidArgumentError("at least 1 program and 1 to 10000 tenants are needed");
  }
  Workload w;
  w.name = o.shape;
  w.tenants.clear();
  for (uint32_t t = 0; t < o.tenants; ++t) w.tenants.push_back(StrCat("tenant-", t));
  for (const Shape& s : kShapes) w.ClassOf(s.name);
  for (const ToolKind& t : kTools) w.ToolOf(t.name);
  for (uint32_t i = 0; i < o.programs; ++i) {
    Draw d(base::SplitMix64(o.seed * 0x9e3779b97f4a7c15ull + i).Next());
    const Shape& shape = PickShape(o.shape, &d);
    Program& p = w.programs.emplace_back();
    p.id = StrCat(shape.name, "-", i);
    p.workflow = w.ClassOf(shape.name);
    const bool heavy = o.heavy_tenant > 0 && (o.tenants == 1 || d.Uniform() < o.heavy_tenant);
    const uint32_t others = o.heavy_tenant > 0 && o.tenants > 1 ? o.tenants - 1 : o.tenants;
    p.tenant = static_cast<uint16_t>(heavy ? 0 : o.tenants - others + d.Below(others));
    p.prefix_id = d.Below(kSystemPrompts) + 1 + 1000u * p.workflow;
    p.prefix_tokens = shape.system_tokens;
    Builder b(o, &d, &w, &p);
    shape.make(&d, &b);
  }
  AS_RETURN_IF_ERROR(Validate(w));
  return w;
}

}  // namespace agentserve::workload
