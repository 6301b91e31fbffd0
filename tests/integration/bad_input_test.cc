// Bad input of every kind: a precise answer, nothing leaked, and the rest keeps serving.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/strings.h"
#include "tests/integration/cluster.h"
#include "tests/integration/http_client.h"

namespace agentserve::testing {
namespace {

using ::testing::HasSubstr;

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream out;
  out << in.rdbuf();
  return out.str();
}

void WriteFile(const std::string& path, const std::string& data) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << data;
}

class BadModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = MakeTempDir();
    std::filesystem::copy(SourcePath("models/tiny-agent"), dir_ + "/model", std::filesystem::copy_options::recursive);
  }
  void TearDown() override { RemoveTree(dir_); }

  // Runs a program that must refuse; returns its output.
  std::string Refused(const std::string& program, const std::vector<std::string>& args, int code) {
    std::vector<std::string> argv = {BinaryPath(program)};
    argv.insert(argv.end(), args.begin(), args.end());
    const std::string log = base::StrCat(dir_, "/", ++runs_, ".log");
    auto p = Process::Start(argv, log);
    EXPECT_TRUE(p.ok()) << p.status();
    const auto exit = (*p)->Wait(15000);
    EXPECT_TRUE(exit.has_value()) << program << " goes on:\n" << (*p)->Log();
    EXPECT_EQ(exit.value_or(-1), code) << (*p)->Log();
    return (*p)->Log();
  }
  std::string WorkerRefuses(int code) {
    return Refused("agentserve-decode-worker",
                   {"--model", dir_ + "/model", "--router", "127.0.0.1:1", "--run-dir", dir_, "--kv-memory-mib", "16",
                    "--metrics-port", "-1"},
                   code);
  }
  std::string weights() const { return dir_ + "/model/model.safetensors"; }

  std::string dir_;
  int runs_ = 0;
};

TEST_F(BadModelTest, TruncatedWeights) {
  const std::string whole = ReadFile(weights());
  WriteFile(weights(), whole.substr(0, whole.size() - 1000));
  EXPECT_THAT(WorkerRefuses(3), HasSubstr("model.safetensors"));
  WriteFile(weights(), whole.substr(0, 5));
  EXPECT_THAT(WorkerRefuses(3), HasSubstr("model.safetensors"));
}

TEST_F(BadModelTest, OverlappingTensors) {
  std::string whole = ReadFile(weights());
  // Move the end of the first range that starts the file one row back: the next tensor then overlaps or leaves a gap.
  const size_t at = whole.find("\"data_offsets\":[0,");
  ASSERT_NE(at, std::string::npos);
  const size_t last_digit = whole.find(']', at) - 1;
  whole[last_digit] = whole[last_digit] == '0' ? '2' : '0';
  WriteFile(weights(), whole);
  const std::string log = WorkerRefuses(3);
  EXPECT_THAT(log, HasSubstr("model.safetensors"));
}

TEST_F(BadModelTest, BadConfig) {
  const std::string config = dir_ + "/model/config.json";
  WriteFile(config, "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": -5}");
  EXPECT_THAT(WorkerRefuses(3), HasSubstr("config.json"));
  std::filesystem::remove(config);
  EXPECT_THAT(WorkerRefuses(3), HasSubstr("config.json"));
}

TEST_F(BadModelTest, TokenizerWithoutVocabulary) {
  WriteFile(dir_ + "/model/tokenizer.json",
            "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 0}, \"merges\": [\"a a\"]}}");
  const std::string log = Refused("agentserve-router", {"--model", dir_ + "/model", "--metrics-port", "-1"}, 3);
  EXPECT_THAT(log, HasSubstr("tokenizer.json"));
}

TEST_F(BadModelTest, MissingModel) {
  std::filesystem::remove_all(dir_ + "/model");
  EXPECT_THAT(WorkerRefuses(3), HasSubstr(dir_ + "/model"));
}

TEST_F(BadModelTest, MoreKvMemoryThanThereIs) {
  const std::string log = Refused("agentserve-decode-worker",
                                  {"--model", dir_ + "/model", "--router", "127.0.0.1:1", "--run-dir", dir_,
                                   "--kv-memory-mib", "100000000", "--metrics-port", "-1"},
                                  2);
  EXPECT_THAT(log, HasSubstr("--kv-memory-mib"));
}

