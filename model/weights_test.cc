// The safetensors container and the loading of weights.
#include "model/weights.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/strings.h"
#include "model/safetensors.h"
#include "model/test_util.h"

namespace agentserve::model {
namespace {

using base::StrCat;
namespace fs = std::filesystem;

std::string File(const std::string& header, size_t data_bytes) {
  const uint64_t n = header.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &n, 8);
  return out + header + std::string(data_bytes, '\1');
}

absl::StatusOr<std::vector<TensorInfo>> Parse(const std::string& file) {
  return ParseSafetensors(std::as_bytes(std::span(file)), "w.safetensors");
}

TEST(Safetensors, ReadsTensorsInOrder) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},)"
      R"("a":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]}, "e":{"dtype":"F16","shape":[0],"data_offsets":[16,16]}}  )";
  const auto r = Parse(File(header, 16));
  ASSERT_TRUE(r.ok()) << r.status();
  ASSERT_EQ(r->size(), 3u);
  EXPECT_EQ((*r)[0].name, "a");
  EXPECT_EQ((*r)[0].begin, 8 + header.size());
  EXPECT_EQ((*r)[0].ShapeText(), "[2, 2]");
  EXPECT_EQ((*r)[1].elements(), 2u);
}

struct BadCase {
  const char* header;
  size_t data;
  const char* want;
};
class BadHeader : public testing::TestWithParam<BadCase> {};

TEST_P(BadHeader, IsRefusedNamingFileTensorAndField) {
  const auto r = Parse(File(GetParam().header, GetParam().data));
  ASSERT_FALSE(r.ok()) << GetParam().header;
  const std::string message(r.status().message());
  EXPECT_EQ(message.rfind("w.safetensors: ", 0), 0u) << message;
  EXPECT_NE(message.find(GetParam().want), std::string::npos) << message;
}

INSTANTIATE_TEST_SUITE_P(
    All, BadHeader,
    testing::Values(
        BadCase{"", 0, "does not begin with '{'"}, BadCase{"[]", 0, "does not begin with '{'"},
        BadCase{"{\"a\":", 0, "not valid JSON"}, BadCase{"{} x", 0, "not valid JSON"},
        BadCase{R"({"a":1})", 0, "tensor \"a\": must be an object"}, BadCase{R"({"":{}})", 0, "name of 0 bytes"},
        BadCase{R"({"__metadata__":{"x":1}})", 0, "__metadata__"},
        BadCase{R"({"a":{"shape":[1],"data_offsets":[0,2]}})", 2, "field \"dtype\" is missing"},
        BadCase{R"({"a":{"dtype":"BF16","data_offsets":[0,2]}})", 2, "field \"shape\" is missing"},
        BadCase{R"({"a":{"dtype":"BF16","shape":[1]}})", 2, "field \"data_offsets\" is missing"},
        BadCase{R"({"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})", 8,
                "field \"dtype\" \"I64\" is not supported"},
        BadCase{R"({"a":{"dtype":7,"shape":[1],"data_offsets":[0,2]}})", 2, "field \"dtype\" must not hold a number"},
        BadCase{R"({"a":{"dtype":"BF16","shape":[-1],"data_offsets":[0,2]}})", 2, "negative"},
        BadCase{R"({"a":{"dtype":"BF16","shape":[1.0],"data_offsets":[0,2]}})", 2, "fraction"},
        BadCase{R"({"a":{"dtype":"BF16","shape":[[1]],"data_offsets":[0,2]}})", 2, "must not hold a list"},
        BadCase{R"({"a":{"dtype":"BF16","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,2]}})", 2, "more than 8"},
        BadCase{R"({"a":{"dtype":"BF16","shape":[1],"data_offsets":[0]}})", 2, "must hold two numbers"},
        BadCase{R"({"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,1,2]}})", 2, "more than 2 numbers"},
        BadCase{R"({"a":{"dtype":"BF16","shape":[1],"data_offsets":[2,0]}})", 2, "after its end"},
        BadCase{R"({"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,2]}})", 2, "shape [3] needs 6"},
        BadCase{R"({"a":{"dtype":"BF16","shape":[4294967296,4294967296],"data_offsets":[0,2]}})", 2, "overflows"},
        BadCase{R"({"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2],"extra":1}})", 2, "\"extra\" is not a field"},
        BadCase{R"({"a":{"dtype":"BF16","shape":[1],"shape":[1],"data_offsets":[0,2]}})", 2, "\"shape\" appears twice"},
        BadCase{
            R"({"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]},"a":{"dtype":"BF16","shape":[1],"data_offsets":[2,4]}})",
            4, "tensor \"a\" appears twice"},
        BadCase{R"({"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}})", 2, "truncated or damaged"},
        BadCase{R"({"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}})", 4, "2 bytes after the last tensor"},
        BadCase{R"({"a":{"dtype":"BF16","shape":[1],"data_offsets":[2,4]}})", 4, "leaves a gap"},
        BadCase{
            R"({"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"BF16","shape":[2],"data_offsets":[2,6]}})",
            6, "tensor \"b\": field \"data_offsets\" = [2, 6]: overlaps"}));

