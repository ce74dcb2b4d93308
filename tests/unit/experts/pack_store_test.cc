#include "engine/experts/pack_store.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>

#include "engine/experts/tiered_experts.h"
#include "engine/formats/pack_wire.h"
#include "tests/support/catch.h"
#include "tests/support/result.h"
#include "tests/support/scratch_directory.h"
#include "tests/support/scripted_reader.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<std::byte>;

constexpr int kLayers = 2;
constexpr int kExperts = 3;
constexpr NestedFormat kFormat{ScaleKind::kF16, 32, 4};  // three planes

WeightLayout Layout(int rows, int cols) {
  WeightLayout layout;
  layout.form = WeightForm::kNested;
  layout.nested = kFormat;
  layout.rows = rows;
  layout.cols = cols;
  return layout;
}

// A pack of random experts: three plane sets of some 40, 20 and 20 KB each.
class Fixture {
 public:
  explicit Fixture(size_t align = 4096) {
    Result<PackWriter> writer = PackWriter::Create(path(), kLayers, kExperts, align);
    REQUIRE(writer);
    const WeightLayout layouts[3] = {Layout(160, 320), Layout(160, 320), Layout(320, 160)};
    std::mt19937 random(1);
    for (int layer = 0; layer < kLayers; ++layer) {
      for (int index = 0; index < kExperts; ++index) {
        std::vector<Bytes> kept;
        std::vector<std::span<const std::byte>> planes[3];
        kept.reserve(9);
        for (int projection = 0; projection < 3; ++projection) {
          for (int plane = 0; plane < 3; ++plane) {
            Bytes& bytes = kept.emplace_back(layouts[projection].plane_bytes(plane));
            for (std::byte& b : bytes) b = static_cast<std::byte>(random());
            planes[projection].push_back(bytes);
          }
        }
        REQUIRE(writer->AddExpert(layer, index, layouts, planes));
      }
    }
    REQUIRE(writer->Finish({}));
    Result<PackReader> opened = PackReader::Open(path());
    REQUIRE(opened);
    pack = std::make_shared<const PackReader>(std::move(*opened));
  }

  fs::path path() const { return directory_.path() / "test.sluice"; }
  const PackExpert& expert(int layer, int index) const { return *pack->FindExpert(layer, index); }
  // A store that reads when the test says so. Pieces of 16 KiB: five per expert.
  std::unique_ptr<PackStore> Scripted(ScriptedReader** reader, bool held, int depth = 1,
                                      int background_depth = 1) const {
    auto owned = std::make_unique<ScriptedReader>(pack->file(), held);
    *reader = owned.get();
    PackStoreOptions options;
    options.piece_bytes = 16384;
    options.depth = depth;
    options.background_depth = background_depth;
    return std::make_unique<PackStore>(pack, std::move(owned), options);
  }

  std::shared_ptr<const PackReader> pack;

 private:
  ScratchDirectory directory_;
};

// Memory for one read, its sets in reverse order with a guard between them.
class Destination {
 public:
  Destination(const Fixture& fixture, ExpertRead read) : fixture_(&fixture), read_(read) {
    const PackExpert& expert = fixture.expert(read.expert.layer, read.expert.index);
    constexpr size_t kGuard = 4096;
    size_t bytes = kGuard;
    for (int set = read.end_set; set-- > read.first_set;) {
      offsets_[static_cast<size_t>(set)] = bytes;
      bytes += (expert.sets[static_cast<size_t>(set)].bytes + 4095) / 4096 * 4096 + kGuard;
    }
    bytes_ = bytes;
    memory_.reset(static_cast<std::byte*>(std::aligned_alloc(4096, bytes)));
    std::memset(memory_.get(), 0xEE, bytes);
    for (int set = read.first_set; set < read.end_set; ++set) {
      read_.destination[static_cast<size_t>(set)] =
          memory_.get() + offsets_[static_cast<size_t>(set)];
    }
  }
  const ExpertRead& read() const { return read_; }

