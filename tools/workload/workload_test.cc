#include "tools/workload/workload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tools/workload/arrivals.h"
#include "tools/workload/generate.h"
#include "tools/workload/import.h"

namespace agentserve::workload {
namespace {

std::string TempFile(const std::string& name) { return testing::TempDir() + "/workload_test_" + name; }

std::string WriteFile(const std::string& name, const std::string& text) {
  const std::string file = TempFile(name);
  std::ofstream(file) << text;
  return file;
}

std::string SharedTrace(const std::string& name) {
  const char* const dir = std::getenv("AGENTSERVE_SHARED_DATA");
  const char* const source = std::getenv("AGENTSERVE_SOURCE");
  return std::string(dir ? dir : std::string(source ? source : ".") + "/../shared/data") + "/traces/" + name;
}

TEST(Spans, FollowReferencesAndSharedPrefix) {
  Workload w;
  w.classes = {"x"};
  Program p;
  p.id = "p";
  p.prefix_tokens = 10;
  p.prefix_id = 7;
  Call a;
  a.in = 30, a.out = 5;
  Call b;
  b.in = 60, b.out = 4, b.ref = 0, b.lcp = 35, b.wait_for = {0};
  Call c;  // a branch in the middle of a's prompt
  c.in = 40, c.out = 1, c.ref = 1, c.lcp = 20, c.wait_for = {1};
  p.calls = {a, b, c};
  w.programs = {p, p};
  ASSERT_TRUE(Validate(w).ok());
  const auto ends = [&](uint32_t program, uint32_t call) {
    std::vector<uint32_t> out;
    for (const Span& s : Spans(w, program, call, 0)) out.push_back(s.end);
    return out;
  };
  EXPECT_THAT(ends(0, 0), testing::ElementsAre(10, 35));
  EXPECT_THAT(ends(0, 1), testing::ElementsAre(10, 35, 64));
  EXPECT_THAT(ends(0, 2), testing::ElementsAre(10, 20, 41));
  const auto first = Spans(w, 0, 2, 0), other = Spans(w, 1, 2, 0), again = Spans(w, 0, 2, 1);
  EXPECT_EQ(first[0].origin, other[0].origin);  // the shared prefix
  EXPECT_EQ(first[0].origin, again[0].origin);
  EXPECT_NE(first[1].origin, other[1].origin);
  EXPECT_NE(first[1].origin, again[1].origin);
  EXPECT_EQ(first[1].origin, Spans(w, 0, 0, 0)[1].origin);
  EXPECT_NE(first[2].origin, Spans(w, 0, 0, 0)[1].origin);
}

TEST(Validate, NamesTheCall) {
  Workload w;
  w.classes = {"x"};
  Program p;
  p.id = "prog";
  p.calls.resize(2);
  w.programs = {p};
  EXPECT_THAT(std::string(Validate(w).message()), testing::HasSubstr("program prog call 1"));
  w.programs[0].calls[1].wait_for = {1};
  EXPECT_THAT(std::string(Validate(w).message()), testing::HasSubstr("not earlier"));
}

TEST(Generate, SameSeedSameWorkloadAndRowsRoundTrip) {
  for (const std::string& shape : Shapes()) {
    GenerateOptions o;
    o.shape = shape;
    o.programs = 60;
    const auto a = Generate(o), b = Generate(o);
    ASSERT_TRUE(a.ok()) << shape;
    const std::string fa = TempFile("a.jsonl"), fb = TempFile("b.jsonl"), fc = TempFile("c.jsonl");
    ASSERT_TRUE(WriteRows(*a, fa).ok());
    ASSERT_TRUE(WriteRows(*b, fb).ok());
    Workload read;
    const absl::Status s = ReadRows(fa, &read);
    ASSERT_TRUE(s.ok()) << s.message();
    ASSERT_TRUE(WriteRows(read, fc).ok());
    EXPECT_EQ(*ReadMaybeGzip(fa), *ReadMaybeGzip(fb)) << shape;
    EXPECT_EQ(*ReadMaybeGzip(fa), *ReadMaybeGzip(fc)) << shape;
    EXPECT_EQ(read.calls(), a->calls());
  }
  GenerateOptions unknown;
  unknown.shape = "nonsense";
  EXPECT_THAT(std::string(Generate(unknown).status().message()), testing::HasSubstr("known are: react"));
}

TEST(Generate, ScaledAndForgetfulOnesAreValid) {
  GenerateOptions o;
  o.programs = 80;
  Workload w = *Generate(o);
  const size_t calls = w.calls();
  Scale(0.05, 0.1, &w);
  EXPECT_TRUE(Validate(w).ok()) << Validate(w).message();
  ForgetOutputs(&w);
  EXPECT_TRUE(Validate(w).ok());
  EXPECT_EQ(w.calls(), calls);
  for (const Program& p : w.programs) {
    for (const Call& c : p.calls) {
      if (c.ref == kNone) continue;
      EXPECT_LE(c.lcp, p.calls[c.ref].in);
    }
  }
}

TEST(Arrivals, MeanGapIsOneOverRate) {
  for (ArrivalKind k : {ArrivalKind::kPoisson, ArrivalKind::kGamma, ArrivalKind::kOnOff}) {
    ArrivalGaps gaps(k, 5, 3);
    double sum = 0;
    constexpr int kDraws = 400'000;
    for (int i = 0; i < kDraws; ++i) sum += gaps.Next();
    EXPECT_NEAR(sum / kDraws, 0.2, 0.01) << ArrivalName(k);
  }
  EXPECT_FALSE(ParseArrivals("x").ok());
}

TEST(Import, CodingSessionWithSubagentAndJoin) {
  const std::string file = WriteFile(
      "coding.jsonl",
      R"({"program_id":"s","kind":"coding+subagents","block":64,"tool_tokens":640,"system_tokens":0,"models":["m"],)"
      R"("agents":[{"id":1,"type":"E","status":"completed"}],"calls":[)"
      R"({"t":0,"in":6400,"out":100,"new":[1,100],"stop":"tool_use"},)"
      R"({"t":1,"in":640,"out":0,"new":[500,10],"agent":1,"parent":0},)"
      R"({"t":9,"in":7040,"out":9000,"lcp":100,"ref":0,"new":[101,10],"tool_ms":5000,"join":[1],"join_ms":70},)"
      R"({"t":99,"in":6464,"out":5,"lcp":90,"ref":0,"new":[300,11],"think_ms":90000}]})"
      "\n");
  CodingOptions o;
  o.think_cap_s = 60;
  const auto w = ImportCoding(file, o);
  ASSERT_TRUE(w.ok()) << w.status().message();
  const std::vector<Call>& c = w->programs[0].calls;
  ASSERT_EQ(c.size(), 4u);
  EXPECT_EQ(c[0].in, 800u);
  EXPECT_EQ(w->programs[0].prefix_tokens, 80u);
  EXPECT_THAT(c[1].wait_for, testing::ElementsAre(0));
  EXPECT_EQ(c[1].out, 1u);  // failed in the trace
  EXPECT_THAT(c[2].wait_for, testing::ElementsAre(0, 1));
  EXPECT_EQ(c[2].wait_ms, 70);
  EXPECT_EQ(c[2].out, 8192u);
  EXPECT_EQ(c[2].lcp, 800u);
  EXPECT_TRUE(c[3].user_turn);
  EXPECT_EQ(c[3].wait_ms, 60'000);
  EXPECT_EQ(c[3].lcp, 720u);
  o.jobs_per_session = 1;
  const auto cut = ImportCoding(file, o);
  ASSERT_TRUE(cut.ok());
  ASSERT_EQ(cut->programs.size(), 2u);
  EXPECT_EQ(cut->programs[1].calls[0].ref, kNone);
}

TEST(Import, RequestTraces) {
  const auto m =
      ImportMooncake(WriteFile("m.jsonl", R"({"timestamp":0,"input_length":1100,"output_length":3,"hash_ids":[0,1,2]}
{"timestamp":2000,"input_length":1500,"output_length":4,"hash_ids":[0,1,9]}
)"));
  ASSERT_TRUE(m.ok()) << m.status().message();
  EXPECT_EQ(m->programs[1].calls[0].lcp, 1024u);
  EXPECT_EQ(m->programs[1].arrival_s, 2.0);
  const auto a = ImportAzure(WriteFile("a.csv",
                                       "TIMESTAMP,ContextTokens,GeneratedTokens\n"
                                       "2023-11-16 18:17:03.5000000,4808,10\n2023-11-16 18:17:05.0,30,8\n"),
                             "code");
  ASSERT_TRUE(a.ok()) << a.status().message();
  EXPECT_EQ(a->programs[1].arrival_s, 1.5);
  EXPECT_EQ(a->programs[0].calls[0].in, 4808u);
  const auto bad = ImportAzure(WriteFile("bad.csv", "TIMESTAMP,x\nnot a row\n"), "code");
  EXPECT_THAT(std::string(bad.status().message()), testing::HasSubstr("bad.csv:2"));
}

TEST(Import, SharedTraces) {
  if (!std::filesystem::exists(SharedTrace("weka-dev.jsonl.gz"))) {
    GTEST_SKIP() << "no trace data at " << SharedTrace("") << "; set AGENTSERVE_SHARED_DATA";
  }
  const auto w = ImportCoding(SharedTrace("weka-dev.jsonl.gz"), {});
  ASSERT_TRUE(w.ok()) << w.status().message();
  EXPECT_EQ(w->programs.size(), 357u);
  EXPECT_EQ(w->calls(), 23026u);
  uint64_t in = 0, shared = 0;
  for (const Program& p : w->programs) {
    for (const Call& c : p.calls) in += c.in, shared += c.lcp;
  }
  // The trace's README says 96.2 % within programs; what lies in the shared system prompt only is not counted here.
  EXPECT_GT(double(shared) / double(in), 0.93);
  const auto t = ImportAgentServe(SharedTrace("agentserve-trajectories.json"), Burst::kTrajectories);
  ASSERT_TRUE(t.ok()) << t.status().message();
  EXPECT_EQ(t->programs.size(), 80u);
  EXPECT_EQ(t->calls(), 280u);
  uint64_t out = 0;
  for (const Program& p : t->programs) {
    for (const Call& c : p.calls) out += c.out;
  }
  EXPECT_EQ(out, 32'800u);
  const auto a = ImportAgentServe(SharedTrace("agentserve-trajectories.json"), Burst::kAblation);
  ASSERT_TRUE(a.ok()) << a.status().message();
  EXPECT_EQ(a->programs.size(), 100u);
  EXPECT_TRUE(ImportMooncake(SharedTrace("mooncake-conversation.jsonl.gz"), 500).ok());
  EXPECT_EQ(ImportAzure(SharedTrace("azure2023-code.csv.gz"), "code")->programs.size(), 8819u);
}

}  // namespace
}  // namespace agentserve::workload