TEST(Safetensors, LengthsAreChecked) {
  EXPECT_FALSE(Parse("").ok());
  EXPECT_FALSE(Parse("1234567").ok());
  std::string file = File("{}", 0);
  EXPECT_TRUE(Parse(file).ok());
  const auto with_length = [&](uint64_t n) {
    std::memcpy(file.data(), &n, 8);
    return std::string(Parse(file).status().message());
  };
  EXPECT_NE(with_length(3).find("truncated"), std::string::npos);
  EXPECT_NE(with_length(UINT64_MAX).find("exceeds"), std::string::npos);
  const std::string deep = R"({"a":)" + std::string(1 << 20, '[');
  EXPECT_FALSE(Parse(File(deep, 0)).ok());
}

// Every truncation and every single-byte change of a small file: an error or a valid reading, never a crash.
TEST(Safetensors, DamageNeverCrashes) {
  const std::string good = File(R"({"a":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]}})", 8);
  ASSERT_TRUE(Parse(good).ok());
  for (size_t n = 0; n < good.size(); ++n) EXPECT_FALSE(Parse(good.substr(0, n)).ok());
  for (size_t i = 0; i < good.size(); ++i) {
    for (const int change : {1, 0x80, 0xff}) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ change);
      static_cast<void>(Parse(bad));
    }
  }
}

class LoadTest : public testing::Test {
 protected:
  ModelConfig config_ = SmallConfig(64, 4, 2, true);
  TempDir dir_;

  void Write(RandomModelOptions options = {}) {
    options.config = config_;
    ASSERT_TRUE(WriteRandomModel(dir_.path(), options).ok());
  }
  std::string LoadError(const ModelConfig& c) {
    const auto r = LoadWeights(dir_.path(), c, {});
    EXPECT_FALSE(r.ok());
    return r.ok() ? "" : std::string(r.status().message());
  }
};

TEST_F(LoadTest, DtypesAndShardsGiveTheSameWeights) {
  Write();
  const auto plain = LoadWeights(dir_.path(), config_, {});
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_TRUE((*plain)->converted.empty()) << "bf16 is used in place";
  TempDir other;
  ASSERT_TRUE(WriteRandomModel(other.path(), {.config = config_, .dtype = WeightDtype::kF32, .shards = 3}).ok());
  const auto f32 = LoadWeights(other.path(), config_, {});
  ASSERT_TRUE(f32.ok()) << f32.status();
  EXPECT_EQ((*f32)->files.size(), 3u);
  EXPECT_EQ((*f32)->sample_hash, (*plain)->sample_hash);
  TempDir third;
  ASSERT_TRUE(WriteRandomModel(third.path(), {.config = config_, .seed = 2}).ok());
  EXPECT_NE((*LoadWeights(third.path(), config_, {}))->sample_hash, (*plain)->sample_hash);
}

TEST_F(LoadTest, ProgressEndsComplete) {
  Write();
  LoadProgress last;
  ASSERT_TRUE(LoadWeights(dir_.path(), config_, [&](const LoadProgress& p) { last = p; }).ok());
  EXPECT_TRUE(last.done());
  EXPECT_EQ(last.bytes_total, fs::file_size(dir_.path() + "/model.safetensors"));
  EXPECT_EQ(last.eta_seconds, 0);
}

