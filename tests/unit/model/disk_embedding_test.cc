// A token table on disk gives the bytes of one in memory; rows that are lost fail their tokens
// only.
#include <filesystem>
#include <fstream>
#include <string>

#include "engine/formats/pack.h"
#include "tests/unit/model/test_pack.h"

namespace sluice::testing {
namespace {

TierOptions Table(bool on_disk) {
  TierOptions tiers;
  tiers.disk_embedding = on_disk;
  return tiers;
}

TEST_CASE("Logits are the same bytes with the token table in memory and on disk",
          "[model][tiers]") {
  PackOptions floats;
  floats.expert_bits = 4;
  floats.dense_bits = 0;
  PackOptions nested = floats;
  nested.dense_bits = 6;
  for (const char* name : {"olmoe", "mixtral", "qwen3_moe_dense_layers"}) {
    for (const PackOptions& options : {floats, nested}) {
      INFO(name << " with " << options.dense_bits << " bits");
      const TestPack pack(name, options);
      const auto in_memory = pack.Load(Table(false));
      const auto on_disk = pack.Load(Table(true));
      CHECK(SameBytes(Run(*in_memory, pack), Run(*on_disk, pack)));
      CHECK(in_memory->footprint().weight_bytes == on_disk->footprint().weight_bytes);
      CHECK(in_memory->footprint().dense_bytes_per_token ==
            on_disk->footprint().dense_bytes_per_token);
    }
  }
}

TEST_CASE("A table that lost its end fails the sequences that need what is gone",
          "[model][tiers]") {
  PackOptions options;
  options.dense_bits = 0;
  const TestPack pack("olmoe", options);
  const auto model = pack.Load(Table(true));
  while (model->Background()) {  // experts are read: only the table is missed
  }
  const auto reader = PackReader::Open(pack.path());
  REQUIRE(reader.has_value());
  const PackTensor* table = reader->FindTensor("model.embed_tokens.weight");
  REQUIRE(table != nullptr);
  std::filesystem::resize_file(pack.path(), table->offset + table->bytes / 2);

  const std::vector<int32_t> tokens = {1, model->config().vocab - 1};
  TestSequence first(0, 4), second(4, 4);
  std::vector<SequenceChunk> chunks = {first.Chunk(std::span(tokens).first(1), LogitRows::kLast),
                                       second.Chunk(std::span(tokens).last(1), LogitRows::kLast)};
  chunks[0].stream = 1;
  chunks[1].stream = 2;
  static_cast<void>(model->Forward(chunks));
  REQUIRE(model->failures().size() == 1);
  CHECK(model->failures()[0].chunk == 1);
  CHECK(model->failures()[0].error.message.find("test.sluice") != std::string::npos);
}

TEST_CASE("A damaged token table is refused at load, on disk too", "[model][tiers]") {
  const TestPack pack("olmoe");
  {
    const auto reader = PackReader::Open(pack.path());
    REQUIRE(reader.has_value());
    const PackTensor* table = reader->FindTensor("model.embed_tokens.weight");
    REQUIRE(table != nullptr);
    std::fstream file(pack.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(table->offset + table->bytes / 2));
    file.put('\x5a');
    file.put('\xa5');
  }
  ModelOptions options;
  options.threads = 1;
  options.kv_blocks = 8;
  options.tiers = Table(true);
  const auto model = Model::Load(pack.path(), options);
  REQUIRE_FALSE(model.has_value());
  CHECK(model.error().message.find("does not have its checksum") != std::string::npos);
}

}  // namespace
}  // namespace sluice::testing
