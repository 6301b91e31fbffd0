// The parts of `agentserve up` that are neither the core nor the whole: console, plan, banner, ports, addresses.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <set>

#include "base/flags.h"
#include "tools/cli/http/url.h"
#include "tools/cli/paths.h"
#include "tools/cli/up/banner.h"
#include "tools/cli/up/cluster_plan.h"
#include "tools/cli/up/console.h"
#include "tools/cli/up/net.h"

namespace agentserve::tools {
namespace {

std::string ConsoleText(ConsoleOptions options, const std::function<void(Console&)>& use) {
  int ends[2];
  EXPECT_EQ(pipe(ends), 0);
  base::UniqueFd in(ends[0]), out(ends[1]);
  options.fd = out.get();
  {
    Console console({"router", "decode-0"}, options);
    use(console);
  }
  out.Reset();
  std::string text;
  char buf[4096];
  for (ssize_t n; (n = read(in.get(), buf, sizeof(buf))) > 0;) text.append(buf, static_cast<size_t>(n));
  return text;
}

constexpr char kInfo[] = "2026-01-01T00:00:00.000Z info agentserve-router service.ready port=1";
constexpr char kWarn[] = "2026-01-01T00:00:00.000Z warn agentserve-router something.odd";

TEST(Console, PrefixesWithoutColour) {
  EXPECT_EQ(ConsoleText({},
                        [](Console& c) {
                          c.Line(1, "hello");
                          c.Note("mine");
                          c.Status("hidden");
                        }),
            "decode-0   | hello\nagentserve | mine\n");
}
TEST(Console, StatusLineStaysBelow) {
  ConsoleOptions options;
  options.color = true;
  const std::string text = ConsoleText(options, [](Console& c) {
    c.Status("busy");
    c.Line(0, "x");
  });
  EXPECT_NE(text.find("x\nbusy"), std::string::npos);
  EXPECT_EQ(text.substr(text.size() - 5), "\r\x1b[2K");
}
TEST(Console, QuietKeepsWarningsAndStrayLines) {
  ConsoleOptions options;
  options.quiet = true;
  const std::string text = ConsoleText(options, [](Console& c) {
    c.Line(0, kInfo);
    c.Line(0, kWarn);
    c.Line(0, "abort!");
  });
  EXPECT_EQ(text.find("service.ready"), std::string::npos);
  EXPECT_NE(text.find("something.odd"), std::string::npos);
  EXPECT_NE(text.find("abort!"), std::string::npos);
}
TEST(Console, ReadyLines) {
  EXPECT_TRUE(IsReadyLine(kInfo));
  EXPECT_TRUE(IsReadyLine(R"({"ts":"x","level":"info","service":"s","event":"service.ready","port":1})"));
  EXPECT_FALSE(IsReadyLine(kWarn));
  EXPECT_FALSE(IsReadyLine("2026-01-01T00:00:00.000Z info agentserve-router peer.seen text=service.ready"));
  EXPECT_FALSE(IsReadyLine(""));
}

UpConfig Config() {
  UpConfig c;
  c.model = "/m";
  c.model_id = "m";
  c.bin_dir = "/b";
  c.run_dir = "/r";
  c.device = "cpu";
  return c;
}
std::vector<int> Ports(const UpConfig& c) {
  std::vector<int> ports(PortsNeeded(c));
  for (size_t i = 0; i < ports.size(); ++i) ports[i] = 100 + static_cast<int>(i);
  return ports;
}
std::string ValueOf(const ManagedChild& child, const std::string& flag) {
  const auto& a = child.process.argv;
  for (size_t i = 0; i + 1 < a.size(); ++i) {
    if (a[i] == flag) return a[i + 1];
  }
  return "";
}

TEST(Plan, WiresTheServicesTogether) {
  const UpConfig c = Config();
  const auto children = PlanCluster(c, Ports(c), 8);
  ASSERT_EQ(children.size(), 5u);
  const ManagedChild &kvstore = children[0], &router = children[1], &prefill = children[2], &gateway = children[4];
  EXPECT_EQ(ValueOf(router, "--kvstore"), HostPort("127.0.0.1", kvstore.port));
  EXPECT_EQ(ValueOf(prefill, "--kvstore"), HostPort("127.0.0.1", kvstore.port));
  EXPECT_EQ(ValueOf(prefill, "--router"), HostPort("127.0.0.1", router.port));
  EXPECT_EQ(ValueOf(gateway, "--router"), HostPort("127.0.0.1", router.port));
  EXPECT_EQ(ValueOf(gateway, "--port"), "8000");
  EXPECT_EQ(ValueOf(prefill, "--threads"), "4");
  EXPECT_EQ(ValueOf(prefill, "--run-dir"), "/r");
  std::set<int> ports;
  for (const ManagedChild& child : children) {
    EXPECT_TRUE(ports.insert(child.port).second);
    if (child.metrics_port != 0) {
      EXPECT_TRUE(ports.insert(child.metrics_port).second);
    }
  }
}
TEST(Plan, ThreadsAreNeverZero) {
  UpConfig c = Config();
  c.decode = 4;
  const auto children = PlanCluster(c, Ports(c), 2);
  EXPECT_EQ(ValueOf(children[2], "--threads"), "1");
}
TEST(Plan, PlacesWorkersOnGpus) {
  UpConfig c = Config();
  c.prefill = 1;
  c.decode = 2;
  auto children = PlanCluster(c, Ports(c), 2);
  for (size_t i : {2, 3, 4}) EXPECT_EQ(ValueOf(children[i], "--device"), "cpu") << i;
  children = PlanCluster(c, Ports(c), 2, {0, 3});
  EXPECT_EQ(ValueOf(children[2], "--device"), "cuda:0") << "prefill";
  EXPECT_EQ(ValueOf(children[3], "--device"), "cuda:3") << "decode";
  EXPECT_EQ(ValueOf(children[4], "--device"), "cuda:0") << "round again";
  EXPECT_EQ(ValueOf(children[2], "--gpu-memory-utilization"), "0.45") << "two workers on GPU 0";
  EXPECT_EQ(ValueOf(children[3], "--gpu-memory-utilization"), "0.9");
  EXPECT_EQ(ValueOf(children[4], "--gpu-memory-utilization"), "0.45");
  const auto has = [&](const char* flag) {
    const auto& argv = children[2].process.argv;
    return std::find(argv.begin(), argv.end(), flag) != argv.end();
  };
  EXPECT_FALSE(has("--batch-invariant"));
  c.batch_invariant = true;
  children = PlanCluster(c, Ports(c), 2, {5});
  EXPECT_TRUE(has("--batch-invariant"));
  EXPECT_EQ(ValueOf(children[4], "--gpu-memory-utilization"), "0.3");
}

TEST(Plan, ChoosesGpus) {
  UpConfig c = Config();
  const auto choose = [&](const char* device, const std::vector<int>& found) {
    c.device = device;
    return ChooseGpus(c, found, "no driver");
  };
  EXPECT_EQ(*choose("cpu", {0, 1}), std::vector<int>());
  EXPECT_EQ(*choose("auto", {0, 1}), (std::vector<int>{0, 1}));
  EXPECT_EQ(*choose("auto", {}), std::vector<int>());
  EXPECT_EQ(*choose("cuda", {0, 1}), (std::vector<int>{0, 1}));
  EXPECT_EQ(*choose("cuda:1", {0, 1}), std::vector<int>{1});
  EXPECT_FALSE(choose("cuda:2", {0, 1}).ok());
  EXPECT_NE(std::string(choose("cuda", {}).status().message()).find("no driver"), std::string::npos);
}

TEST(Plan, RejectsBadSettings) {
  UpConfig c = Config();
  EXPECT_TRUE(ValidateUpConfig(c).ok());
  c.run_dir = std::string(81, 'x');
  EXPECT_FALSE(ValidateUpConfig(c).ok());
  c = Config();
  c.drain_timeout_s = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(ValidateUpConfig(c).ok());
}

TEST(Banner, ShowsCapacityRoutesAndCurl) {
  const UpConfig c = Config();
  const auto children = PlanCluster(c, Ports(c), 2);
  ReadyReport report{1.5, {0.1, 0.2, 0.3, 0.4, -1}};
  ClusterSummary info;
  info.block_tokens = 16;
  info.context_length = 2048;
  info.workers = {{"decode-0", "decode", "ready", "", 0, 0, 0, 1024, 1024, 0, 0, 0, 0, 0}};
  const std::string text = ReadyBanner(c, children, report, &info);
  for (const char* part :
       {"decode-0: 16384 tokens (1024 blocks of 16) = 8.0 requests at the full context of 2048",
        "curl -N http://127.0.0.1:8000/v1/chat/completions", "whole cluster 1.50 s", "kvstore 0.10 s"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }
  EXPECT_EQ(text.find("gateway -"), std::string::npos);
}

TEST(Net, PickedPortsAreFreeAndDifferent) {
  const auto ports = PickPorts(16);
  ASSERT_TRUE(ports.ok());
  EXPECT_EQ(std::set<int>(ports->begin(), ports->end()).size(), 16u);
  for (const int p : *ports) EXPECT_TRUE(CheckPortFree("127.0.0.1", p).ok());
}
TEST(Net, WrongHostIsExplained) {
  EXPECT_TRUE(absl::IsInvalidArgument(CheckPortFree("192.0.2.1", 8000)));  // TEST-NET: not an address of this machine
}
TEST(Net, HttpStatus) {
  EXPECT_EQ(ParseHttpStatus("HTTP/1.1 503 Busy\r\n"), 503);
  EXPECT_EQ(ParseHttpStatus("HTTP/1.1 2"), std::nullopt);
  EXPECT_EQ(ParseHttpStatus("SSH-2.0-x"), 0);
  EXPECT_EQ(ParseHttpStatus("HTTP/1.1 2x0 OK"), 0);
}

TEST(Url, Parses) {
  const auto u = ParseUrl("http://localhost:81/v1/");
  ASSERT_TRUE(u.ok());
  EXPECT_EQ(u->host, "localhost");
  EXPECT_EQ(u->port, 81);
  EXPECT_EQ(u->path, "/v1");
  EXPECT_EQ(ParseUrl("http://[::1]:9")->host, "::1");
  EXPECT_EQ(ParseUrl("http://h")->port, 80);
  for (const char* bad : {"", "h:1", "https://h", "http://", "http://h:0", "http://h:70000", "http://h:x"}) {
    EXPECT_FALSE(ParseUrl(bad).ok()) << bad;
  }
}

TEST(RunDir, RemovesOnlyWhatItMade) {
  std::string path;
  {
    auto dir = RunDir::Make("");
    ASSERT_TRUE(dir.ok());
    path = dir->path();
    EXPECT_EQ(access(path.c_str(), W_OK), 0);
    auto inside = RunDir::Make(path);  // exists: used, not owned
    ASSERT_TRUE(inside.ok());
  }
  EXPECT_NE(access(path.c_str(), F_OK), 0);
}

}  // namespace
}  // namespace agentserve::tools