  // All bytes right, and none written beside them.
  bool Right() const {
    Bytes want(bytes_, std::byte{0xEE});
    for (int set = read_.first_set; set < read_.end_set; ++set) {
      const auto number = static_cast<size_t>(set);
      Bytes bytes(fixture_->expert(read_.expert.layer, read_.expert.index).sets[number].bytes);
      REQUIRE(fixture_->pack->ReadPlaneSets(read_.expert.layer, read_.expert.index, number,
                                            number + 1, bytes));
      std::copy(bytes.begin(), bytes.end(),
                want.begin() + static_cast<ptrdiff_t>(offsets_[number]));
    }
    return std::memcmp(want.data(), memory_.get(), bytes_) == 0;
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  const Fixture* fixture_;
  ExpertRead read_;
  std::array<size_t, kMaxPlanes> offsets_{};
  size_t bytes_ = 0;
  std::unique_ptr<std::byte, Free> memory_;
};

ExpertRead Read(uint64_t ticket, ExpertId expert, int urgency, int first = 0, int end = 3) {
  ExpertRead read;
  read.ticket = ticket;
  read.expert = expert;
  read.urgency = urgency;
  read.first_set = first;
  read.end_set = end;
  return read;
}

std::vector<LandedRead> CollectCount(ExpertStore* store, size_t count) {
  std::vector<LandedRead> landed;
  while (landed.size() < count) store->Collect(true, &landed);
  return landed;
}

// Which expert each piece belongs to, as layer * 10 + index.
std::vector<int> Owners(const Fixture& fixture, const std::vector<uint64_t>& offsets) {
  std::vector<int> owners;
  for (const uint64_t offset : offsets) {
    for (int place = 0; place < kLayers * kExperts; ++place) {
      const PackExpert& e = fixture.expert(place / kExperts, place % kExperts);
      if (offset >= e.offset && offset < e.offset + e.bytes(3)) {
        owners.push_back(place / kExperts * 10 + place % kExperts);
      }
    }
  }
  return owners;
}

bool Says(const std::string& text, std::string_view words) {
  if (text.find(words) != std::string::npos) return true;
  UNSCOPED_INFO("expected \"" << words << "\" in: " << text);
  return false;
}

TEST_CASE("Every range of sets lands where it was sent, by every way of reading", "[pack_store]") {
  const Fixture fixture(GENERATE(size_t{512}, size_t{4096}));
  PackStoreOptions options;
  options.io_uring = GENERATE(true, false);
  options.direct = GENERATE(true, false);
  options.piece_bytes = GENERATE(size_t{8192}, size_t{1} << 20);
  const auto store = PackStore::Open(fixture.pack, options);
  REQUIRE(store);
  if (!options.io_uring) CHECK(Says((*store)->description(), "threads"));
  if (!options.direct) CHECK(Says((*store)->description(), "page cache"));
  std::vector<Destination> destinations;
  for (int place = 0; place < kLayers * kExperts; ++place) {
    for (int first = 0; first < 3; ++first) {
      for (int end = first + 1; end <= 3; ++end) {
        const ExpertId id{place / kExperts, place % kExperts};
        destinations.emplace_back(fixture,
                                  Read(destinations.size(), id, kUrgencyDemand, first, end));
      }
    }
  }
  uint64_t bytes = 0;
  for (const Destination& d : destinations) {
    (*store)->Submit(d.read());
    const PackExpert& e = fixture.expert(d.read().expert.layer, d.read().expert.index);
    bytes += e.bytes(static_cast<size_t>(d.read().end_set)) -
             e.bytes(static_cast<size_t>(d.read().first_set));
  }
  for (const LandedRead& landed : CollectCount(store->get(), destinations.size())) {
    CHECK(landed.ok);
    CHECK(destinations[landed.ticket].Right());
  }
  CHECK((*store)->stats().reads == destinations.size());
  CHECK((*store)->stats().bytes == bytes);
  CHECK((*store)->stats().retries == 0);
  CHECK((*store)->stats().busy_seconds > 0);
  CHECK((*store)->stats().cpu_seconds > 0);
}

TEST_CASE("Demands come first, then predictions, then fills, each in order of Submit",
          "[pack_store]") {
  const Fixture fixture;
  ScriptedReader* reader = nullptr;
  const auto store = fixture.Scripted(&reader, /*held=*/true);
  const Destination fill(fixture, Read(1, {0, 0}, kUrgencyFill, 2, 3));
  const Destination late(fixture, Read(2, {0, 1}, kUrgencyPredicted + 1, 2, 3));
  const Destination soon(fixture, Read(3, {0, 2}, kUrgencyPredicted, 2, 3));
  const Destination first(fixture, Read(4, {1, 0}, kUrgencyDemand, 2, 3));
  const Destination second(fixture, Read(5, {1, 1}, kUrgencyDemand, 2, 3));
  store->Submit(fill.read());
  reader->Asked(1);  // it is under way before the others are there
  for (const Destination* d : {&late, &soon, &first, &second}) store->Submit(d->read());
  reader->LandAll();
  const std::vector<LandedRead> landed = CollectCount(store.get(), 5);
  // Sets of two pieces each: the fill pauses after its first.
  CHECK(Owners(fixture, reader->Asked(10)) == std::vector<int>{0, 10, 10, 11, 11, 2, 2, 1, 1, 0});
  std::vector<uint64_t> tickets;
  for (const LandedRead& read : landed) tickets.push_back(read.ticket);
  CHECK(tickets == std::vector<uint64_t>{4, 5, 3, 2, 1});
  for (const Destination* d : {&fill, &late, &soon, &first, &second}) CHECK(d->Right());
}

TEST_CASE("A read changes its place in the queue with its urgency", "[pack_store]") {
  const Fixture fixture;
  ScriptedReader* reader = nullptr;
  const auto store = fixture.Scripted(&reader, /*held=*/true);
  const Destination a(fixture, Read(1, {0, 0}, kUrgencyPredicted, 2, 3));
  const Destination b(fixture, Read(2, {0, 1}, kUrgencyPredicted, 2, 3));
  const Destination c(fixture, Read(3, {0, 2}, kUrgencyPredicted, 2, 3));
  store->Submit(a.read());
  reader->Asked(1);
  store->Submit(b.read());
  store->Submit(c.read());
  store->SetUrgency(3, kUrgencyDemand);
  store->SetUrgency(1, kUrgencyFill);  // partly read
  store->SetUrgency(99, kUrgencyDemand);
  reader->LandAll();
  CollectCount(store.get(), 3);
  CHECK(Owners(fixture, reader->Asked(6)) == std::vector<int>{0, 2, 2, 1, 1, 0});
}

TEST_CASE("Fewer pieces are in flight while nobody waits, and a demand fills the rest",
          "[pack_store]") {
  const Fixture fixture;
  ScriptedReader* reader = nullptr;
  const auto store = fixture.Scripted(&reader, /*held=*/true, /*depth=*/4, /*background=*/2);
  const Destination predicted(fixture, Read(1, {0, 0}, kUrgencyPredicted));
  const Destination demanded(fixture, Read(2, {0, 1}, kUrgencyDemand));
  store->Submit(predicted.read());
  CHECK(Owners(fixture, reader->Asked(2)) == std::vector<int>{0, 0});
  store->Submit(demanded.read());
  CHECK(Owners(fixture, reader->Asked(4)) == std::vector<int>{0, 0, 1, 1});
  reader->Land(0);
  CHECK(Owners(fixture, reader->Asked(5)) == std::vector<int>{0, 0, 1, 1, 1});
  reader->LandAll();
  CollectCount(store.get(), 2);
  CHECK(predicted.Right());
  CHECK(demanded.Right());
}

TEST_CASE("Pieces may land in any order", "[pack_store]") {
  const Fixture fixture;
  ScriptedReader* reader = nullptr;
  const auto store = fixture.Scripted(&reader, /*held=*/true, /*depth=*/4);
  const Destination d(fixture, Read(1, {0, 0}, kUrgencyDemand));
  store->Submit(d.read());
  reader->Asked(4);
  reader->Land(3);
  reader->Asked(5);
  reader->Land(1);
  reader->Asked(5);
  reader->Land(0);
  reader->LandAll();
  CHECK(CollectCount(store.get(), 1).at(0).ok);
  CHECK(d.Right());
}

TEST_CASE("A queued read can be cancelled; its memory is the caller's at once", "[pack_store]") {
  const Fixture fixture;
  ScriptedReader* reader = nullptr;
  const auto store = fixture.Scripted(&reader, /*held=*/true);
  const Destination a(fixture, Read(1, {0, 0}, kUrgencyDemand, 2, 3));
  const Destination b(fixture, Read(2, {0, 1}, kUrgencyDemand, 2, 3));
  store->Submit(a.read());
  reader->Asked(1);
  store->Submit(b.read());
  CHECK(store->Cancel(2));
  CHECK_FALSE(store->Cancel(2));
  CHECK_FALSE(store->Cancel(77));
  reader->LandAll();
  CHECK(CollectCount(store.get(), 1).at(0).ticket == 1);
  CHECK(Owners(fixture, reader->Asked(2)) == std::vector<int>{0, 0});
  CHECK(store->stats().cancelled == 1);
  // The ticket is free again.
  const Destination again(fixture, Read(2, {0, 2}, kUrgencyDemand));
  store->Submit(again.read());
  CHECK(CollectCount(store.get(), 1).at(0).ok);
  CHECK(again.Right());
}

TEST_CASE("Cancelled under way, a read stops at the next piece and says so", "[pack_store]") {
  const Fixture fixture;
  ScriptedReader* reader = nullptr;
  const auto store = fixture.Scripted(&reader, /*held=*/true);
  const Destination d(fixture, Read(1, {0, 0}, kUrgencyPredicted));
  store->Submit(d.read());
  reader->Asked(1);
  CHECK_FALSE(store->Cancel(1));
  std::vector<LandedRead> landed;
  store->Collect(false, &landed);
  CHECK(landed.empty());
  SECTION("and never starts the rest") {
    reader->Land();
    landed = CollectCount(store.get(), 1);
    CHECK_FALSE(landed[0].ok);
    CHECK(landed[0].error.code == ErrorCode::kCancelled);
    CHECK(reader->Asked(1).size() == 1);
    CHECK(store->stats().cancelled == 1);
    CHECK(store->stats().failures == 0);
  }
  SECTION("unless it is wanted again before its piece landed") {
    store->SetUrgency(1, kUrgencyDemand);
    reader->LandAll();
    CHECK(CollectCount(store.get(), 1).at(0).ok);
    CHECK(d.Right());
  }
  SECTION("unless it is wanted again before its report was collected") {
    reader->Land();
    reader->Asked(1);  // reported by now
    CHECK_FALSE(store->Cancel(1));
    store->SetUrgency(1, kUrgencyDemand);
    reader->LandAll();
    CHECK(CollectCount(store.get(), 1).at(0).ok);
    CHECK(d.Right());
    CHECK(store->stats().cancelled == 0);
  }
}

TEST_CASE("A read whose last piece is under way lands in spite of Cancel", "[pack_store]") {
  const Fixture fixture;
  ScriptedReader* reader = nullptr;
  const auto store = fixture.Scripted(&reader, /*held=*/true, /*depth=*/4);
  const Destination d(fixture, Read(1, {0, 0}, kUrgencyDemand, 2, 3));
  store->Submit(d.read());
  CHECK(reader->Asked(2).size() == 2);
  CHECK_FALSE(store->Cancel(1));
  reader->LandAll();
  CHECK(CollectCount(store.get(), 1).at(0).ok);
  CHECK(d.Right());
  CHECK_FALSE(store->Cancel(1));
}

TEST_CASE("A piece that fails or comes short is read again", "[pack_store]") {
  const Fixture fixture;
  const PieceFate fate = GENERATE(PieceFate::kError, PieceFate::kShort);
  ScriptedReader* reader = nullptr;
  const auto store = fixture.Scripted(&reader, /*held=*/true, /*depth=*/2);
  const uint64_t bad = fixture.expert(0, 0).offset;
  int times = 0;
  reader->set_fate([&](const PieceRead& piece, int before) {
    return piece.offset_bytes == bad && before < times ? fate : PieceFate::kGood;
  });
  const Destination broken(fixture, Read(1, {0, 0}, kUrgencyDemand));
  const Destination whole(fixture, Read(2, {0, 1}, kUrgencyDemand));
  SECTION("as often as it may") {
    times = PackStore::kIoRetries;
    store->Submit(broken.read());
    reader->LandAll();
    const std::vector<LandedRead> landed = CollectCount(store.get(), 1);
    CHECK(landed[0].ok);
    CHECK(broken.Right());
    CHECK(store->stats().retries == PackStore::kIoRetries);
    CHECK(store->stats().failures == 0);
  }
  SECTION("and then only that read fails") {
    times = 100;
    store->Submit(broken.read());
    store->Submit(whole.read());
    reader->LandAll();
    for (const LandedRead& landed : CollectCount(store.get(), 2)) {
      CHECK(landed.ok == (landed.ticket == 2));
      if (landed.ok) continue;
      CHECK(landed.error.code == ErrorCode::kIo);
      CHECK(Says(landed.error.message, fixture.path().string()));
      CHECK(Says(landed.error.message, "expert 0 of layer 0"));
    }
    CHECK(whole.Right());
    CHECK(store->stats().failures == 1);
    CHECK(store->stats().reads == 2);
  }
}

TEST_CASE("A plane set without its checksum is read again once", "[pack_store]") {
  const Fixture fixture;
  ScriptedReader* reader = nullptr;
  const auto store = fixture.Scripted(&reader, /*held=*/false);
  const int set = GENERATE(0, 1, 2);
  const PackExpert& expert = fixture.expert(1, 2);
  const uint64_t begin = expert.offset + expert.bytes(static_cast<size_t>(set));
  const uint64_t end = expert.offset + expert.bytes(static_cast<size_t>(set) + 1);
  int times = 1;
  // The piece that lies in this set alone, or begins in it.
  reader->set_fate([&](const PieceRead& piece, int before) {
    const uint64_t middle = piece.offset_bytes + piece.parts[0].iov_len / 2;
    return middle >= begin && middle < end && before < times ? PieceFate::kWrongBytes
                                                             : PieceFate::kGood;
  });
  const Destination d(fixture, Read(1, {1, 2}, kUrgencyDemand));
  SECTION("and is right then") {
    store->Submit(d.read());
    CHECK(CollectCount(store.get(), 1).at(0).ok);
    CHECK(d.Right());
    CHECK(store->stats().checksum_failures == 1);
    CHECK(store->stats().retries == 1);
  }
  SECTION("or the read fails, naming file, expert and set") {
    times = 100;
    store->Submit(d.read());
    const std::vector<LandedRead> landed = CollectCount(store.get(), 1);
    REQUIRE_FALSE(landed[0].ok);
    CHECK(landed[0].error.code == ErrorCode::kCorrupt);
    CHECK(Says(landed[0].error.message, fixture.path().string()));
    CHECK(Says(landed[0].error.message, "expert 2 of layer 1"));
    CHECK(Says(landed[0].error.message, "plane set " + std::to_string(set)));
    CHECK(store->stats().checksum_failures == 2);
    CHECK(store->stats().failures == 1);
    // The store goes on.
    const Destination other(fixture, Read(1, {0, 2}, kUrgencyDemand));
    store->Submit(other.read());
    CHECK(CollectCount(store.get(), 1).at(0).ok);
    CHECK(other.Right());
  }
}

TEST_CASE("A stalled piece delays its own read and loses nothing", "[pack_store]") {
  const Fixture fixture;
  ScriptedReader* reader = nullptr;
  const auto store = fixture.Scripted(&reader, /*held=*/true, /*depth=*/2);
  const Destination stalled(fixture, Read(1, {0, 0}, kUrgencyDemand, 2, 3));
  const Destination other(fixture, Read(2, {0, 1}, kUrgencyDemand, 2, 3));
  store->Submit(stalled.read());
  store->Submit(other.read());
  reader->Asked(2);
  reader->Land(1);  // the second piece of the first read
  for (size_t piece = 3; piece <= 4; ++piece) {
    reader->Asked(piece);
    reader->Land(1);
  }
  CHECK(CollectCount(store.get(), 1).at(0).ticket == 2);
  CHECK(other.Right());
  reader->LandAll();
  CHECK(CollectCount(store.get(), 1).at(0).ok);
  CHECK(stalled.Right());
}

TEST_CASE("A pack truncated under the store fails what is gone and serves what is left",
          "[pack_store]") {
  const Fixture fixture;
  PackStoreOptions options;
  options.io_uring = GENERATE(true, false);
  options.direct = GENERATE(true, false);
  const auto store = PackStore::Open(fixture.pack, options);
  REQUIRE(store);
  const Destination left(fixture, Read(1, {0, 0}, kUrgencyDemand));
  const Destination gone(fixture, Read(2, {1, 2}, kUrgencyDemand));
  const Destination cut(fixture, Read(3, {1, 1}, kUrgencyDemand));
  fs::resize_file(fixture.path(), fixture.expert(1, 1).offset + 5000);
  for (const Destination* d : {&left, &gone, &cut}) (*store)->Submit(d->read());
  for (const LandedRead& landed : CollectCount(store->get(), 3)) {
    CHECK(landed.ok == (landed.ticket == 1));
    if (landed.ok) continue;
    CHECK(landed.error.code == ErrorCode::kCorrupt);
    CHECK(Says(landed.error.message, fixture.path().string() + " was truncated"));
  }
  CHECK(left.Right());
  CHECK((*store)->stats().pack_truncated);
  CHECK_FALSE((*store)->stats().pack_replaced);
}

TEST_CASE("A pack whose name was given to another file is served on, and said to be replaced",
          "[pack_store]") {
  const Fixture fixture;
  const fs::path other = fixture.path().string() + ".new";
  fs::copy_file(fixture.path(), other);
  fs::resize_file(other, 4096);
  fs::rename(other, fixture.path());
  const auto store = PackStore::Open(fixture.pack, {});
  REQUIRE(store);
  const Destination d(fixture, Read(1, {1, 1}, kUrgencyDemand));
  (*store)->Submit(d.read());
  CHECK(CollectCount(store->get(), 1).at(0).ok);
  CHECK(d.Right());
  CHECK((*store)->stats().pack_replaced);
  CHECK_FALSE((*store)->stats().pack_truncated);
}

TEST_CASE("A store can go away with reads queued and under way", "[pack_store]") {
  const Fixture fixture;
  std::vector<Destination> destinations;  // outlive the store, which writes until it is gone
  const auto store = PackStore::Open(fixture.pack, {.io_uring = GENERATE(true, false)});
  REQUIRE(store);
  for (uint64_t i = 0; i < 60; ++i) {
    destinations.emplace_back(
        fixture, Read(i, {static_cast<int>(i % 2), static_cast<int>(i % 3)}, kUrgencyPredicted));
  }
  for (const Destination& d : destinations) (*store)->Submit(d.read());
}

TEST_CASE("Many reads with changing minds all end, once each, with the right bytes",
          "[pack_store]") {
  const Fixture fixture;
  PackStoreOptions options;
  options.io_uring = GENERATE(true, false);
  options.piece_bytes = 8192;
  const auto store = PackStore::Open(fixture.pack, options);
  REQUIRE(store);
  std::mt19937 random(3);
  std::vector<Destination> destinations;
  for (uint64_t i = 0; i < 300; ++i) {
    const ExpertId id{static_cast<int>(random() % 2), static_cast<int>(random() % 3)};
    destinations.emplace_back(fixture,
                              Read(i, id, random() % 2 == 0 ? kUrgencyDemand : kUrgencyPredicted));
  }
  std::vector<int> ends(300, 0);
  std::vector<LandedRead> landed;
  size_t ended = 0, good = 0;
  const auto take = [&] {
    for (const LandedRead& read : landed) {
      ++ends[read.ticket];
      ++ended;
      REQUIRE((read.ok || read.error.code == ErrorCode::kCancelled));
      if (!read.ok) continue;
      ++good;
      REQUIRE(destinations[read.ticket].Right());
    }
    landed.clear();
  };
  for (uint64_t i = 0; i < 300; ++i) {
    (*store)->Submit(destinations[i].read());
    const uint64_t other = random() % (i + 1);
    if (random() % 3 == 0 && (*store)->Cancel(other)) {
      ++ends[other];
      ++ended;
    }
    (*store)->SetUrgency(random() % (i + 1), random() % 2 == 0 ? kUrgencyDemand : kUrgencyFill);
    if (random() % 4 == 0) {
      (*store)->Collect(false, &landed);
      take();
    }
  }
  while (ended < 300) {
    (*store)->Collect(true, &landed);
    take();
  }
  CHECK(good > 100);
  CHECK(std::count(ends.begin(), ends.end(), 1) == 300);
}

TEST_CASE("A disk that stalls on a piece delays the expert that needs it, and nothing is lost",
          "[pack_store][tiers]") {
  const Fixture fixture;
  ScriptedReader* reader = nullptr;
  auto store = fixture.Scripted(&reader, /*held=*/true, /*depth=*/4);
  const ExpertSpace space = {kLayers, kExperts};
  std::vector<const PackExpert*> experts;
  for (int place = 0; place < space.size(); ++place) {
    experts.push_back(&fixture.expert(space.id(place).layer, space.id(place).index));
  }
  auto policy = MakeCachePolicy("lru", space, {});
  REQUIRE(policy);
  auto slab = ExpertSlab::Reserve(1 << 21, fixture.pack->align());
  REQUIRE(slab);
  slab->SetLimit(1 << 21);
  const SteadyClock clock;
  TieredExperts tiers(ExpertCache(space, experts, 0, std::move(*slab), std::move(*policy)),
                      std::move(store), nullptr, TieredOptions{.keep = false}, &clock);
  const ExpertDemand demands[] = {{0, 1, 1}, {2, 1, 1}};
  const int32_t ids[] = {0, 2};
  const int64_t stream = 1;
  tiers.BeginStep(1);
  tiers.Begin(1, demands, {1, 2, ids, &stream});
  const auto right = [&](const ReadyExpert& ready) {
    REQUIRE(ready.weights != nullptr);
    const int index = demands[ready.demand].expert;
    const PackExpert& expert = fixture.expert(1, index);
    for (size_t set = 0; set < expert.sets.size(); ++set) {
      Bytes want(expert.sets[set].bytes);
      REQUIRE(fixture.pack->ReadPlaneSets(1, index, set, set + 1, want));
      const auto& planes = ready.weights->gate.nested.planes;
      CHECK(std::memcmp(planes[set], want.data(), want.size()) == 0);
    }
  };
  // The first piece stays away; all the others land as they are asked for.
  size_t pieces = 0;
  for (const int index : {0, 2}) {
    const PackExpert& expert = fixture.expert(1, index);
    pieces += (expert.bytes(expert.sets.size()) + 16383) / 16384;
  }
  REQUIRE(pieces > 8);
  for (size_t landed = 0; landed + 1 < pieces; ++landed) {
    REQUIRE(reader->Asked(std::min(pieces, landed + 4)).size() == std::min(pieces, landed + 4));
    reader->Land(1);
  }
  const auto first = tiers.Next(/*wait=*/true);
  REQUIRE(first.size() == 1);
  CHECK(first[0].demand == 1);
  right(first[0]);
  CHECK(tiers.Next(/*wait=*/false).empty());
  reader->LandAll();
  const auto second = tiers.Next(/*wait=*/true);
  REQUIRE(second.size() == 1);
  CHECK(second[0].demand == 0);
  right(second[0]);
  CHECK(tiers.Next(/*wait=*/true).empty());
  tiers.End();
  CHECK(tiers.stats().links.at(0).failures == 0);
  CHECK(tiers.stats().links.at(0).retries == 0);
}

}  // namespace
}  // namespace sluice