TEST_F(LoadTest, MissingUnexpectedAndWronglyShapedTensorsAreNamed) {
  Write();
  ModelConfig c = config_;
  c.num_layers = 3;
  EXPECT_NE(LoadError(c).find("lack 9 tensors that config.json needs: \"model.layers.2.input_layernorm.weight\""),
            std::string::npos);
  c = config_;
  c.num_layers = 1;
  EXPECT_NE(LoadError(c).find("hold 9 tensors"), std::string::npos);
  c = config_;
  c.intermediate_size = 512;
  EXPECT_NE(LoadError(c).find("\"model.layers.0.mlp.gate_proj.weight\": field \"shape\" = [256, 128], but config.json "
                              "needs [512, 128]"),
            std::string::npos);
  c = config_;
  c.tie_word_embeddings = false;
  EXPECT_NE(LoadError(c).find("lm_head.weight"), std::string::npos);
}

TEST_F(LoadTest, FilesThatAreAbsentTruncatedOrWronglyIndexed) {
  EXPECT_NE(LoadError(config_).find("no weights"), std::string::npos);
  RandomModelOptions two;
  two.shards = 2;
  Write(two);
  const std::string second = dir_.path() + "/model-00002-of-00002.safetensors";
  fs::resize_file(second, fs::file_size(second) - 10);
  EXPECT_NE(LoadError(config_).find("00002-of-00002.safetensors: tensor"), std::string::npos);
  fs::remove(second);
  EXPECT_NE(LoadError(config_).find("cannot open"), std::string::npos);
  const std::string index = dir_.path() + "/model.safetensors.index.json";
  for (const char* text : {"{", "{}", R"({"weight_map": {"a": "../x.safetensors"}})", R"({"weight_map": {"a": 1}})",
                           R"({"weight_map": {}})"}) {
    std::ofstream(index, std::ios::trunc) << text;
    EXPECT_NE(LoadError(config_).find("index.json"), std::string::npos) << text;
  }
  std::ofstream(index, std::ios::trunc) << R"({"weight_map": {"nobody": "model-00001-of-00002.safetensors"}})";
  EXPECT_NE(LoadError(config_).find("\"nobody\" is missing"), std::string::npos);
}

TEST_F(LoadTest, LoadModelReportsWhatIsWrong) {
  const auto message = [&](const LoadOptions& o) { return std::string(LoadModel(dir_.path(), o).status().message()); };
  EXPECT_NE(message({}).find("config.json"), std::string::npos);
  EXPECT_NE(message({.device = "tpu", .threads = 0, .progress = {}}).find("\"tpu\""), std::string::npos);
  EXPECT_NE(message({.device = "cpu", .threads = -1, .progress = {}}).find("threads"), std::string::npos);
  Write();
  const auto a = LoadModel(dir_.path(), {}),
             b = LoadModel(dir_.path(), {.device = "cpu", .threads = 1, .progress = {}});
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ((*a)->fingerprint(), (*b)->fingerprint());
  EXPECT_EQ((*a)->fingerprint_hex().size(), 16u);
  EXPECT_EQ((*a)->layout(16).BlockBytes(), 2u * 2 * 2 * 16 * 64 * 2);
}

TEST_F(LoadTest, DeviceNamesAreCheckedAndReasonsGiven) {
  Write();
  const auto status = [&](const char* device) {
    LoadOptions o;
    o.device = device;
    return LoadModel(dir_.path(), o).status();
  };
  for (const char* bad : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:01", "cuda:1x", "cuda0", "CUDA"}) {
    EXPECT_EQ(status(bad).code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_NE(status(bad).message().find("cuda:N"), absl::string_view::npos) << bad;
  }
  // A machine of any kind: an ordinal that nobody has. Without CUDA built in, without a GPU, and with other GPUs the
  // reason differs, and each says what to do.
  const absl::Status absent = status("cuda:99");
  EXPECT_FALSE(absent.ok());
  EXPECT_TRUE(absent.message().find("--device cpu") != absl::string_view::npos ||
              absent.message().find("does not exist") != absl::string_view::npos)
      << absent;
  const auto model = LoadModel(dir_.path(), {});
  ASSERT_TRUE(model.ok());
  const auto memory = (*model)->device_memory();
  ASSERT_TRUE(memory.ok());
  EXPECT_FALSE(memory->on_gpu());
  EXPECT_EQ(memory->weight_bytes, (*model)->weight_bytes());
  const auto pool = (*model)->AllocateKv(1000);
  ASSERT_TRUE(pool.ok());
  EXPECT_NE(pool->get(), nullptr);
}

}  // namespace
}  // namespace agentserve::model
