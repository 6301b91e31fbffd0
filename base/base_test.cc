#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/flags.h"
#include "base/hash.h"
#include "base/rng.h"
#include "base/unix_fd.h"

namespace agentserve::base {
namespace {

// Known-answer vectors of the Random123 distribution (kat_vectors, philox4x32 10 rounds).
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(Philox4x32(0, 0, 0), (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32(~0ull, ~0ull, ~0ull), (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Hash, Sha256OfAbc) {
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  const std::string abc = "abc";
  EXPECT_EQ(Sha256Prefix(std::as_bytes(std::span(abc))).Hex(), "ba7816bf8f01cfea414140de5dae2223");
}

TEST(Flags, PrecedenceAndErrors) {
  int64_t port = 1;
  bool verbose = true;
  FlagSet flags("agentserve-x", "test");
  flags.Add("port", &port, "port");
  flags.Add("verbose", &verbose, "talk");
  setenv("AGENTSERVE_X_PORT", "7", 1);
  ASSERT_TRUE(flags.Parse({}).ok());
  EXPECT_EQ(port, 7);
  ASSERT_TRUE(flags.Parse({"--port=9", "--no-verbose"}).ok());
  EXPECT_EQ(port, 9);
  EXPECT_FALSE(verbose);
  EXPECT_NE(std::string(flags.Parse({"--prot", "9"}).message()).find("did you mean --port?"), std::string::npos);
  EXPECT_NE(std::string(flags.Parse({"--port", "x"}).message()).find("--port: bad value 'x'"), std::string::npos);
  EXPECT_FALSE(flags.Parse({"--port"}).ok());
  setenv("AGENTSERVE_X_PORT", "seven", 1);
  EXPECT_NE(std::string(flags.Parse({}).message()).find("AGENTSERVE_X_PORT"), std::string::npos);
  unsetenv("AGENTSERVE_X_PORT");
}

TEST(UnixFd, DescriptorArrives) {
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  UniqueFd a(pair[0]), b(pair[1]);
  int pipe_fds[2];
  ASSERT_EQ(pipe(pipe_fds), 0);
  UniqueFd r(pipe_fds[0]), w(pipe_fds[1]);
  ASSERT_TRUE(SendFd(a.get(), w.get(), "hello").ok());
  auto got = ReceiveFd(b.get(), 1000);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(got->second, "hello");
  ASSERT_EQ(write(got->first.get(), "x", 1), 1);
  char c = 0;
  EXPECT_EQ(read(r.get(), &c, 1), 1);
  EXPECT_EQ(c, 'x');
  EXPECT_EQ(ReceiveFd(b.get(), 10).status().code(), absl::StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace agentserve::base