TEST_F(BadModelTest, UnknownFlagAndTakenPort) {
  EXPECT_THAT(Refused("agentserve-router", {"--prot", "1"}, 2), HasSubstr("did you mean --port?"));
  const int port = PickPort();
  auto first = Process::Start({BinaryPath("agentserve-kvstore"), "--port", base::StrCat(port), "--metrics-port", "-1"},
                              dir_ + "/first.log");
  ASSERT_TRUE(first.ok());
  ASSERT_TRUE((*first)->WaitForLog("service.ready", 10000)) << (*first)->Log();
  EXPECT_THAT(Refused("agentserve-kvstore", {"--port", base::StrCat(port), "--metrics-port", "-1"}, 2),
              HasSubstr(base::StrCat(port)));
  EXPECT_THAT(Refused("agentserve-gateway", {"--port", base::StrCat(port), "--router", "127.0.0.1:1"}, 2),
              HasSubstr(base::StrCat(port)));
}

TEST(BadInput, OverHttpEachIsRefusedAndServingGoesOn) {
  ClusterOptions options;
  options.gateway = true;
  options.gateway_args = {"--api-key", "sk-test"};
  auto cluster = Cluster::Start(options);
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const int port = (*cluster)->gateway_port();
  const std::map<std::string, std::string> key = {{"Authorization", "Bearer sk-test"}};
  const std::string path = "/v1/chat/completions";
  const auto chat = [](const std::string& extra) {
    return "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"max_tokens\":4" + extra + "}";
  };
  struct Case {
    std::string body;
    int status;
    std::string needle;
  };
  std::string million = "{\"prompt\":[1";
  for (int i = 0; i < 999999; ++i) million += ",1";
  million += "]}";
  const std::vector<Case> cases = {
      {"{\"messages\":[", 400, "invalid_request_error"},
      {"[]", 400, "invalid_request_error"},
      {"{\"messages\":5}", 400, "messages"},
      {chat(",\"temperature\":\"hot\""), 400, "temperature"},
      {chat(",\"temperature\":9"), 400, "temperature"},
      {chat(",\"n\":100000"), 400, "\"n\""},
      {chat(",\"model\":\"gpt-9\""), 404, "model_not_found"},
      {chat(",\"tool_choice\":\"auto\""), 400, "tool_choice"},
      {chat(",\"logit_bias\":{\"999999999\":1}"), 400, "logit_bias"},
      {std::string(100'000, '['), 400, "invalid_request_error"},
  };
  for (const Case& c : cases) {
    auto reply = Http(port, "POST", path, c.body, key);
    ASSERT_TRUE(reply.ok()) << c.body.substr(0, 80) << ": " << reply.status();
    EXPECT_EQ(reply->status, c.status) << c.body.substr(0, 80) << ": " << reply->body;
    EXPECT_THAT(reply->body, HasSubstr(c.needle)) << c.body.substr(0, 80);
    EXPECT_LT(reply->body.size(), 4000u);
  }
  auto reply = Http(port, "POST", "/v1/completions", million, key);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->status, 400) << reply->body.substr(0, 500);
  EXPECT_THAT(reply->body, HasSubstr("context_length_exceeded"));
  reply = Http(port, "POST", path, std::string(100'000'000, ' '), key);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->status, 413);
  reply = Http(port, "POST", path, chat(""), {{"Authorization", "Bearer wrong"}});
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->status, 401);
  EXPECT_EQ(reply->headers.count("www-authenticate"), 1u);
  reply = Http(port, "POST", path, chat(""), key);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->status, 200) << reply->body;
  EXPECT_TRUE((*cluster)->WaitPoolsAtBaseline(3000).ok());
  const absl::Status down = (*cluster)->Shutdown();
  EXPECT_TRUE(down.ok()) << down;
}

// A worker with other weights may not join; the cluster goes on with the ones it has.
TEST(BadInput, WorkerOfAnotherModelIsRefused) {
  ClusterOptions options;
  options.prefill = 0;
  auto cluster = Cluster::Start(options);
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const std::string other = (*cluster)->dir() + "/other";
  std::filesystem::copy(SourcePath("models/tiny-agent"), other, std::filesystem::copy_options::recursive);
  std::string weights = ReadFile(other + "/model.safetensors");
  for (size_t i = weights.size() / 2; i < weights.size(); i += 2) weights[i] = static_cast<char>(weights[i] ^ 1);
  WriteFile(other + "/model.safetensors", weights);
  auto stranger = Process::Start(
      {BinaryPath("agentserve-decode-worker"), "--model", other, "--router", (*cluster)->router_address(), "--run-dir",
       (*cluster)->dir() + "/run", "--worker-id", "stranger", "--kv-memory-mib", "16", "--metrics-port", "-1"},
      (*cluster)->dir() + "/stranger.log");
  ASSERT_TRUE(stranger.ok());
  EXPECT_TRUE((*stranger)->WaitForLog("fingerprint", 10000)) << (*stranger)->Log();
  const Outcome out = Generate((*cluster)->router(), RandomRequest(1, 1000, 40, 8, true));
  EXPECT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_EQ(out.done.timeline().decode_worker(), "decode-0");
}

}  // namespace
}  // namespace agentserve::testing
